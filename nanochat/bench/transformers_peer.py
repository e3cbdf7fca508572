"""The transformers package as `nanochat bench infer --peer transformers` measures it: the same weights, its `generate`.

A token's time is the time between two of them as `generate` tells it, so its own sampling and bookkeeping count, as
the engine's do. Both answer greedily.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch

from nanochat.bench.generation import SHORT, Rounds, random_model
from nanochat.bench.pacing import Paced
from nanochat.exchange.config import to_transformers
from nanochat.exchange.weights import names
from nanochat.model.transformer import Transformer
from nanochat.spec.errors import UserError

NO_TOKENS = {"bos": 0, "assistant_end": 0}  # `generate` is told what ends an answer
END = 1 << 30  # a token that ends an answer and is never said


class Generated(Rounds):
    """Answers of the package."""

    def __init__(self, model: Transformer, task: Mapping[str, Any], package: Any) -> None:
        super().__init__(model, task)
        self.package, self.model = package, translate(model, package)

    def work(self) -> None:
        with self.timed("prefill"):
            self._generate(rows=1, prompt=self.prompt, tokens=1)
        for rows in self.rows:
            self._decode(rows)

    def _decode(self, rows: int) -> None:
        """The time from the first token of all rows to the last."""
        inside = self.timed(f"decode {rows}")

        def told(ids: torch.Tensor, _scores: object, **_rest: object) -> torch.Tensor:
            said = ids.size(1) - SHORT
            if said == 1:
                inside.__enter__()
            elif said == self.tokens + 1:
                inside.__exit__(None, None, None)
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        self._generate(rows=rows, prompt=SHORT, tokens=self.tokens + 1, told=told)

    def _generate(self, *, rows: int, prompt: int, tokens: int, told: Any = None) -> torch.Tensor:
        ids = torch.tensor([self.ids(prompt) for _ in range(rows)], device=self.model.device)
        return self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=END,
            pad_token_id=0,
            stopping_criteria=self.package.StoppingCriteriaList([told] if told else []),
        )


def translate(model: Transformer, package: Any) -> Any:
    """NanoChatForCausalLM with the model's configuration and weights; UserError where that class can't hold them."""
    weights, called = model.state_dict(), names(model.config)
    if unknown := sorted(weights.keys() - called.keys()):
        raise UserError(
            f"--peer transformers: its NanoChatForCausalLM has no place for {unknown[0]}; set model.recipe=classic"
        )
    config = package.NanoChatConfig(**to_transformers(model.config, NO_TOKENS))
    theirs = package.NanoChatForCausalLM(config).to(model.compute_dtype)
    theirs.load_state_dict({called[name]: weight for name, weight in weights.items()})
    return theirs.to(model.device).eval()


def run(task: Mapping[str, Any], paced: Paced) -> None:
    """Measure the installed package; UserError where there is none that knows the architecture."""
    try:
        package = importlib.import_module("transformers")
        _known = package.NanoChatForCausalLM
    except ModuleNotFoundError:
        raise UserError(
            "--peer transformers: the package is not installed beside nanochat; "
            "install it with `pip install transformers`"
        ) from None
    except AttributeError:
        raise UserError(
            "--peer transformers: the installed package is too old for NanoChatForCausalLM; "
            "install a newer one with `pip install --upgrade transformers`"
        ) from None
    paced.stamp("imports")
    Generated(random_model(task), task, package).forever(paced)
