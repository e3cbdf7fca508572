"""lm-evaluation-harness finds what this project's own evaluation finds: over the server, and in an exported folder.

`make test-clients` installs the harness. The tasks are the mirror's PIQA, LAMBADA and GSM8K, in files that declare them
for the harness; the model is a small one that learned some of the solutions, right ones and wrong ones.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn

from nanochat.evaluation.chat import Chat, ChatSettings, Problems
from nanochat.evaluation.core import judge
from nanochat.evaluation.core_tasks import CoreTask, Example, load_tasks
from nanochat.evaluation.items import Item
from nanochat.exchange.export import export
from nanochat.inference import Engine
from nanochat.model.export import load_model, save_model
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.runtime.distributed import World
from nanochat.serving.app import create_app
from nanochat.serving.holder import Model, ModelHolder, Served
from nanochat.serving.server import bind, server_config
from nanochat.serving.service import EngineService
from nanochat.serving.settings import ServerSettings
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.chat import render_conversation
from tasks.gsm8k import GSM8K

HERE = Path(__file__).parent / "lm_eval"
pytestmark = pytest.mark.clients
CONTEXT = 1024
ITEMS = 8  # of each task
NEW_TOKENS = 24
ORDER = (("choice", "piqa"), ("words", "lambada_openai"))  # the harness's tasks, and CORE's
LIKELIHOODS = """
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: context
doc_to_target: target
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
ANSWERS = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{until: [], do_sample: false, max_gen_toks: {most}}}
filter_list:
  - name: number
    filter: [{{function: regex, regex_pattern: '#### (-?[0-9.,]+)'}}, {{function: take_first}}]
metric_list: [{{metric: exact_match, regexes_to_ignore: [","]}}]
"""


@dataclass(frozen=True)
class Compared:
    """What the harness found, by its way and task, and this project's own items by task."""

    found: Mapping[str, Mapping[str, Sequence[Any]]]
    own: Mapping[str, Sequence[Item]]
    tokens: Mapping[str, Sequence[Sequence[int]]]  # how many are scored of each choice


def whole_words(tokenizer: Tokenizer, task: CoreTask, example: Example) -> tuple[str, list[str]] | None:
    """The text before an item's choices, and these; None where they begin with the same token, as text or in tokens."""
    prompt = task.prompt(example)
    before = prompt.text.rstrip()
    choices = [prompt.text[len(before) :] + choice for choice in prompt.choices or [prompt.expected]]
    start = 1 + len(tokenizer.encode(before))
    spans = task.sequences(tokenizer, prompt)
    fits = all(span.start == start and len(span.ids) < CONTEXT for span in spans)
    return (before, choices) if fits else None


def learned(tokenizer: Tokenizer, problems: Mapping[int, Any]) -> Transformer:
    """A small model that says of the first problems the right number, and of the others a wrong one."""
    config = ModelConfig(
        depth=2, width=96, heads=4, kv_heads=2, sequence_length=CONTEXT, vocab_size=tokenizer.vocab_size
    )
    model = Transformer(config)
    model.init_weights(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = []
    for place, example in problems.items():
        number = example.reference if place < ITEMS // 2 else "7"
        answer = {"role": "assistant", "content": f"It is so.\n#### {number}"}
        rows.append(render_conversation(tokenizer, [example.messages[0], answer]))
    for step in range(160):
        row = rows[step % len(rows)]
        ids, mask = torch.tensor([row.ids]), torch.tensor([row.mask])
        optimizer.zero_grad()
        model(ids[:, :-1], torch.where(mask[:, 1:] > 0, ids[:, 1:], -1)).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def compared(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder, declared = tmp_path_factory.mktemp("artifact"), tmp_path_factory.mktemp("tasks")
    core = {task.label: task for task in load_tasks(mirror / "eval_bundle")}
    (file,) = GSM8K.files["test"]
    (declared / file.local).write_bytes((mirror / file.path).read_bytes())
    gsm8k = GSM8K(declared, "test")
    problems = {place: gsm8k[place] for place in range(ITEMS)}
    texts = [core[label].prompt(example).text for _, label in ORDER for example in core[label].examples(64)]
    texts += [example.messages[0]["content"] for example in problems.values()]
    tokenizer = Tokenizer.train(texts, vocab_size=2048)
    learnt = learned(tokenizer, problems)
    save_model(folder, learnt, {"stage": "sft", "step": 160})
    tokenizer.save(folder)
    export(folder, declared / "exported")
    model, _ = load_model(folder, device="cpu", compute_dtype=torch.float32)

    own: dict[str, list[Item]] = {}
    tokens: dict[str, list[list[int]]] = {}
    for task, label in ORDER:
        examples, lines, tokens[task] = {}, [], []
        for place, example in enumerate(core[label].examples(200)):
            found = whole_words(tokenizer, core[label], example)
            if found is None or len(lines) == ITEMS:
                continue
            context, choices = found
            gold = example.item.get("gold", 0)
            lines.append({"context": context, "choices": choices, "target": gold if task == "choice" else choices[0]})
            spans = core[label].sequences(tokenizer, core[label].prompt(example))
            tokens[task].append([len(span.ids) - span.start for span in spans])
            examples[place] = example
        own[task] = [item for items in judge(model, tokenizer, core[label], examples, batch_size=8) for item in items]
        data = declared / f"{task}.jsonl"
        data.write_text("".join(json.dumps(line) + "\n" for line in lines))
        kind = "multiple_choice\ndoc_to_choice: choices" if task == "choice" else "loglikelihood"
        (declared / f"{task}.yaml").write_text(LIKELIHOODS.format(task=task, data=data, kind=kind))
    data = declared / "sums.jsonl"
    asked = [{"question": e.messages[0]["content"], "answer": e.reference} for e in problems.values()]
    data.write_text("".join(json.dumps(line) + "\n" for line in asked))
    (declared / "sums.yaml").write_text(ANSWERS.format(data=data, most=NEW_TOKENS))
    chat = Chat(model, tokenizer, ChatSettings(batch_size=4, max_new_tokens=NEW_TOKENS), world=World())
    items = [item for some in chat.examine([Problems(gsm8k, problems)]) for item in some]
    own["sums"] = sorted(items, key=lambda item: item.index)
    return Compared(harness(model, tokenizer, declared), own, tokens)


def harness(model: Transformer, tokenizer: Tokenizer, declared: Path) -> Mapping[str, Mapping[str, Sequence[Any]]]:
    """What the harness finds, over a server of the model and in the exported folder."""
    host = ModelHolder()
    service = EngineService(Engine(model, tokenizer, slots=4), metrics=host.metrics)
    host.open(Model(Served("nanochat", "f00dfeed"), service, tokenizer))
    server = uvicorn.Server(server_config(create_app(host, ServerSettings()), grace=5))
    with bind("127.0.0.1", 0) as socket:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{socket.getsockname()[1]}"
            program = [str(HERE / ".venv/bin/python"), str(HERE / "harness.py")]
            offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(declared / "home")}
            told = [url, str(declared / "exported"), str(declared), str(CONTEXT)]
            environment = {"PATH": "/usr/bin:/bin", "HOME": str(declared), "OMP_NUM_THREADS": "2", **offline}
            ran = subprocess.run([*program, *told], capture_output=True, text=True, env=environment, timeout=280)
        finally:
            server.should_exit = True
            thread.join()
    assert ran.returncode == 0, ran.stderr[-6000:]
    answer = json.loads(ran.stdout.splitlines()[-1])
    print(f"\nlm_eval {answer['version']}")
    return answer["found"]


@pytest.mark.parametrize("way", ["local-completions", "hf"])
@pytest.mark.parametrize("task", ["choice", "words"])
def test_likelihoods_are_equal(compared: Compared, way: str, task: str) -> None:
    """Of every choice; and of words whether they are the likeliest."""
    found, own = compared.found[way][task], compared.own[task]
    assert len(found) == len(own) == ITEMS
    for theirs, item, tokens in zip(found, own, compared.tokens[task], strict=True):
        answers = theirs["answers"]
        sums = [score * count for score, count in zip(item.scores, tokens, strict=True) if score is not None]
        assert [float(answer[0]) for answer in answers] == pytest.approx(sums, rel=1e-4, abs=1e-3)
        if task == "words":
            assert bool(theirs["right"]) == item.right
        else:
            best = max(range(len(tokens)), key=lambda i: float(answers[i][0]) / tokens[i])
            assert item.answers == [item.choices[best]]


@pytest.mark.parametrize("way", ["local-chat-completions", "hf, chats"])
def test_answers_to_problems_are_equal(compared: Compared, way: str) -> None:
    found, own = compared.found[way]["sums"], compared.own["sums"]
    assert [bool(each["right"]) for each in found] == [item.right for item in own]
    assert {item.right for item in own} == {True, False}
