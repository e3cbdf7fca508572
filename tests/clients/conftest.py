"""A real server with a model that says what a script tells it: it uses the tool, and knows whether it is shown that."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
import torch
import uvicorn
from torch import Tensor

from nanochat.inference import Engine
from nanochat.model.cache import KVCache
from nanochat.model.sizes import ModelConfig
from nanochat.serving.app import ServerSettings, create_app
from nanochat.serving.holder import Model, ModelHolder, Served
from nanochat.serving.server import bind, server_config
from nanochat.serving.service import EngineService
from nanochat.tokenizer import Tokenizer

TEXT = "The quick brown fox jumps over the lazy dog. What is 12 + 30? It is 42. Caf\u00e9 cr\u00e8me, na\u00efve. " * 50


class CalculatingModel:
    """Calculates 6*7 for a first question; asked again, it says what its conversation has of its first answer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.config = ModelConfig(
            depth=1, width=8, heads=1, kv_heads=1, sequence_length=512, vocab_size=tokenizer.vocab_size
        )
        self.device = torch.device("cpu")
        self.compute_dtype = torch.float32
        self._tokenizer = tokenizer
        self._heard: list[int] = []  # the tokens of the engine's only slot

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden

    def extend(
        self, ids: Tensor, *, start: Tensor, slots: Sequence[int], cache: KVCache, lengths: Tensor | None = None
    ) -> Tensor:
        self._heard[int(start[0]) :] = ids[0].tolist()
        logits = torch.zeros(*ids.shape, self.config.vocab_size)
        logits[0, -1, self._next()] = 1000.0
        return logits

    def _next(self) -> int:
        special = self._tokenizer.special
        if special["assistant_start"] not in self._heard:  # a long prompt comes in chunks
            return special["assistant_end"]
        begin = len(self._heard) - 1 - self._heard[::-1].index(special["assistant_start"])
        before, said = self._heard[:begin], len(self._heard) - begin - 1
        if special["assistant_start"] not in before:
            script = [
                *self._tokenizer.encode("It is "),
                *[special["python_start"], *self._tokenizer.encode("6*7"), special["python_end"]],
                *[special["output_start"], *self._tokenizer.encode("42"), special["output_end"]],
                *self._tokenizer.encode("42."),
            ]
        else:
            known = "I calculated it." if special["python_start"] in before else "I said it."
            script = self._tokenizer.encode(known)
        return script[said] if said < len(script) else special["assistant_end"]


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    tokenizer = Tokenizer.train([TEXT], vocab_size=320)
    host = ModelHolder()
    model = CalculatingModel(tokenizer)
    service = EngineService(Engine(model, tokenizer, slots=1), metrics=host.metrics)  # pyright: ignore[reportArgumentType]
    host.open(Model(Served("nanochat", "f00dfeed", version="3"), service, tokenizer))
    server = uvicorn.Server(server_config(create_app(host, ServerSettings()), grace=5))
    with bind("127.0.0.1", 0) as socket:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{socket.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
