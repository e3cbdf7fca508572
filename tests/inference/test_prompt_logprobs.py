"""How likely the model finds the tokens of a prompt, against the plain forward pass."""

from __future__ import annotations

import pytest
import torch

from nanochat.inference import Engine, Request, Sampling
from nanochat.inference.slots import CHUNK
from nanochat.model.transformer import Transformer
from nanochat.tokenizer import Tokenizer

SCORE = Sampling(max_tokens=1, prompt_logprobs=3)


def ids(seed: int, count: int) -> list[int]:
    return torch.randint(300, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def equals_the_forward_pass(model: Transformer, request: Request) -> bool:
    """Whether each token has the log-probability, and the likeliest alternatives, that a pass without a cache gives."""
    logs = torch.log_softmax(model(torch.tensor([request.prompt]))[0], dim=-1)  # (T, V)
    first, *others = request.prompt_logprobs
    assert first is None and len(others) == len(request.prompt) - 1
    for position, (token, found) in enumerate(zip(request.prompt[1:], others, strict=True)):
        assert found is not None and found.token == token
        assert found.logprob == pytest.approx(float(logs[position, token]), abs=1e-3)
        best = logs[position].topk(3).values.tolist()
        assert [logprob for _, logprob in found.top] == pytest.approx(best, abs=1e-3)
    return True


def run(engine: Engine, *requests: Request) -> None:
    while any(request.finish_reason is None for request in requests):
        engine.step()


@pytest.mark.parametrize("repeatable", [True, False])
def test_every_token_of_a_prompt_is_scored(model: Transformer, tokenizer: Tokenizer, repeatable: bool) -> None:
    engine = Engine(model, tokenizer, slots=3)
    settings = Sampling(max_tokens=1, prompt_logprobs=3, repeatable=repeatable)
    requests = [engine.submit(ids(length, length), settings) for length in (1, 2, 40, 45, CHUNK, CHUNK + 1, 600)]
    run(engine, *requests)
    assert all(equals_the_forward_pass(model, request) for request in requests)


def test_a_prompt_that_is_in_the_cache_is_scored_all_the_same(model: Transformer, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer, slots=2)
    prompt = ids(1, CHUNK + 30)
    run(engine, engine.submit(prompt, Sampling(max_tokens=3)))
    twice = [engine.submit(prompt, SCORE) for _ in range(2)]
    run(engine, *twice)
    assert all(request.reused == 0 and equals_the_forward_pass(model, request) for request in twice)
    plain = engine.submit(prompt, Sampling(max_tokens=3))
    run(engine, plain)
    assert plain.reused == len(prompt) and plain.prompt_logprobs == []


def test_what_shifts_the_logits_of_the_reply_leaves_the_prompt_alone(model: Transformer, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer, slots=2)
    biased = Sampling(max_tokens=1, prompt_logprobs=3, logit_bias=((7, 50.0),), temperature=1.5)
    request = engine.submit(ids(3, 20), biased)
    run(engine, request)
    assert equals_the_forward_pass(model, request) and request.ids == [7]
