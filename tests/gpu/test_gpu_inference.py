"""The engine on a GPU against the plain forward pass."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from nanochat.inference import Engine, Sampling
from nanochat.model import graphs
from nanochat.model.snapshot import Snapshot
from nanochat.model.speed import speed_up
from nanochat.model.transformer import Transformer
from nanochat.runtime.device import Device
from nanochat.tokenizer import Tokenizer
from tests.inference.test_engine import ids

pytestmark = pytest.mark.gpu

# Of logits of up to 15, by the products of TF32 and bf16.
ROUNDING = {torch.float32: 0.05, torch.bfloat16: 0.5}


def on(device: Device, model: Transformer) -> Transformer:
    if model.native is not None:
        pytest.skip("compiled code is for CPUs")
    moved = deepcopy(model).to(device.device)
    moved.compute_dtype = device.compute_dtype
    return moved


@torch.no_grad()
@pytest.mark.parametrize("graphed", [False, True])
def test_each_token_is_the_likeliest_of_a_plain_forward_pass(
    model: Transformer, tokenizer: Tokenizer, device: Device, graphed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or as likely within rounding, which few are. With CUDA graphs most steps are replayed, and none is given up."""
    model = on(device, model)
    replayed = []
    if graphed:
        model.cast_weights()
        assert speed_up(model) == "answers are computed by CUDA graphs"
        record = graphs.record
        monkeypatch.setattr(graphs, "record", lambda *given: noting(record(*given), replayed))
    prompts = [ids(length, length) for length in (1, 7, 64, 100, 256, 257, 400, 600)]
    completions = Engine(model, tokenizer, slots=3).generate(prompts, Sampling(max_tokens=24))
    chosen, ties = 0, 0
    for prompt, completion in zip(prompts, completions, strict=True):
        logits = model(torch.tensor([prompt + completion.ids], device=model.device))[0, len(prompt) - 1 : -1]  # (n, V)
        for row, token, own in zip(logits, completion.ids, completion.mask, strict=True):
            if own:
                chosen += 1
                ties += int(row.argmax()) != token
                assert float(row.max() - row[token]) < ROUNDING[device.compute_dtype]
    assert chosen > 100 and ties <= chosen // 10
    assert (model.graphs is not None) is graphed
    assert len(replayed) >= 40 * graphed


def noting(replay: graphs.Replay, noted: list[None]) -> graphs.Replay:
    """The same, noted."""
    return lambda: (noted.append(None), replay())[1]


def test_samples_repeat_and_follow_their_seed(model: Transformer, tokenizer: Tokenizer, device: Device) -> None:
    model = on(device, model)
    model.graphs = graphs.Graphs(model)
    sampling = Sampling(max_tokens=12, temperature=1.0, top_k=20, top_p=0.9, seed=3, logprobs=2)
    for slots in (1, 4):
        first, second = (
            Engine(model, tokenizer, slots=slots).generate([ids(8, 300)] * 4, sampling.split(4)) for _ in range(2)
        )
        assert [sample.ids for sample in first] == [sample.ids for sample in second]
        assert len({tuple(sample.ids) for sample in first}) > 1


def test_a_repeatable_row_says_the_same_beside_a_longer_one(
    model: Transformer, tokenizer: Tokenizer, device: Device
) -> None:
    """With and without CUDA graphs, in engines one after the other; none is given up."""
    model = on(device, model)
    sampling = Sampling(max_tokens=40, min_tokens=40, temperature=1.0, seed=5)
    for recorded in (graphs.Graphs(model), None):
        model.graphs = recorded
        alone, beside = (
            Engine(model, tokenizer, slots=3).generate([ids(8, 30), *others], sampling)[0]
            for others in ([], [ids(9, 500), ids(10, 3)])
        )
        assert alone.ids == beside.ids
        assert model.graphs is recorded


def test_graphs_read_weights_that_are_renewed(model: Transformer, tokenizer: Tokenizer, device: Device) -> None:
    trained = on(device, model)
    snapshot = Snapshot(trained)
    assert isinstance(snapshot.model.graphs, graphs.Graphs)
    engine, sampling = Engine(snapshot.model, tokenizer, slots=2), Sampling(max_tokens=20, min_tokens=20)
    before = engine.generate([ids(8, 30)], sampling)[0].ids
    with torch.no_grad():
        trained.head.weight.neg_()
    snapshot.renew()
    after = engine.generate([ids(8, 30)], sampling)[0].ids
    assert after != before
    assert after == Engine(snapshot.model, tokenizer, slots=2).generate([ids(8, 30)], sampling)[0].ids
