"""Attention to a cache by rows: exactly what each row sees, and nothing that lies beside it."""

from __future__ import annotations

import math

import pytest
import torch

from nanochat.model import cached_attention
from nanochat.model.cache import KVCache
from nanochat.model.cached_attention import ByRows, Together, attention_to
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import IDLE

SLOTS, LENGTH, HEAD = 4, 1500, 8


def a_cache(heads: int, kv_heads: int, windows: str, dtype: torch.dtype) -> KVCache:
    shape = {"depth": 2, "width": heads * HEAD, "heads": heads, "kv_heads": kv_heads, "sequence_length": 1200}
    config = ModelConfig(**shape, vocab_size=61, window_pattern=windows)
    return KVCache(config, slots=SLOTS, length=LENGTH, device="cpu", dtype=dtype)


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """One row in fp64: q (T, H, hd), k and v (S, H_kv, hd), seen (T, S)."""
    q, k, v = q.double(), *(x.double().repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
    scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(HEAD)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
    return torch.einsum("hts,shd->thd", weights, v)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 5e-6), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("windows", ["L", "S"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (6, 2)])
@pytest.mark.parametrize("tokens", [1, 5, 40])
@torch.inference_mode()
def test_each_row_sees_its_own_entries(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    error: float,
    windows: str,
    heads: int,
    kv_heads: int,
    tokens: int,
) -> None:
    """Of a row that has just begun, of one whose ring has gone round, and of one that is padded."""
    monkeypatch.setattr(cached_attention, "is_supported", lambda _dtype: True)
    cache = a_cache(heads, kv_heads, windows, dtype)
    span = cache.spans[0]
    draw = torch.Generator().manual_seed(tokens)
    slots, start, lengths = [3, 0, 2], torch.tensor([0, 1300, 70]), torch.tensor([tokens, tokens, max(1, tokens - 3)])
    positions = start[:, None] + torch.arange(tokens)
    positions = positions.masked_fill(positions >= (start + lengths)[:, None], IDLE)
    ends = (start + lengths).tolist()
    k, v = (torch.randn(SLOTS, span.stored, kv_heads, HEAD, generator=draw).to(dtype) for _ in range(2))
    for slot, end in zip(slots, ends, strict=True):
        k[slot, end:], v[slot, end:] = torch.nan, torch.nan  # nothing was ever written there
    k[1], v[1] = torch.nan, torch.nan
    q = torch.randn(3, tokens, heads, HEAD, generator=draw).to(dtype)
    attend = attention_to(span, cache, slots=slots, positions=positions, ends=ends)
    assert isinstance(attend, ByRows)
    found = attend(q, k, v)
    for row, (slot, end) in enumerate(zip(slots, ends, strict=True)):
        seen = min(end, span.size)
        mask = span.mask(positions[row : row + 1], seen)[0, 0]
        assert mask[0].sum() == min(int(start[row]) + 1, span.window)
        expected = exact(q[row], k[slot, :seen], v[slot, :seen], mask)
        own = slice(0, int(lengths[row]))
        assert (found[row, own].double() - expected[own]).abs().max() < error


@torch.inference_mode()
def test_what_a_row_says_has_the_same_bits_whoever_is_beside_it() -> None:
    cache = a_cache(4, 2, "L", torch.bfloat16)
    draw = torch.Generator().manual_seed(1)
    k, v = (torch.randn(SLOTS, LENGTH, 2, HEAD, generator=draw).to(torch.bfloat16) for _ in range(2))
    q = torch.randn(3, 1, 4, HEAD, generator=draw).to(torch.bfloat16)
    found = []
    for ends in ([5, 90, 0], [1400, 90, 7]):
        positions = torch.tensor(ends)[:, None] - 1
        found.append(attention_to(cache.spans[0], cache, slots=[3, 1, 0], positions=positions, ends=ends)(q, k, v))
    assert torch.equal(found[0][1], found[1][1])
    assert not found[0][2].any()  # an idle row attends to nothing


@torch.inference_mode()
def test_where_bf16_is_not_multiplied_prompts_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_attention, "is_supported", lambda _dtype: False)
    cache = a_cache(4, 2, "L", torch.float32)
    draw = torch.Generator().manual_seed(1)
    k, v = (torch.randn(SLOTS, LENGTH, 2, HEAD, generator=draw) for _ in range(2))
    q = torch.randn(1, 9, 4, HEAD, generator=draw)
    where = {"slots": [2], "positions": torch.arange(50, 59)[None], "ends": [59]}
    by_kernel = attention_to(cache.spans[0], cache, **where)
    monkeypatch.setattr(cached_attention, "is_supported", lambda _dtype: True)
    by_rows = attention_to(cache.spans[0], cache, **where)
    assert isinstance(by_kernel, Together) and isinstance(by_rows, ByRows)
    torch.testing.assert_close(by_kernel(q, k, v), by_rows(q, k, v), rtol=1e-5, atol=1e-5)
