from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nanochat.model.cache import KVCache
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import BUCKET, IDLE, Transformer

Make = Callable[[ModelConfig], Transformer]


@pytest.fixture(params=[1, 2, 4])
def model(request: pytest.FixtureRequest, make_model: Make) -> Transformer:
    return make_model(
        ModelConfig(depth=2, width=32, heads=4, kv_heads=request.param, sequence_length=64, vocab_size=61)
    )


def cache_for(model: Transformer, *, slots: int, length: int = 200) -> KVCache:
    return KVCache(model.config, slots=slots, length=length, device=model.device, dtype=model.compute_dtype)


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(61, shape, generator=torch.Generator().manual_seed(seed))


def prefill(model: Transformer, cache: KVCache, slot: int, ids: torch.Tensor) -> torch.Tensor:
    return model.extend(ids[None], start=torch.tensor([0]), slots=torch.tensor([slot]), cache=cache)[0]


@torch.no_grad()
def test_chunks_and_steps_equal_the_plain_forward(model: Transformer) -> None:
    ids = tokens(1, 150)
    expected = model(ids)
    cache = cache_for(model, slots=3)
    pieces, position = [], 0
    for length in (1, 50, 14, 70, *[1] * 15):
        start, slots = torch.tensor([position]), torch.tensor([2])
        chunk = ids[:, position : position + length]
        pieces.append(model.extend(chunk, start=start, slots=slots, cache=cache))
        position += length
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_slots_at_different_positions(model: Transformer) -> None:
    lengths = [3, 90, 40, 64]
    ids = tokens(4, 120)
    expected = model(ids)
    cache = cache_for(model, slots=4)
    for slot, length in enumerate(lengths):
        prefill(model, cache, slot, ids[slot, :length])
    start = torch.tensor(lengths)
    for _ in range(20):
        step = ids.gather(1, start[:, None])
        logits = model.extend(step, start=start, slots=None, cache=cache)  # (4, 1, V)
        torch.testing.assert_close(logits[:, 0], expected[torch.arange(4), start], rtol=1e-5, atol=1e-5)
        start = start + 1


@torch.no_grad()
def test_named_slots_equal_all_slots(model: Transformer) -> None:
    ids, start = tokens(3, 2), torch.tensor([0, 5, 70])
    by_name, in_order = cache_for(model, slots=3), cache_for(model, slots=3)
    named = model.extend(ids[[2, 0, 1]], start=start[[2, 0, 1]], slots=torch.tensor([2, 0, 1]), cache=by_name)
    # Where a row stands among the others decides how a matrix product rounds it, so bits may differ.
    plain = model.extend(ids, start=start, slots=None, cache=in_order)
    torch.testing.assert_close(named[[1, 2, 0]], plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(by_name.k, in_order.k, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("others", [10, BUCKET - 1, BUCKET + 5, 190])
def test_a_row_does_not_see_its_neighbours(model: Transformer, dtype: torch.dtype, others: int) -> None:
    """Bit for bit, also where a longer neighbour makes the rows attend over more buckets."""
    model.compute_dtype = dtype
    mine, outputs = tokens(20, seed=1), []
    for seed, length in ((2, 20), (3, others)):
        cache = cache_for(model, slots=3)
        prefill(model, cache, 1, mine)
        prefill(model, cache, 0, tokens(length, seed=seed))
        prefill(model, cache, 2, tokens(length, seed=seed + 10))
        step = tokens(3, 1, seed=seed)
        step[1] = 7
        start = torch.tensor([length, 20, length])
        outputs.append(model.extend(step, start=start, slots=None, cache=cache)[1])
    assert torch.equal(outputs[0], outputs[1])


@torch.no_grad()
def test_an_idle_row_keeps_its_prompt_and_costs_no_attention(model: Transformer) -> None:
    cache, ids = cache_for(model, slots=2), tokens(2, 150)
    prefill(model, cache, 0, ids[0, :140])
    prefill(model, cache, 1, ids[1, :10])
    kept = cache.k[:, 0, :140].clone()
    shapes = []
    attend = F.scaled_dot_product_attention

    def watched(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **rest: Any) -> torch.Tensor:
        shapes.append(key.size(2))
        return attend(query, key, value, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", watched)
        logits = model.extend(ids[:, 10:11], start=torch.tensor([IDLE, 10]), slots=None, cache=cache)
    assert set(shapes) == {BUCKET}
    assert logits.isfinite().all()
    assert torch.equal(cache.k[:, 0, :140], kept)
    torch.testing.assert_close(logits[1, 0], model(ids[1:, :11])[0, -1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_copied_prefix_goes_on_alone(model: Transformer) -> None:
    ids = tokens(2, 30)
    ids[1, :20] = ids[0, :20]
    cache = cache_for(model, slots=2)
    prefill(model, cache, 0, ids[0, :20])
    cache.copy_slot(0, 1, 20)
    logits = model.extend(ids[:, 20:], start=torch.tensor([20, 20]), slots=None, cache=cache)
    torch.testing.assert_close(logits, model(ids)[:, 20:], rtol=1e-5, atol=1e-5)


def test_a_full_cache_says_so(model: Transformer) -> None:
    with pytest.raises(ValueError, match="position 20 is beyond the cache's 20"):
        prefill(model, cache_for(model, slots=1, length=20), 0, tokens(21))
