from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat.model import cache as kv
from nanochat.model import cached_attention
from nanochat.model.cache import BUCKET, KVCache
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import IDLE, Transformer
from tests.model.recipe_models import MODERN, RECIPES

Make = Callable[[ModelConfig], Transformer]


@pytest.fixture(params=[(1, "classic"), (4, "classic"), *((2, recipe) for recipe in RECIPES)], ids=str)
def model(request: pytest.FixtureRequest, make_model: Make, monkeypatch: pytest.MonkeyPatch) -> Transformer:
    monkeypatch.setattr(kv, "CHUNK", 150)  # so that short windows, of 16, keep 192 of 200 positions
    kv_heads, recipe = request.param
    shape = {"depth": 2, "width": 32, "heads": 4, "kv_heads": kv_heads, "sequence_length": 64, "vocab_size": 61}
    return make_model(ModelConfig(**shape, **RECIPES[recipe]))


def cache_for(model: Transformer, *, slots: int, length: int = 200) -> KVCache:
    return KVCache(model.config, slots=slots, length=length, device=model.device, dtype=model.compute_dtype)


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(61, shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def extend(model: Transformer, ids: torch.Tensor, **where: Any) -> torch.Tensor:
    return model.logits(model.extend(ids, **where))


def prefill(model: Transformer, cache: KVCache, slot: int, ids: torch.Tensor) -> torch.Tensor:
    pieces = [
        extend(model, piece[None], start=torch.tensor([100 * i]), slots=[slot], cache=cache)[0]
        for i, piece in enumerate(ids.split(100))
    ]
    return torch.cat(pieces)


@torch.no_grad()
def test_chunks_and_steps_equal_the_plain_forward(model: Transformer) -> None:
    ids = tokens(1, 150)
    expected = model(ids)
    cache = cache_for(model, slots=3)
    pieces, position = [], 0
    for length in (1, 50, 14, 70, *[1] * 15):
        start, slots = torch.tensor([position]), [2]
        chunk = ids[:, position : position + length]
        pieces.append(extend(model, chunk, start=start, slots=slots, cache=cache))
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
        logits = extend(model, step, start=start, slots=range(start.numel()), cache=cache)  # (4, 1, V)
        torch.testing.assert_close(logits[:, 0], expected[torch.arange(4), start], rtol=1e-5, atol=1e-5)
        start = start + 1


@torch.no_grad()
def test_named_slots_equal_all_slots(model: Transformer) -> None:
    ids, start = tokens(3, 2), torch.tensor([0, 5, 70])
    by_name, in_order = cache_for(model, slots=3), cache_for(model, slots=3)
    named = extend(model, ids[[2, 0, 1]], start=start[[2, 0, 1]], slots=[2, 0, 1], cache=by_name)
    # Where a row stands among the others decides how a matrix product rounds it, so bits may differ.
    plain = extend(model, ids, start=start, slots=range(start.numel()), cache=in_order)
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
        outputs.append(extend(model, step, start=start, slots=range(start.numel()), cache=cache)[1])
    assert torch.equal(outputs[0], outputs[1])


@torch.no_grad()
def test_an_idle_row_keeps_its_prompt_and_costs_no_attention(model: Transformer) -> None:
    cache, ids = cache_for(model, slots=2), tokens(2, 150)
    prefill(model, cache, 0, ids[0, :140])
    prefill(model, cache, 1, ids[1, :10])
    kept = [k[0, :140].clone() for k in cache.k]
    seen = []
    attend = cached_attention.attend_row

    def watched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        seen.append(k.size(0))
        return attend(q, k, v, hidden)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cached_attention, "attend_row", watched)
        logits = extend(model, ids[:, 10:11], start=torch.tensor([IDLE, 10]), slots=range(2), cache=cache)
    assert seen == [11] * model.config.depth
    assert logits.isfinite().all()
    assert all(torch.equal(k[0, :140], before) for k, before in zip(cache.k, kept, strict=True))
    torch.testing.assert_close(logits[1, 0], model(ids[1:, :11])[0, -1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rows_of_several_lengths_go_in_one_pass(model: Transformer) -> None:
    """Padding changes nothing: not for its own row, whose next tokens follow, and not for a full neighbour."""
    begun, lengths = [0, 30, 100, 10], [150, 7, 20, 1]
    ids = tokens(4, 200)
    expected = model(ids)
    cache = cache_for(model, slots=6)
    slots = [5, 1, 2, 0]
    for row, start in enumerate(begun):
        if start:
            prefill(model, cache, slots[row], ids[row, :start])
    padded = torch.full((4, 150), 7)
    for row, (start, length) in enumerate(zip(begun, lengths, strict=True)):
        padded[row, :length] = ids[row, start : start + length]
    start, length = torch.tensor(begun), torch.tensor(lengths)
    logits = extend(model, padded, start=start, slots=slots, cache=cache, lengths=length)
    for row in range(4):
        told = expected[row, begun[row] : begun[row] + lengths[row]]
        torch.testing.assert_close(logits[row, : lengths[row]], told, rtol=1e-5, atol=1e-5)
    start = start + length
    for _ in range(200 - int(start.max())):
        logits = extend(model, ids.gather(1, start[:, None]), start=start, slots=slots, cache=cache)
        torch.testing.assert_close(logits[:, 0], expected[torch.arange(4), start], rtol=1e-5, atol=1e-5)
        start = start + 1


@torch.no_grad()
def test_a_copied_prefix_goes_on_alone(model: Transformer) -> None:
    ids = tokens(2, 30)
    ids[1, :20] = ids[0, :20]
    cache = cache_for(model, slots=2)
    prefill(model, cache, 0, ids[0, :20])
    cache.copy_slot(0, 1, 20)
    logits = extend(model, ids[:, 20:], start=torch.tensor([20, 20]), slots=range(2), cache=cache)
    torch.testing.assert_close(logits, model(ids)[:, 20:], rtol=1e-5, atol=1e-5)


def test_a_full_cache_says_so(model: Transformer) -> None:
    with pytest.raises(ValueError, match="position 20 is beyond the cache's 20"):
        prefill(model, cache_for(model, slots=1, length=20), 0, tokens(21))


@given(data=st.data(), recipe=st.sampled_from(sorted(RECIPES)), chunk=st.integers(1, 12))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@torch.no_grad()
def test_ragged_rows_in_any_chunks_equal_the_plain_forward(
    make_model: Make, data: st.DataObject, recipe: str, chunk: int
) -> None:
    """Prompts of several lengths, in chunks of their own, then steps of all rows at once."""
    draw = data.draw
    heads, kv_heads = draw(st.sampled_from([(1, 1), (2, 1), (4, 2)]))
    length = draw(st.integers(4, 40))
    shape = {"depth": draw(st.integers(1, 4)), "width": 16, "heads": heads, "kv_heads": kv_heads}
    model = make_model(ModelConfig(**shape, sequence_length=length, vocab_size=61, **RECIPES[recipe]))
    prompts = draw(st.lists(st.integers(1, 30), min_size=1, max_size=4))
    steps, total = 6, 36
    ids = tokens(len(prompts), total)
    expected = model(ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv, "CHUNK", chunk)
        cache = cache_for(model, slots=len(prompts), length=total)
    for slot, prompt in enumerate(prompts):
        for start in range(0, prompt, chunk):
            piece = ids[slot : slot + 1, start : min(start + chunk, prompt)]
            logits = extend(model, piece, start=torch.tensor([start]), slots=[slot], cache=cache)
            torch.testing.assert_close(logits[0], expected[slot, start : start + piece.size(1)], rtol=1e-4, atol=1e-4)
    start = torch.tensor(prompts)
    for _ in range(steps):
        logits = extend(model, ids.gather(1, start[:, None]), start=start, slots=range(start.numel()), cache=cache)[
            :, 0
        ]
        torch.testing.assert_close(logits, expected[torch.arange(len(prompts)), start], rtol=1e-4, atol=1e-4)
        start = start + 1


@pytest.mark.parametrize("recipe", sorted(RECIPES))
@pytest.mark.parametrize("beyond", [0, 1, 150])
@torch.no_grad()
def test_a_prefix_is_copied_from_a_slot_that_has_gone_on(
    make_model: Make, monkeypatch: pytest.MonkeyPatch, recipe: str, beyond: int
) -> None:
    monkeypatch.setattr(kv, "CHUNK", 150)
    config = ModelConfig(depth=3, width=32, heads=4, kv_heads=2, sequence_length=64, vocab_size=61, **RECIPES[recipe])
    model = make_model(config)
    ids, prefix = tokens(2, 400), 170
    ids[1, :prefix] = ids[0, :prefix]
    cache = cache_for(model, slots=2, length=400)
    assert beyond <= cache.reach
    prefill(model, cache, 0, ids[0, : prefix + beyond])
    cache.copy_slot(0, 1, prefix)
    logits = extend(model, ids[1:, prefix : prefix + 150], start=torch.tensor([prefix]), slots=[1], cache=cache)
    torch.testing.assert_close(logits, model(ids[1:])[:, prefix : prefix + 150], rtol=1e-4, atol=1e-4)


def test_short_windows_bound_the_cache(make_model: Make) -> None:
    config = ModelConfig(
        depth=4,
        width=32,
        heads=4,
        kv_heads=2,
        sequence_length=2048,
        vocab_size=61,
        **MODERN | {"window_pattern": "SSSL"},
    )
    cache = KVCache(config, slots=2, length=2048, device="meta", dtype=torch.float32)
    assert [k.size(1) for k in cache.k] == [768 + 1] * 3 + [2048]
    with pytest.raises(ValueError, match="257 tokens are more than the 256"):
        cache.check_room(300, 257)
