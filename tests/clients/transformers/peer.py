"""An exported folder in transformers' hands: `python peer.py FOLDER RESULTS < questions.json`.

It lives in an environment of its own and imports nothing of this project. Questions are texts, chats and prompts (ids);
RESULTS gets logits.safetensors, answers.json and, in `saved`, the model as transformers saves it.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import save_file

folder, results = Path(sys.argv[1]), Path(sys.argv[2])
asked = json.load(sys.stdin)
plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def chat(messages: list[dict], **options: bool) -> list[int] | str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


with torch.no_grad():
    logits = {str(i): model(torch.tensor([ids])).logits[0] for i, ids in enumerate(asked["prompts"])}
    greedy = [
        model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=asked["new_tokens"])[0, len(ids) :].tolist()
        for ids in asked["prompts"]
    ]
save_file(logits, results / "logits.safetensors")
model.save_pretrained(results / "saved")
tokenizer.save_pretrained(results / "saved")
answers = {
    "versions": {name: version(name) for name in ("transformers", "tokenizers", "torch")},
    "class": type(model).__name__,
    "plain": [plain.encode(text).ids for text in asked["texts"]],
    "texts": [tokenizer(text).input_ids for text in asked["texts"]],
    "decoded": [tokenizer.decode(ids) for ids in asked["prompts"]],
    "chats": [chat(messages) for messages in asked["chats"]],
    "prompted": [chat(messages, add_generation_prompt=True) for messages in asked["chats"]],
    "greedy": greedy,
    "said": [tokenizer.decode(ids, skip_special_tokens=True) for ids in greedy],
    "special": {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in asked["special"]},
    "ends": model.generation_config.eos_token_id,
}
(results / "answers.json").write_text(json.dumps(answers))
