"""A copy that is asked beside training says what the model would say now."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nanochat.model.cache import KVCache
from nanochat.model.sizes import ModelConfig
from nanochat.model.snapshot import Snapshot
from nanochat.model.transformer import Transformer
from tests.model.recipe_models import RECIPES

Make = Callable[[ModelConfig], Transformer]


@torch.inference_mode()
def said(model: Transformer) -> torch.Tensor:
    """Logits (1, 9, V), with a cache of its own."""
    ids = torch.randint(61, (1, 9), generator=torch.Generator().manual_seed(0))
    cache = KVCache(model.config, slots=1, length=32, device="cpu", dtype=model.compute_dtype)
    return model.logits(model.extend(ids, start=torch.tensor([0]), slots=[0], cache=cache))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recipe", ["classic", "modern"])
def test_a_renewed_copy_says_what_a_new_one_does(make_model: Make, recipe: str, dtype: torch.dtype) -> None:
    shape = {"depth": 2, "width": 32, "heads": 4, "kv_heads": 2, "sequence_length": 16, "vocab_size": 61}
    trained = make_model(ModelConfig(**shape, **RECIPES[recipe]))
    trained.compute_dtype = dtype
    snapshot = Snapshot(trained)
    before = said(snapshot.model)
    with torch.no_grad():
        for weight in trained.parameters():
            weight.mul_(1.5)
    assert torch.equal(said(snapshot.model), before)
    snapshot.renew()
    assert torch.equal(said(snapshot.model), said(Snapshot(trained).model))
    assert not torch.equal(said(snapshot.model), before)
    assert all(weight.dtype == torch.float32 and weight.requires_grad for weight in trained.parameters())
    assert trained.native is None
