"""A real server with a model that says what its question asks for: `python page_server.py PORT [--queue N] ...`.

The question `say: TEXT` is answered with the text, `slowly: TEXT` with a pause before each token, `calculate` with a
call of the tool, and any other with `You said: ` and the question. NANOCHAT_API_KEYS sets keys, as for every server.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch

from nanochat.inference import Engine
from nanochat.serving.app import create_app
from nanochat.serving.holder import Model, ModelHolder, Served
from nanochat.serving.server import bind, run
from nanochat.serving.service import EngineService
from nanochat.serving.settings import ServerSettings
from nanochat.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from talking_model import TalkingModel

TEXT = "The quick brown fox jumps over the lazy dog. What is 12 + 30? It is 42. <script>alert(1)</script> " * 50
PAUSE = 0.05  # seconds before a token of a slow answer


class ObedientModel(TalkingModel):
    """The module's docstring says how it answers."""

    def answer(self, heard: list[int]) -> list[int]:
        special = self.tokenizer.special
        asked = len(heard) - 1 - heard[::-1].index(special["user_start"])
        question = self.tokenizer.decode([each for each in heard[asked + 1 :] if each < min(special.values())])
        question = question.rpartition("\n\n")[2]  # what was asked last, of messages that the server made one
        order, colon, text = question.partition(": ")
        if order == "slowly" and colon:
            time.sleep(PAUSE)
        if question == "calculate":
            return self.calculation()
        said = text.replace("\\n", "\n") if colon and order in ("say", "slowly") else f"You said: {question}"
        return self.tokenizer.encode(said)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--queue", type=int, default=64)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--question", action="append", default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.train([TEXT], vocab_size=320)
    host = ModelHolder()
    model = ObedientModel(tokenizer, context=options.context)
    engine = Engine(model, tokenizer, slots=1)  # pyright: ignore[reportArgumentType]
    service = EngineService(engine, queue=options.queue, metrics=host.metrics)
    host.open(Model(Served("parrot", "f00dfeed", "3", tuple(options.question)), service, tokenizer))
    with bind("127.0.0.1", options.port) as socket:
        run(create_app(host, ServerSettings.from_environment(os.environ, local=True)), host, socket=socket, grace=1)


if __name__ == "__main__":
    main()
