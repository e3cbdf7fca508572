"""The completions API and /tokenize, as OpenAI's own client and lm-evaluation-harness read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
import torch
from pydantic import TypeAdapter

from nanochat.model.transformer import Transformer
from nanochat.serving.objects import TextCompletion
from nanochat.serving.settings import ServerSettings
from nanochat.serving.tokenizing import token_text
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.chat import render_prompt

TEXT = "The quick brown fox"
SCORE: dict[str, Any] = {"max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0, "seed": 1234}


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def post(server: Any, path: str = "/v1/completions", /, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=60)


@torch.no_grad()
def likely(model: Transformer, ids: list[int]) -> torch.Tensor:
    """Log-probabilities (T, V) of what follows each token."""
    return torch.log_softmax(model(torch.tensor([ids]))[0], dim=-1)


def test_a_completion_has_everything_a_client_expects(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    answer = client.completions.create(model="tiny", prompt=TEXT, seed=1)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-") and answer.model == "tiny"
    assert answer.choices[0].logprobs is None and answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 1 + len(tokenizer.encode(TEXT))  # bos is a token of it
    assert 1 <= answer.usage.completion_tokens <= 16


def test_a_list_of_another_length_is_told_in_plain_words(server: Any) -> None:
    for body, words in (({"prompt": []}, "should have at least 1 item."), ({"stop": ["a"] * 5}, "at most 4 items.")):
        assert post(server, **{"prompt": TEXT} | body).json()["error"]["message"].endswith(words)


@pytest.mark.parametrize("listed", [False, True], ids=["unsent bos", "bos sent"])
def test_likelihoods_are_those_of_the_forward_pass_in_the_layout_of_the_harness(
    server: Any, model: Transformer, tokenizer: Tokenizer, listed: bool
) -> None:
    ids = tokenizer.encode(TEXT + " jumps over the lazy dog. Caf\u00e9 \u6f22")
    whole = [tokenizer.bos, *ids]
    sent = whole if listed else ids
    choice = post(server, prompt=[sent], **SCORE).json()["choices"][0]
    found, expected = choice["logprobs"], likely(model, whole)
    lists = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    assert {len(found[name]) for name in lists} == {len(sent) + 1}
    first = 1 if listed else 0  # the first token of all has nothing before it
    assert found["token_logprobs"][:first] == [None] * first
    for at, token in enumerate(ids, start=first):
        position = at - first
        assert found["token_logprobs"][at] == pytest.approx(float(expected[position, token]), abs=1e-3)
        best = max(found["top_logprobs"][at].values())
        assert best == pytest.approx(float(expected[position].max()), abs=1e-3)
        greedy = int(expected[position].argmax()) == token
        assert (best == found["token_logprobs"][at]) == greedy
        assert found["tokens"][at] == token_text(tokenizer, token)


def test_offsets_point_into_the_text(server: Any, tokenizer: Tokenizer) -> None:
    prompt = "Caf\u00e9 \u6f22\u5b57 \U0001f469\u200d\U0001f680 fox"
    choice = post(server, prompt=prompt, **{**SCORE, "max_tokens": 24, "temperature": 1}).json()["choices"][0]
    text, found = choice["text"], choice["logprobs"]
    assert text.startswith(prompt)
    ends = [*found["text_offset"][1:], None]
    for token, start, end in zip(found["tokens"], found["text_offset"], ends, strict=True):
        if not token.startswith(("bytes:", "<|")) and text[start:end] and "\ufffd" not in text[start:end]:
            assert text[start:end].endswith(token)
    whole = [token for token in found["tokens"] if not token.startswith("bytes:")]
    assert found["text_offset"][0] == 0 and {"\u00e9", "fox"} & {token.strip() for token in whole}


def test_several_prompts_of_any_kind_and_n(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    one = [client.completions.create(model="tiny", prompt=text, seed=3, n=2).choices for text in (TEXT, "It is")]
    expected = [choice.text for choices in one for choice in choices]
    assert expected[0] != expected[1]
    for prompt in ([TEXT, "It is"], [tokenizer.encode(TEXT), tokenizer.encode("It is")]):
        choices = client.completions.create(model="tiny", prompt=prompt, seed=3, n=2).choices
        assert [choice.index for choice in choices] == [0, 1, 2, 3]
        assert [choice.text for choice in choices] == expected
    ids = [tokenizer.bos, *tokenizer.encode(TEXT)]
    assert client.completions.create(model="tiny", prompt=ids, seed=3).choices[0].text == expected[0]


@pytest.mark.parametrize("options", [{}, {"echo": True}, {"logprobs": 2}, {"echo": True, "logprobs": 2, "n": 2}])
def test_a_stream_says_the_same(client: openai.OpenAI, options: dict[str, Any]) -> None:
    request: dict[str, Any] = {"model": "tiny", "prompt": [TEXT, "Caf\u00e9"], "seed": 7, "max_tokens": 20, **options}
    whole = client.completions.create(**request)
    chunks = list(client.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
    for choice in whole.choices:
        mine = [each for chunk in chunks for each in chunk.choices if each.index == choice.index]
        assert "".join(each.text for each in mine) == choice.text
        assert [each.finish_reason for each in mine if each.finish_reason] == [choice.finish_reason]
        if choice.logprobs is not None:
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                joined = [entry for each in mine if each.logprobs for entry in getattr(each.logprobs, name)]
                assert joined == getattr(choice.logprobs, name)


def test_stop_echo_and_scoring_alone(client: openai.OpenAI) -> None:
    request: dict[str, Any] = {"model": "tiny", "prompt": TEXT, "seed": 5, "max_tokens": 40}
    whole = client.completions.create(**request).choices[0].text
    stop = whole[6:9]
    cut = client.completions.create(**request, stop=[stop], echo=True).choices[0]
    assert cut.text == TEXT + whole[: whole.index(stop)] and cut.finish_reason == "stop"
    scored = client.completions.create(**{**request, "max_tokens": 0}, echo=True, logprobs=0)
    choice = scored.choices[0]
    assert choice.text == TEXT and choice.finish_reason == "length"
    assert choice.logprobs is not None and "".join(choice.logprobs.tokens or []) == TEXT
    assert scored.usage is not None and scored.usage.completion_tokens == 0


def test_no_prompt_is_a_beginning_and_a_token_that_ends_is_listed(server: Any, tokenizer: Tokenizer) -> None:
    end = {"logit_bias": {str(tokenizer.special["assistant_end"]): 100}, "logprobs": 0}
    for prompt in ({}, {"prompt": None}, {"prompt": ""}):
        answer = post(server, **prompt, **end).json()
        assert answer["usage"]["prompt_tokens"] == 1
        choice = answer["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == ("", "stop")
        assert choice["logprobs"]["tokens"] == ["<|assistant_end|>"]


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": []}, "at least 1", "prompt"),
    ({"prompt": [[]]}, "at least 1", "prompt.0"),
    ({"prompt": ["a"] * 65}, "at most 64", "prompt"),
    ({"prompt": ["a"] * 17, "n": 4}, "68 answers; ask for at most 64", "prompt"),
    ({"prompt": [1, 320]}, "has the token 320, and the model's are 0 to 319", "prompt"),
    ({"prompt": [[1], [-1]]}, "greater than or equal to 0", "prompt.1.0"),
    ({"prompt": ["a", 1]}, "valid string", "prompt.1"),
    ({"prompt": {"a": 1}}, "valid string", "prompt"),
    ({"prompt": "a" * 1_000_001}, "body is larger", ""),
    ({"prompt": "ox" * 20_000}, "at least", "prompt"),
    ({"prompt": [1] * 512, "add_special_tokens": False}, "512 tokens", "prompt"),
    ({"prompt": "", "add_special_tokens": False}, "has no tokens", "prompt"),
    ({"logprobs": 21}, "less than or equal to 20", "logprobs"),
    ({"best_of": 2}, "'best_of' is not honoured: all that is written is sent", "best_of"),
    ({"suffix": "end"}, "can't write towards an end", "suffix"),
    ({"max_tokens": -1}, "greater than or equal to 0", "max_tokens"),
]


@pytest.mark.parametrize(("fields", "message", "param"), REFUSED)
def test_what_is_wrong_is_said(server: Any, fields: dict[str, Any], message: str, param: str) -> None:
    answer = post(server, **fields)
    assert answer.status_code == (413 if not param else 400)
    error = answer.json()["error"]
    assert message in error["message"] and (error["param"] or "") == param


def test_add_special_tokens_false_takes_a_prompt_as_it_is(server: Any, tokenizer: Tokenizer) -> None:
    bare = post(server, prompt=TEXT, add_special_tokens=False, **SCORE).json()
    assert bare["choices"][0]["logprobs"]["token_logprobs"][0] is None
    assert bare["usage"]["prompt_tokens"] == len(tokenizer.encode(TEXT))


def test_answers_have_the_published_shape(server: Any) -> None:
    adapter = TypeAdapter(TextCompletion)
    for fields in ({}, SCORE, {"max_tokens": 0}):
        found = post(server, prompt=TEXT, **fields).json()
        assert adapter.dump_python(adapter.validate_python(found, strict=True)) == found


def test_tokenize_and_back(server: Any, tokenizer: Tokenizer) -> None:
    text = "Caf\u00e9 \u6f22 <|bos|>"
    ids = tokenizer.encode(text)
    found = post(server, "/tokenize", prompt=text, return_token_strs=True).json()
    assert found["tokens"] == [tokenizer.bos, *ids] and found["count"] == len(ids) + 1
    assert found["max_model_len"] == 512 and found["token_strs"][0] == "<|bos|>"
    bare = post(server, "/tokenize", prompt=text, add_special_tokens=False).json()
    assert bare["tokens"] == ids and bare["token_strs"] is None
    assert post(server, "/detokenize", tokens=ids).json() == {"prompt": text}
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    chat = post(server, "/tokenize", messages=messages).json()
    assert chat["tokens"] == render_prompt(tokenizer, [{"role": "user", "content": "Be brief.\n\nHi"}])
    info = httpx.get(f"{server.url}/tokenizer_info").json()
    assert (info["bos_token_id"], info["vocab_size"]) == (tokenizer.bos, 320)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/tokenize", {}, "either 'prompt' or 'messages'"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "either 'prompt' or 'messages'"),
        ("/tokenize", {"messages": []}, "at least 1"),
        ("/tokenize", {"messages": [{"role": "assistant", "content": "a"}]}, "end with an answer of the assistant"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "not served here"),
        ("/detokenize", {"tokens": [320]}, "0 to 319"),
        ("/detokenize", {}, "'tokens' is missing"),
    ],
)
def test_what_can_not_be_tokenized_is_said(server: Any, path: str, body: dict[str, Any], message: str) -> None:
    answer = post(server, path, **body)
    assert answer.status_code in (400, 404) and message in answer.json()["error"]["message"]


def test_they_ask_for_the_key(start: Callable[..., Any]) -> None:
    guarded = start(settings=ServerSettings(api_keys=frozenset({"key"})))
    for path in ("/tokenize", "/detokenize", "/v1/completions"):
        assert post(guarded, path, prompt="a", tokens=[1]).status_code == 401
    assert httpx.get(f"{guarded.url}/tokenizer_info").status_code == 401
