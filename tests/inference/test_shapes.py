"""What one step computes: prompts in passes, rows in shapes, heads where a token follows, and what is not computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch

from nanochat.inference import Completion, Engine, Request, Sampling
from nanochat.inference.slots import CHUNK
from nanochat.model.cache import KVCache
from nanochat.model.transformer import Transformer
from nanochat.tokenizer import Tokenizer
from tests.inference.test_engine import ROUNDING, ids

GREEDY = Sampling(max_tokens=12, repeatable=False)


@dataclass
class Watched:
    """A model that notes the shape of each pass and of each head."""

    model: Transformer
    passes: list[tuple[int, int]] = field(default_factory=list)  # (rows, tokens of each)
    heads: list[int] = field(default_factory=list)  # positions

    def __post_init__(self) -> None:
        self.config, self.device, self.compute_dtype = self.model.config, self.model.device, self.model.compute_dtype
        self.native = self.graphs = None

    decode = Transformer.decode

    def extend(
        self,
        ids: torch.Tensor,
        *,
        start: torch.Tensor,
        slots: Sequence[int],
        cache: KVCache,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        self.passes.append((ids.size(0), ids.size(1)))
        return self.model.extend(ids, start=start, slots=slots, cache=cache, lengths=lengths)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.heads.append(hidden.numel() // hidden.size(-1))
        return self.model.logits(hidden)


@pytest.fixture
def watched(model: Transformer) -> Watched:
    return Watched(model)


def engine_of(watched: Watched, tokenizer: Tokenizer, *, slots: int) -> Engine:
    return Engine(watched, tokenizer, slots=slots)  # pyright: ignore[reportArgumentType]


def finish(engine: Engine, *requests: Request) -> list[Completion]:
    while any(request.finish_reason is None for request in requests):
        engine.step()
    return [request.completion for request in requests]


@torch.no_grad()
def expect_plain(model: Transformer, tokenizer: Tokenizer, requests: Sequence[Request]) -> None:
    """Each of the tokens is the likeliest of a plain forward pass, or as likely within rounding, which is rare."""
    chosen = ties = 0
    for request in requests:
        begin = len(request.prompt)
        logits = model(torch.tensor([[*request.prompt, *request.ids]]))[0, begin - 1 : -1]  # (n, V)
        logits[: request.sampling.min_tokens, [tokenizer.special["assistant_end"], tokenizer.bos]] = -torch.inf
        for row, token, own in zip(logits, request.ids, request.mask, strict=True):
            if own:
                chosen += 1
                ties += int(row.argmax()) != token
                assert float(row.max() - row[token]) < ROUNDING
    assert chosen >= len(requests) and ties <= chosen // 20


def test_a_head_is_computed_where_a_token_follows_and_nowhere_else(watched: Watched, tokenizer: Tokenizer) -> None:
    engine = engine_of(watched, tokenizer, slots=2)
    finish(engine, engine.submit(ids(1, 2 * CHUNK + 10), Sampling(max_tokens=1)))
    assert watched.passes == [(1, CHUNK), (1, CHUNK), (1, 10)]
    assert watched.heads == [1]


def test_short_prompts_of_one_mode_go_in_one_pass(watched: Watched, tokenizer: Tokenizer) -> None:
    engine = engine_of(watched, tokenizer, slots=8)
    lengths = (20, 31, 24, 80, 29)
    requests = [engine.submit(ids(70 + length, length), GREEDY) for length in lengths]
    engine.step()
    assert watched.passes[:2] == [(4, 31), (1, 80)]
    assert watched.heads[:2] == [4, 1]
    finish(engine, *requests)
    expect_plain(watched.model, tokenizer, requests)


def test_a_repeatable_prompt_is_computed_alone(watched: Watched, tokenizer: Tokenizer) -> None:
    engine = engine_of(watched, tokenizer, slots=4)
    for seed in range(3):
        engine.submit(ids(seed, 20), Sampling(max_tokens=2))
    engine.step()
    assert watched.passes == [(1, 20), (1, 20), (1, 20), (4, 1)]


def test_rows_that_run_wait_for_one_chunk_at_most(watched: Watched, tokenizer: Tokenizer) -> None:
    engine = engine_of(watched, tokenizer, slots=8)
    running = engine.submit(ids(1, 5), Sampling(max_tokens=400, min_tokens=400, repeatable=False))
    engine.step()
    for index, length in enumerate((600, 9, 300, 17, 30, 257, 630)):
        engine.submit(ids(20 + index, length), Sampling(max_tokens=3, repeatable=index % 3 == 0))
    steps = 0
    while engine.running > 1 or engine.waiting:
        del watched.passes[:]
        said = len(running.ids)
        engine.step()
        assert len(running.ids) == said + 1
        assert sum(rows * tokens for rows, tokens in watched.passes if tokens > 1) <= CHUNK
        steps += 1
    assert steps >= 1843 // CHUNK


def test_as_many_rows_are_decoded_as_the_ladder_needs(watched: Watched, tokenizer: Tokenizer) -> None:
    engine = engine_of(watched, tokenizer, slots=6)
    requests: list[Request] = []
    for expected in (1, 2, 4, 4, 6, 6):
        lasting = Sampling(max_tokens=20 - 2 * len(requests), min_tokens=20, repeatable=False)
        requests.append(engine.submit(ids(40 + len(requests), 12), lasting))
        engine.step()
        assert watched.passes[-1] == (expected, 1)
    shapes = []
    while engine.running:
        del watched.passes[:]
        engine.step()
        shapes += [rows for rows, _ in watched.passes]
    assert shapes == sorted(shapes, reverse=True) and set(shapes) == {6, 4, 2, 1}
    expect_plain(watched.model, tokenizer, requests)


def test_beside_a_repeatable_request_all_slots_are_decoded(watched: Watched, tokenizer: Tokenizer) -> None:
    engine = engine_of(watched, tokenizer, slots=5)
    passing = engine.submit(ids(1, 12), Sampling(max_tokens=40, min_tokens=40, repeatable=False))
    engine.step()
    assert watched.passes[-1] == (1, 1)
    kept = engine.submit(ids(2, 12), Sampling(max_tokens=8, min_tokens=8))
    while kept.finish_reason is None:
        assert watched.passes[-1][1] == 1
        engine.step()
        assert watched.passes[-1] == ((5, 1) if kept.finish_reason is None else (1, 1))
    finish(engine, passing)
    expect_plain(watched.model, tokenizer, [passing, kept])


def test_a_further_turn_computes_what_is_new(watched: Watched, tokenizer: Tokenizer) -> None:
    engine = engine_of(watched, tokenizer, slots=3)
    first = engine.submit(ids(1, 300), GREEDY)
    finish(engine, first)
    others = [engine.submit(ids(80 + index, 50), GREEDY) for index in range(2)]  # as many as fit beside it
    finish(engine, *others)
    question = ids(2, 20)
    turn = [*first.prompt, *first.ids, *question]
    second = engine.submit(turn, GREEDY)
    del watched.passes[:]
    finish(engine, second)
    assert second.reused == len(first.prompt) + len(first.ids) - 1  # the last token was chosen and not computed
    assert watched.passes[0] == (1, len(question) + 1)
    edited = engine.submit([*first.prompt, *first.ids, *ids(3, 30)], GREEDY)  # another question at the same place
    finish(engine, edited)
    assert edited.reused == second.reused + 1
    expect_plain(watched.model, tokenizer, [first, second, edited, *others])


def test_what_was_used_least_recently_is_forgotten_first(watched: Watched, tokenizer: Tokenizer) -> None:
    engine = engine_of(watched, tokenizer, slots=3)
    prompts = [ids(90 + index, 60) for index in range(4)]

    def ask(prompt: list[int]) -> int:
        request = engine.submit([*prompt, 7], Sampling(max_tokens=2, repeatable=False))
        finish(engine, request)
        return request.reused

    assert [ask(prompt) for prompt in prompts[:3]] == [0, 0, 0]
    assert ask(prompts[0]) >= 60
    assert ask(prompts[3]) == 0  # in the place of the second
    assert [ask(prompts[index]) >= 60 for index in (0, 2, 3)] == [True, True, True]
    assert ask(prompts[1]) == 0


def test_a_conversation_that_only_begins_alike_leaves_the_other_its_place(
    watched: Watched, tokenizer: Tokenizer
) -> None:
    engine = engine_of(watched, tokenizer, slots=3)
    system, story = ids(1, 40), ids(2, 200)
    setting = Sampling(max_tokens=2, repeatable=False)
    finish(engine, engine.submit(system + story, setting))
    brief = engine.submit(system + ids(3, 10), setting)
    finish(engine, brief)
    back = engine.submit([*system, *story, 5], setting)
    finish(engine, back)
    assert brief.reused == len(system)
    assert back.reused >= len(system) + len(story)


def test_a_repeatable_request_takes_over_only_what_it_would_have_computed(
    watched: Watched, tokenizer: Tokenizer
) -> None:
    prompt = ids(5, 2 * CHUNK + 30)
    setting = Sampling(max_tokens=6, temperature=1.0, seed=3)
    expected = Engine(watched.model, tokenizer, slots=3).generate([prompt], setting)[0]
    engine = engine_of(watched, tokenizer, slots=3)
    apart = engine.submit(prompt[:100], GREEDY)  # so that what follows begins in the middle of a chunk
    finish(engine, apart)
    shifted = engine.submit(prompt, GREEDY)
    finish(engine, shifted)
    assert shifted.reused >= 100
    for reused in (0, len(prompt)):
        again = engine.submit(prompt, setting)
        assert finish(engine, again)[0].ids == expected.ids
        assert again.reused == reused
