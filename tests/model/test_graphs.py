"""Steps of one token for CUDA graphs: the logits of other steps, recorded once a shape, given up in words.

What records here is a stand-in that computes anew; CUDA's own is tried by tests/gpu.
"""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat.inference import Engine, Sampling
from nanochat.model import cache as kv
from nanochat.model import graphs, transformer
from nanochat.model.cache import KVCache
from nanochat.model.graphs import Graphs
from nanochat.model.sizes import ModelConfig
from nanochat.model.speed import speed_up
from nanochat.model.transformer import IDLE, Transformer
from nanochat.spec.errors import UserError
from nanochat.tokenizer import Tokenizer
from tests.inference.conftest import tokenizer
from tests.model.recipe_models import RECIPES

__all__ = ["tokenizer"]

Make = Callable[[ModelConfig], Transformer]
LENGTH = 150


class Recorder:
    """Notes what is recorded, and computes into one tensor, as a graph does."""

    def __init__(self) -> None:
        self.recorded: list[tuple[int, ...]] = []  # the shapes of what was computed
        self.replayed = 0

    def __call__(self, compute: Callable[[], Tensor], pool: Any) -> Callable[[], Tensor]:
        assert pool == "pool"
        found = torch.full_like(compute(), torch.nan)
        self.recorded.append(tuple(found.shape))

        def replay() -> Tensor:
            self.replayed += 1
            return found.copy_(compute())

        return replay


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(graphs, "record", made)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(transformer, "CHUNK", 32)
    return made


def shapes_of(model: Transformer) -> list[tuple[tuple[int, ...], int]]:
    """Slots and positions of the steps that are kept."""
    assert isinstance(model.graphs, Graphs)
    return sorted(shape for steps in model.graphs._steps.values() for shape in steps.kept)


def some_model(make_model: Make, recipe: str) -> Transformer:
    shape = {"depth": 3, "width": 48, "heads": 4, "kv_heads": 2, "sequence_length": 64, "vocab_size": 61}
    return make_model(ModelConfig(**shape, **RECIPES[recipe]))


def cache_for(model: Transformer) -> KVCache:
    return KVCache(model.config, slots=4, length=LENGTH, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
@torch.inference_mode()
def test_rows_that_come_and_go_have_the_logits_of_a_plain_forward(
    make_model: Make, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    monkeypatch.setattr(kv, "CHUNK", 60)  # so that short windows, of 16, keep fewer positions than there are
    model = some_model(make_model, recipe)
    tokens = torch.randint(61, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    expected = model(tokens)
    model.graphs = Graphs(model)
    cache, lengths = cache_for(model), [0, 0, 0]
    slots = {(0, 1): [3, 0], (0,): [3, 1], (0, 1, 2): [0, 1, 2, 3], (2,): [2]}
    row_of = {3: 0, 0: 1, 2: 2}
    for step in range(140):
        active = [*slots][step // 5 % 4]
        given = slots[active]
        rows = [row_of.get(slot) if row_of.get(slot) in active else None for slot in given]
        ids = [0 if row is None else int(tokens[row, lengths[row]]) for row in rows]
        start = [IDLE if row is None else lengths[row] for row in rows]
        logits = model.decode(ids, start=start, slots=given, cache=cache)
        for row, found in zip(rows, logits, strict=True):
            if row is not None:
                torch.testing.assert_close(found, expected[row, lengths[row]], rtol=1e-4, atol=1e-4)
                lengths[row] += 1
    assert max(lengths) > 96 and recorder.replayed > 100
    # Each shape once: four sets of slots, and as many lengths as each has come to.
    assert len(recorder.recorded) <= 16 and {shape[0] for shape in recorder.recorded} == {1, 2, 4}


@pytest.mark.parametrize("repeatable", [True, False])
def test_the_engine_says_what_it_says_without(
    make_model: Make, tokenizer: Tokenizer, recorder: Recorder, caplog: pytest.LogCaptureFixture, repeatable: bool
) -> None:
    config = ModelConfig(
        depth=2,
        width=48,
        heads=4,
        kv_heads=2,
        sequence_length=128,
        vocab_size=tokenizer.vocab_size,
        **RECIPES["modern"],
    )
    model = make_model(config)
    prompts = [[7, 8, 9], list(range(40)), [7] * 30]
    sampling = Sampling(max_tokens=40, min_tokens=40, temperature=1.0, top_k=5, seed=3, repeatable=repeatable)
    expected = Engine(model, tokenizer, slots=3).generate(prompts, sampling)
    model.graphs = Graphs(model)
    engine = Engine(model, tokenizer, slots=3)
    found = engine.generate(prompts, sampling)
    assert [each.ids for each in found] == [each.ids for each in expected]
    assert recorder.replayed >= 35 and not caplog.records
    # All of them whole, or the first ones up to the last that is in use, as far as the longest has come.
    shapes = {((0, 1, 2), 128)} if repeatable else {((0, 1, 2), 64), ((0, 1, 2), 96)}
    assert set(shapes_of(model)) == shapes
    short = engine.submit([7, 8], replace(sampling, max_tokens=3))
    while short.finish_reason is None:
        engine.step()
    assert set(shapes_of(model)) == shapes | (set() if repeatable else {((0,), 32)})


@torch.inference_mode()
def test_what_can_not_be_recorded_is_computed_and_it_is_said_once(
    make_model: Make, monkeypatch: pytest.MonkeyPatch, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "record", refuse)
    model = some_model(make_model, "classic")
    expected = model(torch.tensor([[5, 6, 7, 8]]))[0]
    model.graphs = Graphs(model)
    cache = cache_for(model)
    with caplog.at_level(logging.WARNING):
        found = [model.decode([5 + at], start=[at], slots=[1], cache=cache)[0] for at in range(4)]
    torch.testing.assert_close(torch.stack(found), expected, rtol=1e-5, atol=1e-5)
    assert model.graphs is None
    assert [record.message for record in caplog.records] == [
        "tokens are computed kernel by kernel from now on, which is slower: "
        "CUDA error: operation not permitted when stream is capturing"
    ]


@torch.inference_mode()
def test_the_least_recently_used_shape_goes_first(
    make_model: Make, monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    monkeypatch.setattr(graphs, "KEPT", 2)
    model = some_model(make_model, "classic")
    model.graphs = Graphs(model)
    cache = cache_for(model)
    for slot in (0, 0, 1, 1, 0, 2, 2, 0, 1):  # with the last one slot 1 is as new
        model.decode([5], start=[0], slots=[slot], cache=cache)
    assert len(recorder.recorded) == 3
    model.decode([5], start=[0], slots=[1], cache=cache)
    assert len(recorder.recorded) == 4
    assert shapes_of(model) == [((0,), 32), ((1,), 32)]


@torch.inference_mode()
def test_each_cache_has_a_pool_and_a_graph_that_holds_it(
    make_model: Make, monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    """CUDA refuses to record into a pool all of whose graphs are gone."""
    live: dict[str, int] = {}
    monkeypatch.setattr(graphs, "KEPT", 1)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: f"pool {len(live)}")

    class Graph:
        def __init__(self, compute: Callable[[], Tensor], pool: str) -> None:
            assert live.get(pool) != 0
            self.said, self.pool = compute(), pool
            live[pool] = live.get(pool, 0) + 1

        def __call__(self) -> Tensor:
            return self.said

        def __del__(self) -> None:
            live[self.pool] -= 1

    monkeypatch.setattr(graphs, "record", Graph)
    model = some_model(make_model, "classic")
    model.graphs = Graphs(model)
    for number in range(2):
        cache = cache_for(model)
        for slot in (0, 0, 1, 2, 1, 1, 0, 0):
            model.decode([5], start=[0], slots=[slot], cache=cache)
        assert live == {**{f"pool {before}": 0 for before in range(number)}, f"pool {number}": 1}
        del cache
        gc.collect()
    assert live == {"pool 0": 0, "pool 1": 0} and model.graphs is not None


@torch.inference_mode()
def test_what_was_recorded_goes_with_its_cache(
    make_model: Make, monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    """A graph knows addresses alone."""
    said = torch.zeros(1, 61)
    monkeypatch.setattr(graphs, "record", lambda compute, pool: lambda: said)
    model = some_model(make_model, "classic")
    model.graphs = Graphs(model)
    cache = cache_for(model)
    found = [model.decode([5], start=[at], slots=[0], cache=cache) for at in range(3)]
    assert found[0] is not said and found[1] is said and found[2] is said
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    assert gone() is None


@torch.inference_mode()
def test_a_step_has_the_bounds_of_others(make_model: Make, recorder: Recorder) -> None:
    model = some_model(make_model, "classic")
    model.graphs = Graphs(model)
    cache = cache_for(model)
    with pytest.raises(ValueError, match="position 150 is beyond the cache's 150 positions"):
        model.decode([1, 1], start=[3, LENGTH], slots=[0, 1], cache=cache)
    with pytest.raises(UserError, match="longer than the 640 that this model takes"):
        model.decode([1], start=[640], slots=[0], cache=cache)


def test_they_are_chosen_on_cuda_alone(make_model: Make, monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> None:
    model = some_model(make_model, "classic")
    speed_up(model)
    assert model.graphs is None
    monkeypatch.setattr(Transformer, "device", torch.device("cuda", 0))
    assert speed_up(model) == "answers are computed by CUDA graphs"
    assert isinstance(model.graphs, Graphs)
