"""The data side of training: what loaders and the tokenizer give a second, for `nanochat bench data`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from nanochat.bench.pacing import Paced
from nanochat.bench.shapes import Shape
from nanochat.bench.steps import OBJECTIVES, make_context, open_session
from nanochat.bench.synthetic import texts
from nanochat.spec.pipeline import PipelineSpec
from nanochat.tokenizer import Tokenizer

STEPS = 20  # of a loader in a round
VOCABULARY = 4096  # of the tokenizer; its speed hardly depends on it


def run(task: Mapping[str, Any], paced: Paced) -> None:
    """Give tokens, round after round."""
    paced.stamp("imports")
    with tempfile.TemporaryDirectory() as folder:
        given = SOURCES[task["source"]](Shape.from_dict(task["shape"]).read(), task["threads"], Path(folder))
        paced.stamp("data")
        while True:
            tokens = float(next(given))
            paced.boundary(lambda tokens=tokens: {"tokens": tokens})


def batches(stage: str) -> Callable[[PipelineSpec, int, Path], Iterator[int]]:
    """Global batches of a stage, as training gets them."""

    def give(spec: PipelineSpec, threads: int, folder: Path) -> Iterator[int]:
        context = make_context(spec, stage, folder, {"root": f"{folder}/store"})
        objective = OBJECTIVES[stage](open_session(context), folder)()
        for start in count(0, STEPS):
            yield sum(objective.local_batch(step).tokens for step in range(start, start + STEPS))

    return give


def encoding(spec: PipelineSpec, threads: int, folder: Path) -> Iterator[int]:
    """Texts as tokens, by a tokenizer that was trained on them."""
    given = texts()
    tokenizer = Tokenizer.train(given, vocab_size=VOCABULARY)
    while True:
        yield sum(map(len, tokenizer.encode_batch(given, threads=threads)))


SOURCES: Mapping[str, Callable[[PipelineSpec, int, Path], Iterator[int]]] = {
    "loader of base": batches("base"),
    "loader of sft": batches("sft"),
    "tokenizer": encoding,
}
