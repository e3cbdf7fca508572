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
from nanochat.model.loss import SOFTCAP
from nanochat.model.sizes import MLP_RATIO, ModelConfig
from nanochat.model.transformer import EPSILON, Transformer
from nanochat.spec.errors import UserError

# Matrices of a block here, and what transformers calls them.
MATRICES = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.project": "self_attn.o_proj",
    "mlp.expand": "mlp.fc1",
    "mlp.contract": "mlp.fc2",
}
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
    config = model.config
    theirs = package.NanoChatForCausalLM(package.NanoChatConfig(**configuration(config))).to(model.compute_dtype)
    weights = model.state_dict()
    names = {"embedding": "model.embed_tokens.weight", "head.weight": "lm_head.weight"}
    for layer in range(config.depth):
        for ours, called in MATRICES.items():
            names[f"blocks.{layer}.{ours}.weight"] = f"model.layers.{layer}.{called}.weight"
    if unknown := sorted(weights.keys() - names):
        raise UserError(
            f"--peer transformers: its NanoChatForCausalLM has no place for {unknown[0]}; set model.recipe=classic"
        )
    theirs.load_state_dict({names[name]: weight for name, weight in weights.items()})
    return theirs.to(model.device).eval()


def configuration(config: ModelConfig) -> dict[str, Any]:
    """The model's configuration in the words of NanoChatConfig."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": MLP_RATIO * config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "max_position_embeddings": config.sequence_length,
        "rms_norm_eps": EPSILON,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "final_logit_softcapping": SOFTCAP,
        "bos_token_id": 0,
        "eos_token_id": None,
        "pad_token_id": None,
    }


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
