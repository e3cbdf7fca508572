"""A real server with a model that says what its question asks for: `python page_server.py PORT [--queue N] ...`.

The question `say: TEXT` is answered with the text, `slowly: TEXT` with a pause before each token, `calculate` with a
call of the tool, and any other with `You said: ` and the question. NANOCHAT_API_KEYS sets keys, as for every server.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from nanochat.inference import Engine
from nanochat.model.cache import KVCache
from nanochat.model.sizes import ModelConfig
from nanochat.serving.app import ServerSettings, create_app
from nanochat.serving.holder import Model, ModelHolder, Served
from nanochat.serving.server import bind, run
from nanochat.serving.service import EngineService
from nanochat.tokenizer import Tokenizer

TEXT = "The quick brown fox jumps over the lazy dog. What is 12 + 30? It is 42. <script>alert(1)</script> " * 50
PAUSE = 0.05  # seconds before a token of a slow answer


class ObedientModel:
    """The module's docstring says how it answers."""

    def __init__(self, tokenizer: Tokenizer, *, context: int) -> None:
        self.config = ModelConfig(
            depth=1, width=8, heads=1, kv_heads=1, sequence_length=context, vocab_size=tokenizer.vocab_size
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
        logits[0, -1, self._next(self._heard)] = 1000.0
        return logits

    def _next(self, heard: list[int]) -> int:
        special = self._tokenizer.special
        if special["assistant_start"] not in heard:  # a long prompt comes in chunks
            return special["assistant_end"]
        begin = len(heard) - 1 - heard[::-1].index(special["assistant_start"])
        asked = len(heard) - 1 - heard[::-1].index(special["user_start"])
        question = self._tokenizer.decode([each for each in heard[asked + 1 : begin] if each < min(special.values())])
        question = question.rpartition("\n\n")[2]  # what was asked last, of messages that the server made one
        if question.startswith("slowly: "):
            time.sleep(PAUSE)
        script, said = self._script(question), len(heard) - begin - 1
        return script[said] if said < len(script) else special["assistant_end"]

    def _script(self, question: str) -> list[int]:
        encode, special = self._tokenizer.encode, self._tokenizer.special
        order, colon, text = question.partition(": ")
        if question == "calculate":
            call = [special["python_start"], *encode("6*7"), special["python_end"]]
            output = [special["output_start"], *encode("42"), special["output_end"]]
            return [*encode("It is "), *call, *output, *encode("42.")]
        return encode(text.replace("\\n", "\n") if colon and order in ("say", "slowly") else f"You said: {question}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--queue", type=int, default=64)
    parser.add_argument("--context", type=int, default=1024)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.train([TEXT], vocab_size=320)
    host = ModelHolder()
    model = ObedientModel(tokenizer, context=options.context)
    engine = Engine(model, tokenizer, slots=1)  # pyright: ignore[reportArgumentType]
    service = EngineService(engine, queue=options.queue, metrics=host.metrics)
    host.open(Model(Served("parrot", "f00dfeed", version="3"), service, tokenizer))
    with bind("127.0.0.1", options.port) as socket:
        run(create_app(host, ServerSettings.from_environment(os.environ, local=True)), host, socket=socket, grace=1)


if __name__ == "__main__":
    main()
