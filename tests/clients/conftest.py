"""A real server with a model that says what a script tells it: it uses the tool, and knows whether it is shown that."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import uvicorn
from talking_model import TalkingModel

from nanochat.inference import Engine
from nanochat.serving.app import create_app
from nanochat.serving.holder import Model, ModelHolder, Served
from nanochat.serving.server import bind, server_config
from nanochat.serving.service import EngineService
from nanochat.serving.settings import ServerSettings
from nanochat.tokenizer import Tokenizer

TEXT = "The quick brown fox jumps over the lazy dog. What is 12 + 30? It is 42. Caf\u00e9 cr\u00e8me, na\u00efve. " * 50


class CalculatingModel(TalkingModel):
    """Calculates 6*7 for a first question; asked again, it says what its conversation has of its first answer."""

    def answer(self, heard: list[int]) -> list[int]:
        special = self.tokenizer.special
        if special["assistant_start"] not in heard:
            return self.calculation()
        return self.tokenizer.encode("I calculated it." if special["python_start"] in heard else "I said it.")


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    tokenizer = Tokenizer.train([TEXT], vocab_size=320)
    host = ModelHolder()
    model = CalculatingModel(tokenizer, context=512)
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
