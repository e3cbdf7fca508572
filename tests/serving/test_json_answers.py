"""Answers that are held to JSON; the model is a random one, so that nothing but the form makes them JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytest.importorskip("llguidance")

from nanochat.inference import Engine, Sampling
from nanochat.inference.grammar import LONGEST_SCHEMA, Grammars
from nanochat.model.transformer import Transformer
from nanochat.spec.errors import UserError
from nanochat.tokenizer import Tokenizer

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
HI = [{"role": "user", "content": "Hi"}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
SETTINGS = [
    {"temperature": 0},
    {"temperature": 1.0, "seed": 7},
    {"temperature": 2.0, "top_p": 0.5, "logit_bias": {"0": 100}},
]


def check(text: str) -> dict[str, Any]:
    """A person."""
    found = json.loads(text)
    assert list(found) == ["name", "age", "tags"]
    assert isinstance(found["name"], str) and len(found["name"]) <= 8
    assert isinstance(found["age"], int) and 0 <= found["age"] <= 150
    assert 1 <= len(found["tags"]) <= 3 and set(found["tags"]) <= {"a", "b"}
    return found


def ask(url: str, path: str = CHAT, **body: Any) -> dict[str, Any]:
    answer = httpx.post(url + path, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("settings", SETTINGS)
def test_answers_are_of_the_schema(server: Any, settings: dict[str, Any]) -> None:
    found = ask(server.url, messages=HI, response_format=FORMAT, n=4, **settings)
    assert [choice["finish_reason"] for choice in found["choices"]] == ["stop"] * 4
    people = [check(choice["message"]["content"]) for choice in found["choices"]]
    if settings.get("seed"):
        again = ask(server.url, messages=HI, response_format=FORMAT, n=4, **settings)
        assert [check(choice["message"]["content"]) for choice in again["choices"]] == people
        assert len({str(person) for person in people}) > 1


def test_streams_and_responses_are_held_too(server: Any) -> None:
    body = {"messages": HI, "response_format": FORMAT, "stream": True, "seed": 3}
    text = ""
    with httpx.stream("POST", server.url + CHAT, json=body, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
    check(text)
    form = {"format": {"type": "json_schema", "name": "person", "schema": PERSON}}
    found = ask(server.url, RESPONSES, input="Hi", text=form, seed=3)
    check(found["output"][0]["content"][0]["text"])
    assert found["text"]["format"] == form["format"]


def test_any_object(server: Any) -> None:
    """Which a random model does not end; cut off, it is the beginning of one."""
    found = ask(server.url, messages=HI, response_format={"type": "json_object"}, max_tokens=40, seed=1)
    (choice,) = found["choices"]
    text = choice["message"]["content"]
    assert text.startswith("{") and not text[1:2].isspace()
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(text), dict)


def test_neighbours_are_not_held_and_change_nothing(model: Transformer, tokenizer: Tokenizer) -> None:
    grammar = Grammars(tokenizer).json(PERSON)
    free = Sampling(max_tokens=30, temperature=1.0, seed=5)
    held = Sampling(max_tokens=200, temperature=1.0, seed=5, grammar=grammar)
    prompts = [[1, 2, 3]] * 3
    alone = Engine(model, tokenizer, slots=4).generate(prompts, [free, free, free])[0]
    person = Engine(model, tokenizer, slots=4).generate(prompts, [held, held, held])[0]
    together = Engine(model, tokenizer, slots=4).generate(prompts, [free, held, free])
    assert [each.text for each in together] == [alone.text, person.text, alone.text]
    check(person.text)
    assert tokenizer.special["assistant_end"] == person.ids[-1]
    guessing = Engine(model, tokenizer, slots=4, guesses=4).generate(prompts, [free, held, free])
    assert [each.ids for each in guessing] == [each.ids for each in together]


def test_what_has_to_come_comes_before_the_least_number_of_tokens(server: Any) -> None:
    """An answer that is complete ends; likelihoods are those of what may come."""
    form = {"type": "json_schema", "json_schema": {"name": "yes", "schema": {"const": {"a": 1}}}}
    found = ask(server.url, messages=HI, response_format=form, min_tokens=300, logprobs=True, top_logprobs=20)
    (choice,) = found["choices"]
    assert json.loads(choice["message"]["content"]) == {"a": 1} and choice["finish_reason"] == "stop"
    assert all(1 <= len(each["top_logprobs"]) <= 20 for each in choice["logprobs"]["content"])


PARAM = "response_format"
WRONG: list[tuple[Any, str, str]] = [
    ({"type": "xml"}, "can be held to text, json_object and json_schema", f"{PARAM}.type"),
    ({"type": "json_schema"}, "is a json_schema and has none; send the schema too", PARAM),
    ({"type": "json_schema", "json_schema": {"name": "a"}}, "is missing", f"{PARAM}.json_schema.schema"),
    ({"type": "json_schema", "json_schema": {"schema": "x"}}, "must be an object", f"{PARAM}.json_schema.schema"),
]
SCHEMAS = [
    ({"type": "objekt"}, "The schema can't be honoured: Invalid type: objekt."),
    ({"not": {}}, "The schema can't be honoured: Unimplemented keys"),
    ({"$ref": "#"}, "The schema can't be honoured: nothing satisfies it."),
    ({"$ref": "http://127.0.0.1:9/x"}, "can't be honoured"),
    ({"type": "string", "pattern": "(" * 500}, "can't be honoured"),
    ({"enum": ["a" * LONGEST_SCHEMA]}, "send at most 65,536"),
]
WRONG += [({"type": "json_schema", "json_schema": {"schema": schema}}, words, PARAM) for schema, words in SCHEMAS]


@pytest.mark.parametrize(("form", "words", "param"), WRONG)
def test_schemas_that_cannot_be_honoured_are_one_sentence(server: Any, form: Any, words: str, param: str) -> None:
    answer = httpx.post(server.url + CHAT, json={"messages": HI, "response_format": form})
    error = answer.json()["error"]
    assert answer.status_code == 400 and words in error["message"] and error["param"] == param
    assert "\n" not in error["message"] and len(error["message"]) < 400


def test_a_schema_that_is_too_much_ends_its_answer_alone(model: Transformer, tokenizer: Tokenizer) -> None:
    huge = {"type": "string", "pattern": "^(" + "|".join(f"(a{{0,{n}}}b)*c{{{n}}}" for n in range(500, 700)) + ")$"}
    ended: list[Exception] = []
    engine = Engine(model, tokenizer, slots=2)
    engine.on_error = lambda _request, error: ended.append(error)
    try:
        engine.submit([1, 2], Sampling(max_tokens=20, grammar=Grammars(tokenizer).json(huge)))
    except UserError:
        return
    other = engine.submit([1, 2], Sampling(max_tokens=20))
    while other.finish_reason is None:
        engine.step()
    assert all(isinstance(error, UserError) for error in ended)


def test_without_the_package_it_is_said_what_to_install(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    answer = httpx.post(start().url + CHAT, json={"messages": HI, "response_format": FORMAT})
    assert answer.status_code == 400
    assert "pip install 'nanochat-kubernetes[json]'" in answer.json()["error"]["message"]
