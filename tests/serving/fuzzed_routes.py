"""The routes that the fuzzer asks: a valid body of each, and its fields' extremes, from the schemas and beside them.

for route in routes(vocabulary):
    route.extremes["temperature"].valid     # [0, 2, 5e-324, None]
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from nanochat.serving.completion_request import MAX_ANSWERS, CompletionRequest
from nanochat.serving.messages import ChatMessage, Part
from nanochat.serving.protocol import ChatRequest
from nanochat.serving.responses_request import LOGPROBS, ResponsesRequest
from nanochat.serving.sampled import MAX_STOP_CHARACTERS, MAX_STOPS
from nanochat.serving.tokenizing import DetokenizeRequest, TokenizeRequest

Json = Any
Object = dict[str, Json]
TEXTS = (
    "Hi", "", "What is 12 + 30?", "\u6f22\u5b57", "\U0001f469\u200d\U0001f680", "e\u0301", "  \n\t ", "\0\x1b", "'s",
    "<|assistant_end|>", "a" * 40,
)  # fmt: skip
PAGES = ("/", "/docs", "/openapi.json", "/tokenizer_info", "/v1/models", "/health", "/livez", "/readyz", "/metrics")


@dataclass(frozen=True, slots=True)
class Extremes:
    """Values of one field: those at its bounds, and those just beyond."""

    valid: list[Json]
    invalid: list[Json]


def _nothing(_body: Object) -> None:
    """Such a body needs no mending."""


@dataclass(frozen=True, eq=False, slots=True)
class Route:
    """A path, and what is sent there; `messages.name` is a field of a message, `parts.text` one of a part."""

    path: str
    extremes: dict[str, Extremes]
    body: Callable[[random.Random], Object]  # a valid one
    answer: str  # a field that each answer has
    mend: Callable[[Object], None] = _nothing  # makes fields that are valid alone valid together
    ends: tuple[str, ...] = ("data: [DONE]",)  # one of which is in the last event of a stream

    def named(self, field: str) -> str:
        return f"{self.path} {field}"

    def ended(self, stream: str) -> bool:
        """Whether that was all of a stream."""
        last = stream.rstrip().rpartition("\n\n")[2]
        return any(end in last for end in self.ends)

    @staticmethod
    def put(body: Object, name: str, value: Json) -> None:
        """Give a field a value."""
        where, _, inner = name.rpartition(".")
        target = body["messages"][-1] if where else body
        if where == "parts":
            target["content"] = [{"type": "text", "text": "a"}]
            target = target["content"][0]
        target[inner] = value


def extremes(schema: dict[str, Json]) -> Extremes:
    """The extremes of a field as its JSON schema tells them."""
    if "anyOf" in schema:
        options = [
            extremes({**option, **{k: v for k, v in schema.items() if k != "anyOf"}}) for option in schema["anyOf"]
        ]
        return Extremes([value for each in options for value in each.valid], options[0].invalid)
    if "enum" in schema:
        return Extremes(list(schema["enum"]), ["no such value", 7, {"type": "function"}])
    match schema.get("type"):
        case "integer":
            least, most = schema["minimum"], schema.get("maximum", schema.get("exclusiveMaximum", 0) - 1)
            return Extremes(
                [least, most, least if abs(least) > 2**53 else float(least)],
                [least - 1, most + 1, least + 0.5, "x", [], {}, 10**300],
            )
        case "number":
            least, most = schema["minimum"], schema["maximum"]
            return Extremes([least, most, 5e-324], [least - 1e-6, most + 1e-6, -1e308, 1e308, "x", [], {}])
        case "string":
            most = schema["maxLength"]
            return Extremes(
                ["", "\u6f22" * min(most, 1024), "\0"], [7, [], {}] + (["a" * (most + 1)] if most < 100_000 else [])
            )
        case "boolean":
            return Extremes([True, False], [2, "maybe", [], {}])
        case "array":
            return Extremes([[]], [[{"type": "function"}], "x", 7])
        case "object":
            most = schema.get("maxProperties", 8)
            return Extremes([{}, {str(i): i for i in range(most)}], ["x", 7, []])
        case "null":
            return Extremes([None], [{"x": 1}])
        case None:  # anything is taken
            return Extremes([None, {}, "x", 7], [])
    raise AssertionError(f"a field of a kind that is not known: {schema}")


def of_fields(model: type[BaseModel], own: dict[str, Extremes]) -> dict[str, Extremes]:
    """The extremes of every field; `own` are those that its schema does not tell."""
    properties = model.model_json_schema()["properties"]
    return {name: own.get(name) or extremes(schema) for name, schema in properties.items()}


def routes(vocabulary: int) -> list[Route]:
    """All that take a body."""
    shared = _shared(vocabulary)
    chat = of_fields(ChatRequest, {**shared, **_CHAT})
    for prefix, model in (("messages", ChatMessage), ("parts", Part)):
        chat |= {f"{prefix}.{name}": _NESTED[f"{prefix}.{name}"] for name in model.model_fields}
    ids = [[0], [1, vocabulary - 1], [3] * 20]
    wrong_ids = [[vocabulary], [-1], [0.5], ["x", 1], [2**31], [None]]
    prompts = Extremes(
        [None, *TEXTS, *ids, ["a", ""], ids],
        [[], *wrong_ids, [[]], [["x"]], {}, 7, ["a"] * (MAX_ANSWERS + 1), [[vocabulary]]],
    )
    tokens = Extremes([[], *ids], [None, *wrong_ids, "x", 7, {}, [[1]]])
    return [
        Route("/v1/chat/completions", chat, _conversation, "choices", _logprobs_are_told),
        Route(
            "/v1/completions",
            of_fields(CompletionRequest, {**shared, "prompt": prompts}),
            lambda rnd: {"prompt": rnd.choice(TEXTS), "max_tokens": rnd.randrange(6), "stream": _rarely(rnd)},
            "choices",
            _prompt_has_tokens,
        ),
        Route(
            "/v1/responses",
            of_fields(ResponsesRequest, {**shared, **_RESPONSES}),
            lambda rnd: {"input": rnd.choice(TEXTS), "max_output_tokens": rnd.randrange(1, 6), "stream": _rarely(rnd)},
            "output",
            ends=("response.completed", "response.incomplete"),
        ),
        Route(
            "/tokenize",
            of_fields(TokenizeRequest, {**shared, **_TOKENIZE}),
            lambda rnd: {"prompt": rnd.choice(TEXTS)},
            "tokens",
            _one_of_both,
        ),
        Route(
            "/detokenize",
            of_fields(DetokenizeRequest, {**shared, "tokens": tokens}),
            lambda rnd: {"tokens": rnd.choice(ids)},
            "prompt",
        ),
    ]


def _rarely(rnd: random.Random) -> bool:
    return rnd.random() < 0.3


def _user(text: Json) -> Object:
    return {"role": "user", "content": text}


def _conversation(rnd: random.Random) -> Object:
    turns = [_user(rnd.choice(TEXTS))]
    if _rarely(rnd):
        turns = [_user("a"), {"role": "assistant", "content": rnd.choice(["b", None]), "refusal": None}, *turns]
    return {"messages": turns, "max_tokens": rnd.randrange(1, 6), "stream": _rarely(rnd)}


def _logprobs_are_told(body: Object) -> None:
    if body.get("top_logprobs"):
        body["logprobs"] = True


def _prompt_has_tokens(body: Object) -> None:
    if body.get("add_special_tokens") is False and body.get("prompt") in ("", None, ["a", ""]):
        body["prompt"] = "a"


def _one_of_both(body: Object) -> None:
    if body.get("messages") is not None:
        body.pop("prompt", None)
    elif body.get("prompt") is None:
        body["prompt"] = "a"


def _shared(vocabulary: int) -> dict[str, Extremes]:
    """Of fields that several requests have."""
    return {
        "model": Extremes([None, "nanochat"], [7, [], {}]),
        "stream_options": Extremes(
            [None, {}, {"include_usage": True}, {"include_obfuscation": False}], ["x", {"include_usage": "maybe"}]
        ),
        "stop": Extremes(
            [None, "", "e", "a" * MAX_STOP_CHARACTERS, [], ["a" * MAX_STOP_CHARACTERS] * MAX_STOPS],
            ["a" * (MAX_STOP_CHARACTERS + 1), ["a"] * (MAX_STOPS + 1), [7], 7, {}],
        ),
        "logit_bias": Extremes(
            [None, {}, {"0": -100, str(vocabulary - 1): 100}, {str(i): 100 for i in range(vocabulary)}],
            [{"0": 100.1}, {"x": 1}, {"-1": 1}, {str(vocabulary): 1}, {str(i): 0 for i in range(1025)}, []],
        ),
        "continue_final_message": Extremes([None, False], ["maybe", [], {}]),  # the messages end with a question
    }


_CHAT = {
    "messages": Extremes([], [[], None, "x", [7], [{}], [{"role": "assistant", "content": "I"}], [_user("a")] * 2049]),
    "continue_final_message": Extremes([None, False], [True, "maybe", [], {}]),
    "response_format": Extremes([None, {}, {"type": "text"}], [{"type": "json_schema"}, "x", {"type": 7}]),
    "modalities": Extremes([None, [], ["text"]], [["audio"], ["text", "audio"], 7]),
}
_RESPONSES = {
    "input": Extremes(
        [*TEXTS, [_user("a")], [{"type": "message", **_user([{"type": "input_text", "text": "a"}])}]],
        [[], None, 7, {}, [7], [{}], [{"type": "item_reference", "id": "a"}], [{"type": "reasoning"}], [_user(None)]],
    ),
    "instructions": Extremes([None, "", "Be brief."], [7, [], {}]),
    "include": Extremes([None, [], [LOGPROBS]], ["x", [7], {}, ["a"] * 65]),
    "max_tool_calls": Extremes([None, 0, 2**63 - 1], [2**63, "x", [], 0.5]),
    "text": Extremes(
        [None, {}, {"format": {"type": "text"}}], [{"format": {"type": "json_schema"}}, "x", {"format": 7}]
    ),
}
_TOKENIZE = {
    "prompt": Extremes(list(TEXTS), [7, [], {}]),
    "messages": Extremes([None, [_user("a")]], [[], "x", [7], [{}], [{"role": "assistant", "content": "I"}]]),
}
_TEXT = Extremes(list(TEXTS), [7, {}, True])
_NESTED = {
    "messages.role": Extremes(["user", "system", "developer"], ["tool", "function", "", "a" * 999, 7, None]),
    "messages.content": Extremes(
        [*TEXTS, [], [{"type": "text", "text": "a"}]], [7, {}, None, [7], [{"type": "image_url"}]]
    ),
    "messages.parts": Extremes([None, [], [{"type": "text", "text": "a"}]], [7, "x", [7], [{"type": "python"}]]),
    "messages.refusal": Extremes([None, "", "No"], [7, [], {}]),
    "messages.name": extremes(ChatMessage.model_json_schema()["properties"]["name"]),
    "messages.annotations": Extremes([None, []], [7, {}]),
    "messages.tool_calls": Extremes([None, []], [[{"id": "1"}], "x"]),
    "messages.function_call": Extremes([None], [{"name": "f"}]),
    "messages.audio": Extremes([None], [{"id": "1"}]),
    "parts.type": Extremes(["text"], ["image_url", "input_audio", "file", "python", "", 7, None]),
    "parts.text": _TEXT,
    "parts.refusal": Extremes([None, ""], [7, {}]),
    "parts.prompt_cache_breakpoint": Extremes([None, {"mode": "explicit"}], [7, []]),
}
