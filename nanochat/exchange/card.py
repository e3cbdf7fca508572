"""The model card of an exported folder: what it holds, how it is loaded, and what differs from other chat models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nanochat.data.questions import read_questions
from nanochat.model.sizes import ModelConfig, parameters

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- nanochat
---

# A nanochat model

A chat model of {parameters:,} parameters that nanochat on Kubernetes trained, for transformers' `NanoChatForCausalLM`.

| | |
|---|---|
| Blocks | {depth} |
| Width | {width:,} |
| Heads | {heads}, with {kv_heads} for keys and values |
| Context | {sequence_length:,} tokens |
| Vocabulary | {vocab_size:,} tokens |
| Last training stage | {stage}, {step} steps |
| Weights | float32 |

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
messages = [{{"role": "user", "content": "Who are you?"}}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
answer = model.generate(**prompt, max_new_tokens=64)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))
```

- Text never becomes a special token. The chat template writes U+FDD0 before a special token's name, and the tokenizer
  reads a name so marked, and no other, as the token.
- A document begins with `tokenizer.bos_token_id`, which the tokenizer does not add by itself.
- The model calls a calculator: an expression between `<|python_start|>` and `<|python_end|>`. Whoever generates has to
  compute it and to put the result between `<|output_start|>` and `<|output_end|>`; `nanochat serve` does, `generate`
  does not. In the chat template these are parts of what the assistant said, of the types `python` and `python_output`.

{questions}## Limits

A small model for study and experiments. It states false things with confidence, knows nothing after its training text,
mostly understands English, and was not made safe for unattended use. Check what matters.
"""


def render_card(config: ModelConfig, extra: Mapping[str, Any]) -> str:
    """The card as Markdown; `extra` is what the artifact's config.json says of the training."""
    step = extra.get("step")
    questions = "".join(f"- {question}\n" for question in read_questions(extra))
    return _CARD.format(
        parameters=parameters(config),
        depth=config.depth,
        width=config.width,
        heads=config.heads,
        kv_heads=config.kv_heads,
        sequence_length=config.sequence_length,
        vocab_size=config.vocab_size,
        stage=str(extra.get("stage", "unknown")),
        step=f"{step:,}" if isinstance(step, int) else "unknown",
        questions=f"## Questions to ask it\n\n{questions}\n" if questions else "",
    )
