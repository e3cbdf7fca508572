"""CORE: the batched measurement against a slow and plain one, and the rules of its prompts."""

from __future__ import annotations

import csv
import json
import random
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml

from nanochat.evaluation.core import judge, measure_core
from nanochat.evaluation.core_tasks import CoreTask, Example, Span, load_tasks
from nanochat.evaluation.scoring import WORTHWHILE, cut_left, grouped, score
from nanochat.model.transformer import Transformer
from nanochat.runtime.distributed import ALONE, World
from nanochat.spec.errors import UserError
from nanochat.spec.training import BaseStage
from nanochat.stages import base
from nanochat.tokenizer import Tokenizer

WORDS = ["the", "cat", "sat", "on", "a", "thin", "mat", "in", "winter", "then", "another", "dinner", "other"]


def phrase(draw: Random, most: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, most)))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with a task of each kind; some items are longer than the model's context."""
    draw = Random(5)
    items = {
        "choices": [
            {"query": phrase(draw, 9), "choices": [phrase(draw, 4) for _ in range(4)], "gold": draw.randrange(4)}
            for _ in range(23)
        ],
        "schemas": [
            {
                "context_options": [phrase(draw, 5), phrase(draw, 9)], "continuation": phrase(draw, 12),
                "gold": draw.randrange(2),
            }
            for _ in range(17)
        ],
        "models": [{"context": f"{phrase(draw, 9)} ", "continuation": draw.choice("aeit")} for _ in range(19)],
    }  # fmt: skip
    kinds = {"choices": "multiple_choice", "schemas": "schema", "models": "language_modeling"}
    (tmp_path / "eval_data").mkdir()
    for name, rows in items.items():
        (tmp_path / "eval_data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    declared = [
        {
            "label": f"{name}_{shots}", "icl_task_type": kinds[name], "dataset_uri": f"{name}.jsonl",
            "num_fewshot": [shots], **({"continuation_delimiter": "\nAnswer: "} if shots else {}),
        }
        for name in items for shots in (0, 2, 40)
    ]  # fmt: skip
    (tmp_path / "core.yaml").write_text(yaml.safe_dump({"icl_tasks": declared}))
    with open(tmp_path / "eval_meta_data.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Eval Task", "Random baseline"])
        writer.writerows([entry["label"], 25] for entry in declared)
    return tmp_path


def plain_verdict(model: Transformer, tokenizer: Tokenizer, task: CoreTask, example: Example) -> bool:
    """One forward pass an option, all logits, no tricks."""

    def solved(item: dict) -> str:
        if task.kind == "multiple_choice":
            return item["query"] + task.delimiter + item["choices"][item["gold"]]
        if task.kind == "schema":
            return item["context_options"][item["gold"]] + task.delimiter + item["continuation"]
        return item["context"].strip() + task.delimiter + item["continuation"]

    before = "".join(solved(dict(shot)) + "\n\n" for shot in example.shots)
    item = example.item
    if task.kind == "multiple_choice":
        texts = [before + item["query"] + task.delimiter + choice for choice in item["choices"]]
    elif task.kind == "schema":
        texts = [before + context + task.delimiter + item["continuation"] for context in item["context_options"]]
    else:
        texts = [before + item["context"].strip() + task.delimiter + item["continuation"]]
    options = [[tokenizer.bos, *tokenizer.encode(text)] for text in texts]
    if task.kind == "multiple_choice":
        starts = [0] * len(options)
        while len({tuple(ids[: starts[0] + 1]) for ids in options}) == 1 and starts[0] < min(map(len, options)) - 1:
            starts = [starts[0] + 1] * len(options)
    elif task.kind == "schema":
        same = 1
        while same < min(map(len, options)) and len({tuple(ids[-same - 1 :]) for ids in options}) == 1:
            same += 1
        starts = [len(ids) - same for ids in options]
    else:
        without = (before + item["context"].strip() + task.delimiter).strip()
        starts = [1 + len(tokenizer.encode(without))]

    losses, exact = [], []
    for ids, first in zip(options, starts, strict=True):
        keep = model.config.sequence_length + 1
        dropped = max(0, len(ids) - keep)
        ids, start = ids[dropped:], max(1, first - dropped)
        with torch.inference_mode():
            logs = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
        losses.append(sum(-float(logs[i - 1, ids[i]]) for i in range(start, len(ids))) / (len(ids) - start))
        exact.append(all(int(logs[i - 1].argmax()) == ids[i] for i in range(start, len(ids))))
    if task.kind == "language_modeling":
        return exact[0]
    return losses.index(min(losses)) == item["gold"]


def test_batches_judge_as_the_plain_way_does(bundle: Path, model: Transformer, tokenizer: Tokenizer) -> None:
    found = []
    for task in load_tasks(bundle):
        examples = task.examples()
        plain = [plain_verdict(model, tokenizer, task, example) for example in examples]
        items = [
            item for some in judge(model, tokenizer, task, dict(enumerate(examples)), batch_size=3) for item in some
        ]
        assert [item.index for item in items] == list(range(len(examples)))
        assert [item.verdicts for item in items] == [[verdict] for verdict in plain]
        found += plain
    assert any(found) and not all(found)


def test_core_is_the_mean_of_centred_accuracies(bundle: Path, model: Transformer, tokenizer: Tokenizer) -> None:
    tasks = load_tasks(bundle)
    result = measure_core(model, tokenizer, tasks, batch_size=4, world=World(), most=10)
    assert all(task.accuracy.n == 10 for task in result.tasks.values())
    expected = sum((task.accuracy.value - 0.25) / 0.75 for task in result.tasks.values()) / len(tasks)
    assert result.core.value == pytest.approx(expected)
    errors = [(task.accuracy.value * (1 - task.accuracy.value) / 10) ** 0.5 / 0.75 for task in result.tasks.values()]
    assert result.core.stderr == pytest.approx(sum(e * e for e in errors) ** 0.5 / len(tasks))


def test_ranks_share_the_work(bundle: Path, model: Transformer, tokenizer: Tokenizer) -> None:
    class FakeWorld(World):
        """A rank that is told the sum of all instead of asking its peers."""

        def sum(self, *values: float) -> list[float]:
            counts.append(values)
            return list(values)

    counts: list[tuple[float, ...]] = []
    tasks = load_tasks(bundle)[:3]
    whole = measure_core(model, tokenizer, tasks, batch_size=4, world=World())
    for rank in range(3):
        measure_core(model, tokenizer, tasks, batch_size=4, world=FakeWorld(rank=rank, size=3))
    for i, task in enumerate(tasks):
        right, n = (sum(counts[rank * len(tasks) + i][part] for rank in range(3)) for part in (0, 1))
        accuracy = whole.tasks[task.label].accuracy
        assert (right, n) == (round(accuracy.value * accuracy.n), accuracy.n)


def test_solved_items_do_not_depend_on_how_many_are_measured(bundle: Path) -> None:
    for task in load_tasks(bundle):
        every = task.examples()
        assert task.examples(most=5) == every[:5]
        for example in every:
            assert len(example.shots) == min(task.shots, len(every) - 1)
            assert all(shot is not example.item for shot in example.shots)


def test_items_and_shots_are_the_references(bundle: Path) -> None:
    """Its order and its draws: from a list of all other places."""
    task = next(task for task in load_tasks(bundle) if task.label == "choices_2")
    items = [json.loads(line) for line in task.data.read_text().splitlines()]
    random.Random(1337).shuffle(items)
    for index, example in enumerate(task.examples()):
        others = [i for i in range(len(items)) if i != index]
        drawn = random.Random(1234 + index).sample(others, 2)
        assert example == Example(items[index], tuple(items[i] for i in drawn))


def test_long_sequences_lose_their_beginning(model: Transformer) -> None:
    length = model.config.sequence_length
    ids = [i % 250 for i in range(3 * length)]
    span = cut_left(Span(ids, 3 * length - 4), length)
    assert span.ids == ids[-length - 1 :]
    assert span.ids[span.start :] == ids[-4:]
    whole = cut_left(Span(ids, 2), length)  # more is scored than fits
    assert whole.start == 1
    assert score(model, [[Span(ids, 3 * length - 4)]], batch_size=1) == score(model, [[span]], batch_size=1)


def wide(model: Transformer, recipe: dict[str, Any]) -> Transformer:
    """A model of 512 tokens, with weights of its own."""
    sizes = {"depth": 3, "kv_heads": 1, "sequence_length": 512}
    other = Transformer(replace(model.config, **sizes, **recipe))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in other.parameters():
            weight.normal_(0.0, weight.size(-1) ** -0.5, generator=generator)
    return other


def beginning(count: int) -> list[int]:
    return [i * 7 % 250 for i in range(count)]


def test_options_with_one_beginning_are_computed_together() -> None:
    first = beginning(WORTHWHILE + 8)
    start = len(first)
    spans = {
        0: Span([*first, 1, 2, 3], start),
        1: Span([*first, 9], start),  # its input begins the others'
        2: Span([*first, 4, 5], start),
        3: Span([200, *first, 4, 5], start + 1),  # cut elsewhere
    }
    groups = grouped(spans)
    assert sorted((group.shared, [sorted(row.spans) for row in group.rows]) for group in groups) == [
        (start - 1, [[2], [0, 1]]),
        (start, [[3]]),
    ]
    short = {number: Span(span.ids[10:], span.start - 10) for number, span in spans.items()}
    assert all(len(group.rows) == 1 for group in grouped(short))  # too short to be worth a pass
    letters = {number: Span([*first, number], start) for number in range(4)}
    assert [(len(group.rows), sorted(group.rows[0].spans)) for group in grouped(letters)] == [(1, [0, 1, 2, 3])]


@pytest.mark.parametrize("recipe", [{}, {"window_pattern": "SSSL", "value_embeddings": True, "smear": True}], ids=str)
@pytest.mark.parametrize("batch_size", [1, 5])
def test_shared_beginnings_score_as_whole_sequences_do(
    model: Transformer, tokenizer: Tokenizer, recipe: dict[str, Any], batch_size: int
) -> None:
    model = wide(model, recipe)
    draw = Random(3)
    items = []
    for _ in range(9):
        first = [draw.randrange(250) for _ in range(draw.choice([40, 300, 500, 600]))]
        options = [[draw.randrange(250) for _ in range(draw.choice([1, 1, 2, 9, 300]))] for _ in range(5)]
        items.append([Span([*first, *option], len(first)) for option in options])
    assert any(len(group.rows) > 2 for spans in items for group in grouped(dict(enumerate(spans))))
    for spans, scores in zip(items, score(model, items, batch_size=batch_size), strict=True):
        for span, found in zip(spans, scores, strict=True):
            cut = cut_left(span, model.config.sequence_length)
            with torch.inference_mode():
                logits = model(torch.tensor([cut.ids[:-1]]))[0, cut.start - 1 :]
            wanted = torch.tensor(cut.ids[cut.start :])
            assert found.loss == pytest.approx(float(F.cross_entropy(logits, wanted)), abs=1e-4)
            assert found.likeliest == logits.argmax(dim=-1).tolist()
            assert found.exact == (found.likeliest == wanted.tolist())


def test_a_broken_bundle_is_one_sentence(bundle: Path) -> None:
    (bundle / "eval_data" / "models.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"CORE's task models_40: models\.jsonl: line 1: not JSON"):
        load_tasks(bundle)[-1].examples()
    (bundle / "core.yaml").unlink()
    with pytest.raises(UserError, match="not whole"):
        load_tasks(bundle)


RIGHT = {
    "choices": {"query": "a", "choices": ["b", "c"], "gold": 1},
    "schemas": {"context_options": ["a", "b"], "continuation": "c", "gold": 1},
    "models": {"context": "a", "continuation": "b"},
}


@pytest.mark.parametrize(
    ("name", "changed", "problem"),
    [
        ("choices", {"gold": 2}, "gold is 2, and there are 2 options"),
        ("choices", {"gold": -1}, "gold: "),
        ("choices", {"gold": "1"}, "gold: "),
        ("choices", {"gold": True}, "gold: "),
        ("choices", {"gold": 1.0}, "gold: "),
        ("choices", {"gold": None}, "gold: "),
        ("choices", {"gold": ...}, "gold: Field required"),
        ("choices", {"choices": []}, "choices: "),
        ("choices", {"choices": ["b"], "gold": 0}, "choices: "),
        ("choices", {"choices": ["b", 3]}, "choices.1: "),
        ("choices", {"choices": "bc"}, "choices: "),
        ("choices", {"query": None}, "query: "),
        ("schemas", {"gold": 2}, "gold is 2, and there are 2 options"),
        ("schemas", {"gold": False}, "gold: "),
        ("schemas", {"context_options": ["a"], "gold": 0}, "context_options: "),
        ("schemas", {"continuation": ""}, "continuation: "),
        ("models", {"continuation": ""}, "continuation: "),
        ("models", {"continuation": 7}, "continuation: "),
        ("models", {"context": ...}, "context: Field required"),
    ],
)
def test_an_item_that_is_wrong_fails_with_its_task(
    bundle: Path, name: str, changed: dict[str, object], problem: str
) -> None:
    item = {key: value for key, value in (RIGHT[name] | changed).items() if value is not ...}
    lines = [RIGHT[name], RIGHT[name] | {"more": 1}, item]
    (bundle / "eval_data" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    task = next(task for task in load_tasks(bundle) if task.label == f"{name}_0")
    for read in (task.examples, task.size):
        with pytest.raises(UserError, match=rf"CORE's task {name}_0: {name}\.jsonl: line 3: .*{problem}"):
            read()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", r"has no item in models\.jsonl"),
        (b"\n \n", "has no item"),
        (b"{}\n[1]", "line 1: context: "),
        (b"\n[1]", "line 2: "),
        (b'{"context": "\xff", "continuation": "a"}', "line 1: not JSON"),
        (b'{"context": NaN, "continuation": "a"}', "line 1: not JSON"),
        (b"[" * 100_000, "line 1: nested more than 200 deep"),
        (b'{"context": "' + b"a" * (4 << 20), "line 1: more than 4 MiB"),
    ],
    ids=range(8),
)
def test_a_file_without_right_items_is_no_score(bundle: Path, content: bytes, problem: str) -> None:
    (bundle / "eval_data" / "models.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=rf"CORE's task models_40.*{problem}"):
        load_tasks(bundle)[-1].size()


@pytest.mark.parametrize("baseline", ["100", "100.5", "-1", "nan", "inf", "", "a quarter", None])
def test_a_baseline_that_is_impossible_fails_with_its_task(bundle: Path, baseline: str | None) -> None:
    path = bundle / "eval_meta_data.csv"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("models_2,")]
    path.write_text("\n".join(lines if baseline is None else [*lines, f"models_2,{baseline}"]))
    with pytest.raises(UserError, match=r"CORE's task models_2 has the random baseline .* below 100"):
        load_tasks(bundle)


def test_the_mirrors_bundle_is_understood(mirror: Path, tokenizer: Tokenizer) -> None:
    tasks = load_tasks(mirror / "eval_bundle")
    assert len(tasks) == 22
    for task in tasks:
        for example in task.examples(most=3):
            for span in task.sequences(tokenizer, task.prompt(example)):
                assert 0 < span.start < len(span.ids)
        if task.kind == "language_modeling":
            example = task.examples(most=1)[0]
            (span,) = task.sequences(tokenizer, task.prompt(example))
            assert tokenizer.decode(span.ids[span.start :]).strip() == example.item["continuation"].strip()


def test_training_measures_the_first_examples(bundle: Path, model: Transformer, tokenizer: Tokenizer) -> None:
    said: list[str] = []
    session: Any = SimpleNamespace(
        model=model, tokenizer=tokenizer, world=ALONE, alive=said.append,
        context=SimpleNamespace(fetch=lambda ref: {"eval-bundle/core": bundle}[ref]),
    )  # fmt: skip
    tasks = load_tasks(bundle)
    few = measure_core(model, tokenizer, tasks, batch_size=4, world=ALONE, most=2).core
    settings = BaseStage.model_validate({"deviceBatchSize": 4, "coreMaxPerTask": 2})
    assert base.core(session, settings) == {"val/core": few.value}
    assert said == [f"measuring CORE, task {place} of {len(tasks)}" for place in range(1, len(tasks) + 1)]
