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
RECORDED = 3  # steps until a shape's graph is replayed
MODES: dict[str, Any] = {field.name: False for field in fields(Sampling) if field.name == "repeatable"}


class Letters(Tokenizer):
    """A tokenizer to which every token is a letter: random weights say any of the vocabulary."""

    def __init__(self) -> None:
        super().__init__([bytes([value]) for value in range(256)])

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"a" * len(ids)


class Rounds:
    """Figures of a round of answers, whoever gives them: seconds, and seconds of CPU, of each kind of work."""

    def __init__(self, model: Transformer, task: Mapping[str, Any]) -> None:
        self.prompt, self.tokens, self.rows, self.slots = (task[name] for name in ("prompt", "tokens", "rows", "slots"))
        multiplied = sum(weight.numel() for name, weight in model.named_parameters() if name.endswith(".weight"))
        self._read = torch.ones(multiplied, dtype=model.compute_dtype, device=model.device)
        self._draw = torch.Generator().manual_seed(SEED)
        self.figures: dict[str, float] = {}

    @torch.inference_mode()
    def round(self) -> None:
        """Each kind of work once; `figures` are those of the last round."""
        self.figures = {"once": 1.0}
        with self.timed("weights read once"):
            self._read.view(torch.float32).sum()
        self.work()

    def work(self) -> None:
        """All that is measured, each in `timed`."""
        raise NotImplementedError

    def ids(self, count: int) -> list[int]:
        """Made-up tokens, the same in every process."""
        return torch.randint(256, (count,), generator=self._draw).tolist()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time the work that is done inside, under this name."""
        synchronize()
        began, used = time.monotonic(), time.process_time()
        yield
        synchronize()
        self.figures |= {name: time.monotonic() - began, f"{name}, cpu": time.process_time() - used}

    def forever(self, paced: Paced) -> None:
        """Answer with the figures of one round at a time."""
        paced.stamp("build model")
        while True:
            self.round()  # the first one is not counted
            paced.boundary(lambda: self.figures)


class Generation(Rounds):
    """This project's engine."""

    def __init__(self, model: Transformer, task: Mapping[str, Any]) -> None:
        super().__init__(model, task)
        self.model = model
        try:
            importlib.import_module("nanochat.model.speed").speed_up(model, settled=True)
        except ImportError:  # older commits have it elsewhere, or not at all
            with suppress(ImportError):
                importlib.import_module("nanochat.model.native").speed_up(model)
            with suppress(ImportError):
                if getattr(model, "native", None) is None:
                    importlib.import_module("nanochat.model.packing").pack(model)

    def work(self) -> None:
        self._turns()
        for rows in self.rows:
            self._decode(f"decode {rows}", rows=rows, slots=rows)
        if graphs := getattr(self.model, "graphs", None):
            self.model.graphs = None
            for rows in self.rows:
                self._decode(f"decode {rows}, kernel by kernel", rows=rows, slots=rows)
            self.model.graphs = graphs
        self._decode(f"decode 1 of {self.slots} slots", rows=1, slots=self.slots)

    def _turns(self) -> None:
        """A conversation whose first question is long, another one in between, and its second turn."""
        engine, question = self._engine(2), self.ids(self.prompt)
        first = self._submit(engine, question, tokens=SHORT)
        self._until(engine, first, "prefill")
        while first.finish_reason is None:
            engine.step()
        between = self._submit(engine, self.ids(SHORT), tokens=1)
        self._until(engine, between, "prefill of a short prompt")
        second = self._submit(engine, [*question, *first.ids, *self.ids(SHORT)], tokens=1)
        self._until(engine, second, "first token of a second turn")

    def _decode(self, name: str, *, rows: int, slots: int) -> None:
        engine = self._engine(slots)
        requests = [self._submit(engine, self.ids(SHORT), tokens=self.tokens + rows + RECORDED) for _ in range(rows)]
        while not all(len(request.ids) >= RECORDED for request in requests):
            engine.step()
        with self.timed(name):
            for _ in range(self.tokens):
                engine.step()

    def _until(self, engine: Engine, request: Request, name: str) -> None:
        with self.timed(name):
            while not request.ids:
                engine.step()

    def _engine(self, slots: int) -> Engine:
        return Engine(self.model, Letters(), slots=slots)

    def _submit(self, engine: Engine, prompt: list[int], *, tokens: int) -> Request:
        return engine.submit(prompt, Sampling(max_tokens=tokens, min_tokens=tokens, **MODES))


def random_model(task: Mapping[str, Any]) -> Transformer:
    """The model of the task's shape, on the device and in the format that it asks for, with weights to be read only."""
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
    return model


def run(task: Mapping[str, Any], paced: Paced) -> None:
    """Measure this project, or another commit of it."""
    paced.stamp("imports")
    Generation(random_model(task), task).forever(paced)
