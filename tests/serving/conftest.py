"""A tiny random model behind a real server: uvicorn in a thread, on a port of its own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest
import torch
import uvicorn

from nanochat.inference import Engine
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.serving.app import create_app
from nanochat.serving.holder import Model, ModelHolder, Served
from nanochat.serving.server import bind, server_config
from nanochat.serving.service import EngineService
from nanochat.serving.settings import ServerSettings
from nanochat.serving.tls import Certificate
from nanochat.tokenizer import Tokenizer

TEXT = "The quick brown fox jumps over the lazy dog. What is 12 + 30? It is 42. Caf\u00e9 cr\u00e8me, na\u00efve. " * 50


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT], vocab_size=320)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Transformer:
    config = ModelConfig(depth=2, width=32, heads=4, kv_heads=4, sequence_length=512, vocab_size=tokenizer.vocab_size)
    model = Transformer(config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.3, generator=generator)
    return model


@dataclass(frozen=True, slots=True)
class Running:
    url: str
    service: EngineService
    thread: threading.Thread  # of its event loop


class SlowEngine(Engine):
    """An engine whose steps take a while, so that requests are still running when a test looks."""

    def step(self) -> list:  # type: ignore[override]
        time.sleep(0.02)
        return super().step()


@contextmanager
def running(
    model: Transformer,
    tokenizer: Tokenizer,
    *,
    engine: type[Engine] = Engine,
    slots: int = 4,
    queue: int = 64,
    settings: ServerSettings | None = None,
    certificate: Certificate | None = None,
    version: str = "",
) -> Iterator[Running]:
    host = ModelHolder()
    service = EngineService(engine(model, tokenizer, slots=slots), queue=queue, metrics=host.metrics)
    host.open(Model(Served("tiny", "f00dfeed", version=version), service, tokenizer))
    app = create_app(host, settings or ServerSettings())
    server = uvicorn.Server(server_config(app, grace=5, certificate=certificate))
    with bind("127.0.0.1", 0) as socket:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        try:
            scheme = "https" if certificate else "http"
            yield Running(f"{scheme}://127.0.0.1:{socket.getsockname()[1]}", service, thread)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def server(model: Transformer, tokenizer: Tokenizer) -> Iterator[Running]:
    with running(model, tokenizer) as started:
        yield started


Start = Callable[..., Running]


@pytest.fixture
def start(model: Transformer, tokenizer: Tokenizer) -> Iterator[Start]:
    """Starts a server with the given settings, which ends with the test."""
    with contextlib.ExitStack() as stack:

        def begin(*, slow: bool = False, **options: object) -> Running:
            engine = SlowEngine if slow else Engine
            return stack.enter_context(running(model, tokenizer, engine=engine, **options))  # pyright: ignore

        yield begin


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Waits until something is so."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "it never came about"
            time.sleep(0.01)

    return wait


@pytest.fixture
def ready() -> Callable[[str], bool]:
    """Whether a server process that has just been started is up and ready."""

    def answers(url: str) -> bool:
        try:
            return httpx.get(f"{url}/readyz", timeout=20).status_code == 200
        except httpx.TransportError:
            return False

    return answers
