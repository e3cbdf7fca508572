"""The model of a server process, once there is one, and until then the reason why there is none.

host = ModelHolder("loading version 3 of nanochat")
host.open(Model(Served("nanochat", fingerprint), service, tokenizer))     # from any thread
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property

from nanochat.inference.grammar import Grammars
from nanochat.serving.metrics import Metrics
from nanochat.serving.service import EngineService
from nanochat.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Served:
    """The model as the API names it; `version` is the registry's, '' where it has none."""

    name: str
    fingerprint: str
    version: str = ""
    questions: tuple[str, ...] = ()  # examples of what it may be asked, from its card
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def full_name(self) -> str:
        """Name and version; requests may ask for either the name or this."""
        return f"{self.name}:{self.version}" if self.version else self.name


@dataclass(frozen=True)
class Model:
    """A loaded model with the engine that runs it."""

    served: Served
    service: EngineService
    tokenizer: Tokenizer

    @cached_property
    def grammars(self) -> Grammars:
        """Compiles the schemas that answers are held to."""
        return Grammars(self.tokenizer)


class ModelHolder:
    """The model, or why there is none; and whether the process is about to end."""

    def __init__(self, reason: str = "", *, metrics: Metrics | None = None) -> None:
        self.model: Model | None = None
        self.reason = reason  # why there is no model
        self.leaving = False  # whether new requests should go to another server; those that come are still answered
        self.metrics = metrics or Metrics()

    def open(self, model: Model) -> None:
        """Serve a model from now on."""
        served = model.served
        model.service.start()
        self.metrics.follow(model.service, name=served.name, version=served.version, fingerprint=served.fingerprint)
        self.model = model

    def drain(self) -> None:
        """Take nothing more."""
        self.leaving = True
        if self.model is not None:
            self.model.service.draining = True

    def close(self) -> None:
        """End the engine; what still runs is dropped."""
        if self.model is not None:
            self.model.service.stop()

    @property
    def alive(self) -> bool:
        """Whether the process works: without a model it has nothing to do, which is well."""
        return self.model is None or self.model.service.alive

    @property
    def unready(self) -> str:
        """Why requests should go elsewhere, in a sentence; '' where they are welcome."""
        if self.model is None:
            return self.reason
        if not self.model.service.alive:
            return "the engine has failed"
        return "the server is about to end" if self.leaving or self.model.service.draining else ""
