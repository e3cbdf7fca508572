"""The choice of tokens: filters, distribution, and independence of the neighbours."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat.inference.sampling import (
    Sampler,
    Sampling,
    invert,
    token_logprobs,
    top_k_mask,
    top_p_mask,
    uniform,
)

CPU = torch.device("cpu")
BASE = Sampling(max_tokens=8, temperature=1.0)


def logits_of(seed: int, rows: int, vocabulary: int) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


@given(st.integers(0, 1000), st.lists(st.integers(0, 40), min_size=1, max_size=5))
def test_top_k_keeps_the_k_best(seed: int, counts: list[int]) -> None:
    scores = logits_of(seed, len(counts), 30)
    kept = top_k_mask(scores, torch.tensor(counts), most=max(1, min(30, *[max(counts)])))
    for row, count in enumerate(counts):
        assert kept[row].sum() == (30 if count == 0 else min(count, 30))
        if 0 < count < 30:
            assert scores[row][kept[row]].min() > scores[row][~kept[row]].max()


@given(st.integers(0, 1000), st.floats(0.01, 1.0))
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(seed: int, mass: float) -> None:
    probabilities = torch.softmax(logits_of(seed, 1, 30), dim=-1)
    kept = top_p_mask(probabilities, torch.tensor([mass]))[0]
    chosen = probabilities[0][kept]
    assert chosen.sum() >= mass - 1e-5
    assert chosen.numel() == 30 or chosen.min() >= probabilities[0][~kept].max()
    if mass < 1 and chosen.numel() > 1:
        assert chosen.sum() - chosen.min() < mass + 1e-5


@given(st.integers(0, 1000), st.floats(0, 1, exclude_max=True, width=32))
def test_a_token_without_mass_is_never_chosen(seed: int, draw: float) -> None:
    probabilities = torch.softmax(logits_of(seed, 1, 50), dim=-1)
    probabilities[0, ::2] = 0
    token = int(invert(probabilities, torch.tensor([draw])))
    assert probabilities[0, token] > 0


def test_frequencies_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2]).repeat(20_000, 1)
    draws = torch.tensor([uniform(7, position) for position in range(20_000)])
    counts = invert(probabilities, draws).bincount(minlength=4) / 20_000
    assert torch.allclose(counts, probabilities[0], atol=0.02)


def test_uniform_depends_on_seed_and_position_alone() -> None:
    assert uniform(1, 2) == uniform(1, 2)
    values = {uniform(seed, position) for seed in range(100) for position in range(100)}
    assert len(values) > 9_990
    assert all(0 <= value < 1 for value in values)


def test_splitting_keeps_the_first_seed_and_makes_others() -> None:
    split = replace(BASE, seed=5).split(4)
    assert split[0].seed == 5
    assert len({each.seed for each in split}) == 4
    assert split == replace(BASE, seed=5).split(4)


MIXED = [
    Sampling(max_tokens=8),
    Sampling(max_tokens=8, temperature=1.3, seed=1),
    Sampling(max_tokens=8, temperature=0.7, top_k=3, seed=2),
    Sampling(max_tokens=8, temperature=1.0, top_p=0.6, seed=3),
    Sampling(max_tokens=8, temperature=1.0, top_k=5, top_p=0.6, seed=4, min_tokens=4),
    Sampling(max_tokens=8, logit_bias=((5, 8.0), (6, -100.0))),
    Sampling(max_tokens=8, temperature=0.9, seed=5, frequency_penalty=-2.0, presence_penalty=1.5),
]


@pytest.mark.parametrize("row", range(len(MIXED)))
def test_a_row_chooses_the_same_whatever_its_neighbours_want(row: int) -> None:
    logits = logits_of(9, len(MIXED), 64)
    draws = [uniform(each.seed, 10) for each in MIXED]
    no_end = [each.min_tokens > 0 for each in MIXED]
    together, alone = (Sampler(len(MIXED), vocabulary=64, terminal=(62, 63), device=CPU) for _ in range(2))
    for index, each in enumerate(MIXED):
        together.put(index, each)
    alone.put(row, MIXED[row])
    only = [value if index == row else False for index, value in enumerate(no_end)]
    rows = list(range(len(MIXED)))
    expected = alone.choose(alone.shifted(logits, rows=rows, no_end=only), rows=rows, uniforms=draws)[row]
    scores = together.shifted(logits, rows=rows, no_end=no_end)
    assert together.choose(scores, rows=rows, uniforms=draws)[row] == expected
    single = together.shifted(logits[[row]], rows=[row], no_end=[no_end[row]])
    assert together.choose(single, rows=[row], uniforms=[draws[row]]) == expected


@given(
    st.lists(st.integers(0, 15), max_size=40),
    st.floats(-2, 2, width=32),
    st.floats(-2, 2, width=32),
    st.dictionaries(st.integers(0, 15), st.floats(-100, 100, width=32), max_size=4),
)
def test_penalties_and_biases_are_openais_formula(
    said: list[int], frequency: float, presence: float, bias: dict[int, float]
) -> None:
    logits = logits_of(1, 2, 16)
    sampler = Sampler(2, vocabulary=16, terminal=(), device=CPU)
    for _ in range(2):  # what an earlier request left in the row is gone
        sampler.put(1, Sampling(9, 0.0, logit_bias=((3, 7.0),), frequency_penalty=1.0))
        sampler.count([(1, 4)])
    setting = Sampling(
        9, frequency_penalty=frequency, presence_penalty=presence, logit_bias=tuple(bias.items())
    )  # fmt: skip
    sampler.put(1, setting)
    if setting.penalised:
        for token in said:
            sampler.count([(1, token)])
    counts = torch.tensor(said, dtype=torch.int64).bincount(minlength=16).float()
    expected = logits[1] - counts * frequency - (counts > 0) * presence
    for token, value in bias.items():
        expected[token] += value
    shifted = sampler.shifted(logits, rows=[0, 1], no_end=[False, False])
    torch.testing.assert_close(shifted[1], expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(shifted[0], logits[0])
    assert sampler.choose(shifted, rows=[0, 1], uniforms=[0.0, 0.0])[1] == shifted[1].argmax()


def test_without_biases_and_penalties_the_logits_are_the_models() -> None:
    logits = logits_of(1, 2, 16)
    sampler = Sampler(2, vocabulary=16, terminal=(), device=CPU)
    sampler.put(0, BASE)
    assert sampler.shifted(logits, rows=[0, 1], no_end=[False, False]) is logits


@pytest.mark.parametrize("temperature", [0.0, 1e-323, 1e-45, 1e-39, 1e-30, 9e-6])
@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.5}, {"top_p": 1e-39}, {"top_p": 0.0}])
def test_the_smallest_temperatures_are_greedy(temperature: float, options: dict) -> None:
    logits = logits_of(2, 2, 16)
    logits[0, 3] = logits[0, 11] = 20.0  # of equals the first
    sampler = Sampler(2, vocabulary=16, terminal=(), device=CPU)
    for row, setting in enumerate((replace(BASE, temperature=temperature, **options), BASE)):
        sampler.put(row, setting)
    for draw in (0.0, 0.5, 1 - 2.0**-24):
        assert sampler.choose(logits, rows=[0, 1], uniforms=[draw, draw])[0] == 3


@pytest.mark.parametrize("temperature", [1e-5, 1e-4, 2.0])
def test_the_coldest_draws_have_a_distribution(temperature: float) -> None:
    logits = logits_of(2, 1, 16)
    sampler = Sampler(1, vocabulary=16, terminal=(15,), device=CPU)
    bias = tuple((token, -100.0 if token % 2 else 100.0) for token in range(16))
    sampler.put(0, replace(BASE, temperature=temperature, logit_bias=bias))
    scores = sampler.shifted(logits, rows=[0], no_end=[True])
    drawn = {int(sampler.choose(scores, rows=[0], uniforms=[step / 64])) for step in range(64)}
    assert drawn <= set(range(0, 15, 2)) and int(scores.argmax()) in drawn


def test_terminal_tokens_wait_for_min_tokens() -> None:
    logits = torch.zeros(2, 8)
    logits[:, 7] = 50.0
    sampler = Sampler(2, vocabulary=8, terminal=(6, 7), device=CPU)
    for row in range(2):
        sampler.put(row, replace(BASE, min_tokens=2))
    chosen = sampler.choose(
        sampler.shifted(logits, rows=[0, 1], no_end=[True, False]), rows=[0, 1], uniforms=[0.5, 0.5]
    ).tolist()
    assert chosen[0] < 6
    assert chosen[1] == 7


def test_logprobs_are_of_the_models_own_distribution() -> None:
    logits = logits_of(3, 3, 16)
    found = token_logprobs(logits, [1, 2, 3], [None, 0, 4])
    logs = torch.log_softmax(logits, dim=-1)
    assert found[0] is None
    assert found[1] is not None and found[2] is not None
    assert found[1].logprob == pytest.approx(float(logs[1, 2])) and found[1].top == ()
    assert [token for token, _ in found[2].top] == logs[2].topk(4).indices.tolist()
