"""The engine against the plain forward pass; neighbours, shared prompts, tools, limits and cancellation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from nanochat.inference import Completion, ContextTooLong, Engine, Sampling
from nanochat.inference.slots import CHUNK
from nanochat.model.transformer import Transformer
from nanochat.spec.errors import UserError
from nanochat.tokenizer import Tokenizer

Scripted = Callable[..., Engine]

# Two logits closer than this may change places with the shape of a matrix product.
ROUNDING = 1e-3


def ids(seed: int, count: int, vocabulary: int = 300) -> list[int]:
    return torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def plain(model: Transformer, prompt: list[int], steps: int, *, ends: set[int]) -> tuple[list[int], bool]:
    """Greedy decoding without a cache, and whether all of it is beyond rounding."""
    tokens, clear = list(prompt), True
    for _ in range(steps):
        best = model(torch.tensor([tokens], device=model.device))[0, -1].topk(2)
        clear &= float(best.values[0] - best.values[1]) > ROUNDING
        tokens.append(int(best.indices[0]))
        if tokens[-1] in ends:
            break
    return tokens[len(prompt) :], clear


@pytest.mark.parametrize("length", [1, 7, 64, CHUNK, CHUNK + 1, 600])
def test_greedy_equals_the_plain_forward_pass(model: Transformer, tokenizer: Tokenizer, length: int) -> None:
    prompt = ids(length, length)
    ends = {tokenizer.special["assistant_end"], tokenizer.bos}
    expected, clear = plain(model, prompt, 12, ends=ends)
    completion = Engine(model, tokenizer, slots=3).generate([prompt], Sampling(max_tokens=12))[0]
    assert clear
    forced = completion.mask.index(0) if 0 in completion.mask else 12
    assert completion.ids[:forced] == expected[:forced]


def alone(model: Transformer, tokenizer: Tokenizer, prompt: list[int], sampling: Sampling) -> Completion:
    return Engine(model, tokenizer, slots=4).generate([prompt], sampling)[0]


def test_a_row_says_the_same_while_neighbours_come_and_go(model: Transformer, tokenizer: Tokenizer) -> None:
    cases = [
        (ids(1, 20), Sampling(max_tokens=60, temperature=0.8, seed=11, logprobs=2)),
        (ids(2, 300), Sampling(max_tokens=40, temperature=1.0, top_k=20, seed=12)),
        (ids(3, 5), Sampling(max_tokens=80, temperature=0.9, top_p=0.8, seed=13)),
        (ids(4, 90), Sampling(max_tokens=30)),
        (ids(5, 90), Sampling(max_tokens=3, temperature=1.0, seed=14)),
        (ids(6, 530), Sampling(max_tokens=20, temperature=1.0, seed=15)),
        (ids(7, 9), Sampling(max_tokens=50, temperature=1.0, seed=16, min_tokens=50)),
        (ids(8, 9), Sampling(max_tokens=40, frequency_penalty=1.5, logit_bias=((70, 3.0),), min_tokens=40)),
        (ids(9, 9), Sampling(max_tokens=40, temperature=0.8, seed=17, presence_penalty=2.0, min_tokens=40)),
    ]
    engine = Engine(model, tokenizer, slots=4)
    requests = []
    for index, (prompt, sampling) in enumerate(cases):
        requests.append(engine.submit(prompt, sampling))
        others = Sampling(max_tokens=200, temperature=1.0, seed=index, repeatable=index % 2 == 0)
        passing = engine.submit(ids(50 + index, 40), others)
        for _ in range(5 + 3 * index):
            engine.step()
        engine.cancel(passing)
    while engine.running or engine.waiting:
        engine.step()
    for request, (prompt, sampling) in zip(requests, cases, strict=True):
        expected = alone(model, tokenizer, prompt, sampling)
        assert request.completion.ids == expected.ids
        assert request.completion.text == expected.text


def test_penalties_are_of_the_sampled_tokens_and_the_logprobs_follow_them(
    scripted: Scripted, tokenizer: Tokenizer
) -> None:
    word, other = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    engine = scripted([word])  # 10 for the word, 0 for all others
    setting = Sampling(
        max_tokens=8, frequency_penalty=2.0, presence_penalty=1.5, logit_bias=((other, 0.75),), logprobs=1
    )
    done = engine.generate([[1, 2, 3, 4]], setting)[0]
    # 10, 6.5, 4.5, 2.5, 0.5 for the word, against 0.75 for the other and then -2.75, less than the word's 0.5.
    assert done.ids == [word, word, word, word, other, word, *done.ids[6:]]
    assert done.ids[6] not in (word, other)  # -1.5 and -2.75 against 0
    assert done.logprobs is not None
    for token, logprob in zip(done.ids, done.logprobs, strict=True):
        assert logprob is not None and logprob.top == ((token, logprob.logprob),)


def test_what_the_tool_says_is_not_penalised(scripted: Scripted, tokenizer: Tokenizer) -> None:
    special = tokenizer.special
    call = [special["python_start"], *tokenizer.encode("6*7"), special["python_end"]]
    output = [special["output_start"], *tokenizer.encode("42"), special["output_end"]]
    script = [*call, *output, *tokenizer.encode("42"), *call, *output, special["assistant_end"]]
    setting = Sampling(max_tokens=64, frequency_penalty=2.0, presence_penalty=2.0)
    done = scripted(script).generate([[1, 2, 3, 4]], setting)[0]
    assert done.ids == script
    harsh = Sampling(max_tokens=len(call) + 1, frequency_penalty=2.0, logit_bias=((tokenizer.encode("6")[0], -11.0),))
    assert scripted(script).generate([[1, 2, 3, 4]], harsh)[0].ids != script[: len(call) + 1]


def test_samples_of_one_prompt_share_it_and_differ(model: Transformer, tokenizer: Tokenizer) -> None:
    prompt = ids(8, 400)
    samplings = Sampling(max_tokens=12, temperature=1.0, seed=3).split(6)
    computed = []
    extend = model.extend

    class Counting:
        config, device, compute_dtype, native = model.config, model.device, model.compute_dtype, model.native
        logits, decode, graphs = model.logits, Transformer.decode, None

        def extend(self, ids: torch.Tensor, **rest: object) -> torch.Tensor:
            computed.append(ids.numel() if ids.size(0) == 1 else 0)
            return extend(ids, **rest)  # pyright: ignore[reportArgumentType]

    engine = Engine(Counting(), tokenizer, slots=4)  # pyright: ignore[reportArgumentType]
    samples = engine.generate([prompt] * 6, samplings)
    assert sum(computed) == len(prompt)
    assert len({sample.ids[0] for sample in samples}) > 1
    for sample, sampling in zip(samples, samplings, strict=True):
        assert sample.ids == alone(model, tokenizer, prompt, sampling).ids


def test_a_prompt_that_continues_another_takes_over_its_beginning(model: Transformer, tokenizer: Tokenizer) -> None:
    first = ids(9, CHUNK + 40)
    second = first[:CHUNK] + ids(10, 70)
    engine = Engine(model, tokenizer, slots=2)
    sampling = Sampling(max_tokens=10, temperature=1.0, seed=4)
    for prompt in (first, second, first[:CHUNK], second):
        request = engine.submit(prompt, sampling)
        while request.finish_reason is None:
            engine.step()
        assert request.completion.ids == alone(model, tokenizer, prompt, sampling).ids


def test_generate_forgets_prompts_because_weights_change(model: Transformer, tokenizer: Tokenizer) -> None:
    prompt, sampling = ids(11, 30), Sampling(max_tokens=4, logprobs=0)
    engine = Engine(model, tokenizer, slots=2)
    before = engine.generate([prompt], sampling)[0].logprobs
    with torch.no_grad():
        model.head.weight.mul_(1.5)
    try:
        after = engine.generate([prompt], sampling)[0].logprobs
        assert before is not None and after is not None
        assert before[0] != after[0]
    finally:
        with torch.no_grad():
            model.head.weight.div_(1.5)


def test_a_used_engine_that_forgets_is_as_a_new_one(model: Transformer, tokenizer: Tokenizer) -> None:
    """Where a row lies can show in the last bits: rl's resume needs the same rows in the same places."""
    prompts, sampling = [ids(40 + index, 12) for index in range(3)], Sampling(max_tokens=6, temperature=1.0)

    def places(engine: Engine) -> list[tuple[int, ...]]:
        engine.generate(prompts, sampling)
        return [slot.prompt for slot in engine._slots]

    used = Engine(model, tokenizer, slots=4)
    used.generate([ids(60 + index, 30 * index + 5) for index in range(6)], Sampling(max_tokens=9, temperature=1.0))
    assert places(used) == places(Engine(model, tokenizer, slots=4))


def test_the_tools_output_is_forced_and_masked(scripted: Scripted, tokenizer: Tokenizer, greedy: Sampling) -> None:
    special = tokenizer.special
    call = [special["python_start"], *tokenizer.encode("6*7"), special["python_end"]]
    output = [special["output_start"], *tokenizer.encode("42"), special["output_end"]]
    nonsense = [tokenizer.encode("x")[0]] * len(output)  # what the model would have said instead
    end = [*tokenizer.encode("42"), special["assistant_end"]]
    completion = scripted([*call, *nonsense, *end]).generate([[1, 2, 3, 4]], greedy)[0]
    assert completion.ids == [*call, *output, *end]
    assert completion.mask == [1] * len(call) + [0] * len(output) + [1] * len(end)
    assert completion.text == "42"
    assert completion.finish_reason == "stop"
    assert [part.kind for part in completion.parts] == ["python", "python_output", "text"]


def test_stop_text_ends_a_reply_and_is_not_in_it(scripted: Scripted, tokenizer: Tokenizer, greedy: Sampling) -> None:
    script = tokenizer.encode("One. Two. Three. Four.")
    completion = scripted(script).generate([[1, 2, 3, 4]], replace(greedy, stop=(" Th",)))[0]
    assert completion.text == "One. Two."
    assert completion.finish_reason == "stop"


def test_min_tokens_puts_off_the_end(scripted: Scripted, tokenizer: Tokenizer, greedy: Sampling) -> None:
    script = [tokenizer.special["assistant_end"]]
    completion = scripted(script).generate([[1, 2, 3, 4]], replace(greedy, min_tokens=5))[0]
    assert len(completion.ids) == 6
    assert completion.ids[-1] == tokenizer.special["assistant_end"]


def test_limits_end_a_reply(scripted: Scripted, tokenizer: Tokenizer, greedy: Sampling) -> None:
    script = tokenizer.encode("a") * 500
    by_tokens = scripted(script).generate([[1, 2, 3, 4]], greedy)[0]
    assert (len(by_tokens.ids), by_tokens.finish_reason) == (32, "length")
    engine = scripted(script, length=64)
    by_context = engine.generate([[1, 2, 3, 4], [5] * 63], replace(greedy, max_tokens=1000))
    assert [len(each.ids) for each in by_context] == [60, 1]
    assert {each.finish_reason for each in by_context} == {"length"}


def test_what_does_not_fit_is_refused_with_both_numbers(
    scripted: Scripted, tokenizer: Tokenizer, greedy: Sampling
) -> None:
    engine = scripted([1], length=64)
    with pytest.raises(ContextTooLong, match=r"64 tokens .* holds 64") as caught:
        engine.submit([1] * 64, greedy)
    assert (caught.value.prompt, caught.value.limit) == (64, 64)
    with pytest.raises(UserError):
        engine.submit([], greedy)
    with pytest.raises(UserError):
        engine.submit([1], replace(greedy, max_tokens=0))


def test_cancelling_ends_within_one_token(model: Transformer, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer, slots=1)
    endless = Sampling(max_tokens=500, min_tokens=500, temperature=1.0)
    running, waiting = engine.submit(ids(20, 10), endless), engine.submit(ids(21, 600), endless)
    for _ in range(4):
        engine.step()
    engine.cancel(running)
    engine.cancel(running)
    assert (len(running.ids), running.finish_reason) == (4, "cancelled")
    engine.step()  # the first chunk of the other prompt
    assert len(running.ids) == 4
    engine.cancel(waiting)
    assert (engine.running, engine.waiting) == (0, 0)
    # A prompt that was left half-way does no harm to the next one.
    again = engine.submit(ids(21, 600)[:CHUNK], replace(endless, max_tokens=8, min_tokens=0))
    while again.finish_reason is None:
        engine.step()
    expected = Engine(model, tokenizer, slots=1).generate([list(again.prompt)], again.sampling)[0]
    assert again.completion.ids == expected.ids


def test_one_event_a_token_and_pieces_make_the_text(model: Transformer, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer, slots=2)
    sampling = Sampling(max_tokens=40, temperature=1.0, seed=9, stop=("zzz",), logprobs=1)
    requests = [engine.submit(ids(30 + index, 12), replace(sampling, seed=index)) for index in range(5)]
    events = []
    while engine.running or engine.waiting:
        events += engine.step()
    for request in requests:
        mine = [event for event in events if event.request is request]
        assert [event.token for event in mine] == request.ids
        assert [event.finish_reason for event in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1].finish_reason == request.finish_reason
        pieces = [piece for event in mine for piece in event.pieces]
        assert "".join(piece.text for piece in pieces if piece.kind == "text") == request.completion.text
        logprobs = request.completion.logprobs
        assert logprobs is not None and len(logprobs) == len(request.ids)
        assert all((entry is None) == (mask == 0) for entry, mask in zip(logprobs, request.mask, strict=True))
