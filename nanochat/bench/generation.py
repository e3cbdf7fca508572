"""Answers of the engine on a model with random weights, for `nanochat bench infer`: each kind of work once a round.

Works with the engine of an older commit too, whose requests have one mode.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import Any

import torch

from nanochat.bench.pacing import Paced, synchronize
from nanochat.bench.shapes import Shape
from nanochat.bench.synthetic import SEED
from nanochat.inference import Engine, Request, Sampling
from nanochat.model.transformer import Transformer
from nanochat.pipeline.resolve import model_config
from nanochat.runtime.device import choose_device
from nanochat.tokenizer import Tokenizer

SHORT = 16  # tokens of a short prompt and of a second question
MODES: dict[str, Any] = {field.name: False for field in fields(Sampling) if field.name == "repeatable"}


class Letters(Tokenizer):
    """A tokenizer to which every token is a letter: random weights say any of the vocabulary."""

    def __init__(self) -> None:
        super().__init__([bytes([value]) for value in range(256)])

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"a" * len(ids)


class Generation:
    """One model and the figures of a round: seconds, and seconds of CPU, of each kind of work."""

    def __init__(self, model: Transformer, *, prompt: int, tokens: int, rows: Sequence[int], slots: int) -> None:
        self.model, self.prompt, self.tokens, self.rows, self.slots = model, prompt, tokens, rows, slots
        multiplied = sum(weight.numel() for name, weight in model.named_parameters() if name.endswith(".weight"))
        self.read = torch.ones(multiplied, dtype=model.compute_dtype, device=model.device)
        with suppress(ImportError):  # an older commit has no such thing
            importlib.import_module("nanochat.model.packing").pack(model)
        self.figures: dict[str, float] = {}
        self._draw = torch.Generator().manual_seed(SEED)

    @torch.inference_mode()
    def round(self) -> None:
        """Each kind of work once; `figures` are those of the last round."""
        self.figures = {"once": 1.0}
        with self._timed("weights read once"):
            self.read.view(torch.float32).sum()
        self._turns()
        for rows in self.rows:
            self._decode(f"decode {rows}", rows=rows, slots=rows)
        self._decode(f"decode 1 of {self.slots} slots", rows=1, slots=self.slots)

    def _turns(self) -> None:
        """A conversation whose first question is long, another one in between, and its second turn."""
        engine, question = self._engine(2), self._ids(self.prompt)
        first = self._submit(engine, question, tokens=SHORT)
        self._until(engine, first, "prefill")
        while first.finish_reason is None:
            engine.step()
        between = self._submit(engine, self._ids(SHORT), tokens=1)
        self._until(engine, between, "prefill of a short prompt")
        second = self._submit(engine, [*question, *first.ids, *self._ids(SHORT)], tokens=1)
        self._until(engine, second, "first token of a second turn")

    def _decode(self, name: str, *, rows: int, slots: int) -> None:
        engine = self._engine(slots)
        requests = [self._submit(engine, self._ids(SHORT), tokens=self.tokens + rows + 2) for _ in range(rows)]
        while not all(request.ids for request in requests):
            engine.step()
        with self._timed(name):
            for _ in range(self.tokens):
                engine.step()

    def _until(self, engine: Engine, request: Request, name: str) -> None:
        with self._timed(name):
            while not request.ids:
                engine.step()

    def _engine(self, slots: int) -> Engine:
        return Engine(self.model, Letters(), slots=slots)

    def _submit(self, engine: Engine, prompt: list[int], *, tokens: int) -> Request:
        return engine.submit(prompt, Sampling(max_tokens=tokens, min_tokens=tokens, **MODES))

    def _ids(self, count: int) -> list[int]:
        return torch.randint(256, (count,), generator=self._draw).tolist()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        synchronize()
        began, used = time.monotonic(), time.process_time()
        yield
        synchronize()
        self.figures |= {name: time.monotonic() - began, f"{name}, cpu": time.process_time() - used}


def run(task: Mapping[str, Any], paced: Paced) -> None:
    """Answer with the figures of one round at a time."""
    paced.stamp("imports")
    spec = Shape.from_dict(task["shape"]).read()
    config, device = model_config(spec), choose_device(spec.stages.base.precision)
    with torch.device(device.device):
        model = Transformer(config)
    generator = torch.Generator(device.device).manual_seed(SEED)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, config.width**-0.5, generator=generator)
    model.compute_dtype = device.compute_dtype
    model.cast_weights()
    measured = Generation(model, prompt=task["prompt"], tokens=task["tokens"], rows=task["rows"], slots=task["slots"])
    paced.stamp("build model")
    while True:
        measured.round()  # the first one is not counted
        paced.boundary(lambda: measured.figures)
