"""Guessed tokens: the very same answers in fewer passes, and nothing that depends on who is beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from nanochat.inference import Completion, Engine, Sampling
from nanochat.inference.guesses import Guesses
from nanochat.model.transformer import Transformer
from nanochat.tokenizer import Tokenizer
from tests.inference.test_engine import ids
from tests.inference.test_shapes import Watched, expect_plain

REPEATED = ids(3, 5) * 8
# Random weights say nothing twice: biased to a few tokens they have to.
FEW = tuple((token, 60.0) for token in (70, 71, 72))
CASES = [
    Sampling(max_tokens=40, logit_bias=FEW),
    Sampling(max_tokens=40, logit_bias=FEW, temperature=0.8, seed=5),
    Sampling(max_tokens=40, logit_bias=FEW, temperature=1.0, seed=6, top_k=2, logprobs=2),
    Sampling(max_tokens=40, logit_bias=FEW, temperature=0.9, seed=7, frequency_penalty=1.0, min_tokens=30),
]


def watched_engine(model: Transformer, tokenizer: Tokenizer, *, guesses: int, slots: int = 3) -> tuple[Engine, Watched]:
    watched = Watched(model)
    return Engine(watched, tokenizer, slots=slots, guesses=guesses), watched  # pyright: ignore[reportArgumentType]


def answer(engine: Engine, sampling: Sampling) -> Completion:
    return engine.generate([REPEATED], sampling)[0]


@pytest.mark.parametrize("repeatable", [True, False])
@pytest.mark.parametrize("sampling", CASES, ids=["greedy", "drawn", "filtered", "penalised"])
def test_the_very_same_tokens_come_in_fewer_passes(
    model: Transformer, tokenizer: Tokenizer, sampling: Sampling, repeatable: bool
) -> None:
    sampling = replace(sampling, repeatable=repeatable)
    plain, all_passes = watched_engine(model, tokenizer, guesses=0)
    engine, passes = watched_engine(model, tokenizer, guesses=4)
    expected, found = answer(plain, sampling), answer(engine, sampling)
    assert (found.ids, found.text, found.finish_reason) == (expected.ids, expected.text, expected.finish_reason)
    assert len(passes.passes) < len(all_passes.passes)
    assert max(tokens for rows, tokens in passes.passes[1:] if rows == 1) == 5


def test_a_greedy_answer_is_that_of_the_plain_forward_pass(model: Transformer, tokenizer: Tokenizer) -> None:
    engine, watched = watched_engine(model, tokenizer, guesses=6)
    requests = [engine.submit(prompt, Sampling(max_tokens=100, min_tokens=100)) for prompt in (REPEATED, ids(4, 300))]
    while engine.running or engine.waiting:
        engine.step()
    expect_plain(model, tokenizer, requests)
    assert any(rows == 1 and 1 < tokens <= 7 for rows, tokens in watched.passes)


def test_guesses_do_not_depend_on_neighbours(model: Transformer, tokenizer: Tokenizer) -> None:
    """Bit for bit, as the log-probabilities show."""
    sampling = replace(CASES[2], logprobs=3)
    alone = answer(Engine(model, tokenizer, slots=3, guesses=4), sampling)
    engine = Engine(model, tokenizer, slots=3, guesses=4)
    engine.submit(ids(9, 30), Sampling(max_tokens=7, temperature=1.0, seed=1))
    request = engine.submit(REPEATED, sampling)
    for step in range(60):
        if step % 9 == 0:
            engine.submit(REPEATED[step % 5 :], Sampling(max_tokens=9, temperature=1.0, seed=step, logit_bias=FEW))
        engine.step()
    assert request.completion.ids == alone.ids
    assert request.completion.logprobs == alone.logprobs


def test_a_turn_that_goes_on_after_guesses_is_as_without_them(model: Transformer, tokenizer: Tokenizer) -> None:
    """What was computed for guesses that were wrong is in no later turn."""
    found = []
    for guesses in (0, 4):
        engine = Engine(model, tokenizer, slots=1, guesses=guesses)
        prompt: Sequence[int] = REPEATED
        for turn in range(3):
            request = engine.submit(prompt, replace(CASES[1], max_tokens=15 + turn, repeatable=False))
            while request.finish_reason is None:
                engine.step()
            prompt = [*prompt, *request.ids, *ids(turn, 4)]
        assert request.reused > len(REPEATED)
        found.append(list(prompt))
    assert found[0] == found[1]


@pytest.mark.parametrize("length", [48, 64])
def test_an_answer_ends_where_the_context_does(model: Transformer, tokenizer: Tokenizer, length: int) -> None:
    sampling = Sampling(max_tokens=100, logit_bias=FEW, min_tokens=100)
    engine = Engine(model, tokenizer, slots=2, length=length, guesses=10)
    found = answer(engine, sampling)
    assert (found.finish_reason, len(found.ids)) == ("length", length - len(REPEATED))
    assert found.ids == answer(Engine(model, tokenizer, slots=2, length=length), sampling).ids


def test_what_followed_last_time_is_guessed() -> None:
    guesses = Guesses([1, 2, 3, 4, 9, 2, 3, 5, 6, 1, 2], most=3)
    assert guesses.next(9) == [3, 4, 9]
    assert guesses.next(1) == guesses.next(9)[:1]
    assert guesses.next(0) == guesses.next(-1) == []
    assert guesses.after(3) is None  # nothing was computed ahead
    assert guesses.next(9) == [4, 9, 2]  # three tokens that are the same before two
    logits = torch.eye(3)
    guesses.computed([4, 9, 2], logits)
    first, second = guesses.after(4), guesses.after(8)
    assert first is not None and torch.equal(first, logits[0])
    assert second is None and guesses.after(2) is None  # one that was wrong makes the others void
    assert Guesses([7], most=3).next(5) == []
    assert Guesses([7, 8, 7, 8], most=5).next(5) == [7, 8, 7, 8, 7]
