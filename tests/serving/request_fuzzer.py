"""Requests to the chat API, valid and almost valid, made from its schema; and what has to hold while they are answered.

    make fuzz                                              # 20,000 of them against a server of its own
    python tests/serving/request_fuzzer.py --requests 20000 --seed 7

Each request has one field in turn at one of its extremes: the least and greatest values that are allowed, null, and
those just beyond. Half of the requests have one thing wrong. Some streams are cut, some bodies are no JSON at all.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import copy
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from serve_process import start_serve

from nanochat.model.export import save_model
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.serving.messages import ChatMessage, Part
from nanochat.serving.protocol import ChatRequest
from nanochat.serving.sampled import MAX_STOP_CHARACTERS, MAX_STOPS
from nanochat.tokenizer import Tokenizer

CHAT = "/v1/chat/completions"
TEXTS = (
    "Hi", "", "What is 12 + 30?", "\u6f22\u5b57", "\U0001f469\u200d\U0001f680", "e\u0301", "  \n\t ", "\0\x1b", "'s",
    "<|assistant_end|>", "a" * 40,
)  # fmt: skip
_COSTLY = ("max_tokens", "max_completion_tokens", "min_tokens", "n", "stream")  # at their extremes in their turn alone
NOT_JSON = ("", "{", "[1]", "nul", '{"messages": NaN}', "[" * 5000, '{"messages": "\\ud800"}', '{"n": 1e999}', '"x"')
Json = Any


@dataclass(frozen=True, slots=True)
class Extremes:
    """Values of one field: those at its bounds, and those just beyond."""

    valid: list[Json]
    invalid: list[Json]


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


def field_extremes(*, vocabulary: int) -> dict[str, Extremes]:
    """The extremes of every field; `messages.name` is a field of a message, `parts.text` one of a part."""
    properties = ChatRequest.model_json_schema()["properties"]
    own = {
        "messages": Extremes(
            [], [[], None, "x", [7], [{}], [{"role": "assistant", "content": "I"}], [_user("a")] * 2049]
        ),
        "model": Extremes([None, "nanochat"], [7, [], {}]),
        "stream_options": Extremes(
            [None, {}, {"include_usage": True}, {"include_obfuscation": False}], ["x", {"include_usage": "maybe"}]
        ),
        "continue_final_message": Extremes([None, False], [True, "maybe", [], {}]),  # the messages end with a question
        "stop": Extremes(
            [None, "", "e", "a" * MAX_STOP_CHARACTERS, [], ["a" * MAX_STOP_CHARACTERS] * MAX_STOPS],
            ["a" * (MAX_STOP_CHARACTERS + 1), ["a"] * (MAX_STOPS + 1), [7], 7, {}],
        ),
        "logit_bias": Extremes(
            [None, {}, {"0": -100, str(vocabulary - 1): 100}, {str(i): 100 for i in range(vocabulary)}],
            [{"0": 100.1}, {"x": 1}, {"-1": 1}, {str(vocabulary): 1}, {str(i): 0 for i in range(1025)}, []],
        ),
        "response_format": Extremes([None, {}, {"type": "text"}], [{"type": "json_object"}, "x", {"type": 7}]),
        "modalities": Extremes([None, [], ["text"]], [["audio"], ["text", "audio"], 7]),
    }
    found = {name: own.get(name) or extremes(schema) for name, schema in properties.items()}
    for prefix, model in (("messages", ChatMessage), ("parts", Part)):
        found |= {f"{prefix}.{name}": _NESTED[f"{prefix}.{name}"] for name in model.model_fields}
    return found


def _user(text: Json) -> dict[str, Json]:
    return {"role": "user", "content": text}


_TEXT = Extremes(list(TEXTS), [7, {}, True])
_NESTED = {
    "messages.role": Extremes(["user", "system", "developer"], ["tool", "function", "", "a" * 999, 7, None]),
    "messages.content": Extremes(
        [*TEXTS, [], [{"type": "text", "text": "a"}]], [7, {}, None, [7], [{"type": "image_url"}]]
    ),
    "messages.parts": Extremes([None, [], [{"type": "text", "text": "a"}]], [7, "x", [7], [{"type": "python"}]]),
    "messages.refusal": Extremes([None, "", "No"], [7, [], {}]),
    "messages.name": extremes(ChatMessage.model_json_schema()["properties"]["name"]),
    "messages.tool_calls": Extremes([None, []], [[{"id": "1"}], "x"]),
    "messages.function_call": Extremes([None], [{"name": "f"}]),
    "messages.audio": Extremes([None], [{"id": "1"}]),
    "parts.type": Extremes(["text"], ["image_url", "input_audio", "file", "python", "", 7, None]),
    "parts.text": _TEXT,
    "parts.refusal": Extremes([None, ""], [7, {}]),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One request, and the answers that are right for it."""

    body: bytes
    right: frozenset[int]
    at_extremes: tuple[str, ...] = ()  # the fields of which it has an extreme
    stream: bool = False
    cut: bool = False


class Fuzzer:
    """Cases one after the other, from a seed."""

    def __init__(self, seed: int, *, vocabulary: int) -> None:
        self._random = random.Random(seed)
        self._extremes = field_extremes(vocabulary=vocabulary)
        self.fields = list(self._extremes)
        self._turns = [*self.fields, *_COSTLY, "messages"]  # those that are at no extreme but in their turn have two
        self._turn = 0

    def case(self) -> Case:
        rnd = self._random
        if rnd.random() < 0.02:
            return Case(rnd.choice(NOT_JSON).encode(), frozenset({400}))
        name = self._turns[self._turn % len(self._turns)]
        self._turn += 1
        of = self._extremes[name]
        valid = bool(of.valid) and (not of.invalid or rnd.random() < 0.52)
        body, others = self._valid(alone="." in name)
        self._set(body, name, rnd.choice(of.valid if valid else of.invalid))
        if valid and body.get("top_logprobs"):
            body["logprobs"] = True
        stream = valid and body.get("stream") is True
        right, cut = frozenset({200} if valid else {400}), stream and rnd.random() < 0.4
        return Case(json.dumps(body).encode(), right, (name, *others), stream, cut)

    def _valid(self, *, alone: bool) -> tuple[dict[str, Json], list[str]]:
        """A valid body and those of its fields that are at an extreme; `alone`: none of them inside a message."""
        rnd = self._random
        turns = [_user(rnd.choice(TEXTS))]
        if rnd.random() < 0.3:
            turns = [_user("a"), {"role": "assistant", "content": rnd.choice(["b", None]), "refusal": None}, *turns]
        body: dict[str, Json] = {"messages": turns, "max_tokens": rnd.randrange(1, 6), "stream": rnd.random() < 0.3}
        eligible = [name for name, of in self._extremes.items() if of.valid and name not in _COSTLY]
        others = [name for name in rnd.sample(eligible, rnd.randrange(5)) if not (alone and "." in name)]
        for name in others:
            self._set(body, name, rnd.choice(self._extremes[name].valid))
        if body.get("top_logprobs"):
            body["logprobs"] = True
        if rnd.random() < 0.1:
            body[f"unknown-{rnd.randrange(10)}"] = [{"a": None}]
        return body, others

    def _set(self, body: dict[str, Json], name: str, value: Json) -> None:
        where, _, inner = name.rpartition(".")
        target = body
        if where:
            target = body["messages"][-1]
        if where == "parts":
            target["content"] = [{"type": "text", "text": "a"}]
            target = target["content"][0]
        target[inner] = copy.deepcopy(value)


@dataclass(slots=True)
class Tally:
    """How the requests were answered."""

    statuses: Counter[int] = field(default_factory=Counter)
    extremes: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    wrong: list[str] = field(default_factory=list)


async def send(client: httpx.AsyncClient, case: Case, tally: Tally) -> None:
    """Send one request, and note what is wrong with its answer."""
    headers = {"Content-Type": "application/json"}
    async with client.stream("POST", CHAT, content=case.body, headers=headers) as answer:
        status, text = answer.status_code, ""
        async for line in answer.aiter_lines():
            text += line + "\n"
            if case.cut and status == 200 and text.count("data:") > 1:
                tally.cut += 1
                break
    tally.statuses[status] += 1
    tally.extremes.update(case.at_extremes)
    if problem := _problem(case, status, text):
        tally.wrong.append(f"{problem}: {status} {text[:300]!r} to {case.body[:600]!r}")


def _problem(case: Case, status: int, text: str) -> str:
    if status == 200 and case.stream:
        return "" if case.cut or text.rstrip().endswith("data: [DONE]") else "the stream has no end"
    try:
        answer = json.loads(text)
    except ValueError:
        return "the answer is not JSON"
    if status == 200:
        return "" if 200 in case.right and answer["choices"] else "it was answered"
    if not answer["error"]["message"]:
        return "there is no reason"
    full = status in (429, 503)
    return "" if full or status in case.right else "the status is wrong"


async def fuzz(url: str, fuzzer: Fuzzer, count: int, *, side_by_side: int = 8) -> Tally:
    """Send so many requests, a few at a time."""
    tally, left = Tally(), iter(range(count))
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:

        async def worker() -> None:
            for _ in left:
                case = fuzzer.case()
                try:
                    await send(client, case, tally)
                except httpx.TransportError as error:
                    tally.wrong.append(f"no answer: {error!r} to {case.body[:600]!r}")

        await asyncio.gather(*(worker() for _ in range(side_by_side)))
    return tally


# ----------------------------------------------------------------------------------------------------
# The long form: a server of its own, its memory, and /livez meanwhile


@contextmanager
def tiny_server(folder: Path) -> Iterator[tuple[str, psutil.Process, int]]:
    """A server process with a small random model: its address, the process, and the size of its vocabulary."""
    tokenizer = Tokenizer.train(
        ["The quick brown fox jumps over the lazy dog. What is 12 + 30? It is 42. " * 50], vocab_size=300
    )
    config = ModelConfig(depth=1, width=32, heads=2, kv_heads=2, sequence_length=128, vocab_size=tokenizer.vocab_size)
    model, generator = Transformer(config), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.3, generator=generator)
    save_model(folder, model, {"stage": "sft"})
    tokenizer.save(folder)
    process, url = start_serve(folder)
    try:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            if process.poll() is not None:
                raise RuntimeError("the server did not start")
            time.sleep(0.1)
        yield url, psutil.Process(process.pid), tokenizer.vocab_size
    finally:
        process.terminate()
        process.wait()


@contextmanager
def watched(url: str) -> Iterator[list[float]]:
    """The seconds that /livez takes, ten times a second, while the block runs."""
    seconds: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            while not ended.wait(0.1):
                begun = time.monotonic()
                client.get("/livez").raise_for_status()
                seconds.append(time.monotonic() - begun)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seconds
    finally:
        ended.set()
        thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder, tiny_server(Path(folder)) as (url, process, vocabulary):
        fuzzer = Fuzzer(options.seed, vocabulary=vocabulary)
        with watched(url) as livez:
            early = asyncio.run(fuzz(url, fuzzer, options.requests // 10))
            before = process.memory_info().rss
            late = asyncio.run(fuzz(url, fuzzer, options.requests - options.requests // 10))
        grown = process.memory_info().rss / before - 1
    statuses, seen = early.statuses + late.statuses, early.extremes + late.extremes
    least = min(seen[name] for name in fuzzer.fields)
    percentile = statistics.quantiles(livez, n=100)[98]
    wrong = early.wrong + late.wrong
    print("\n".join(wrong[:20]))
    print(f"answers {dict(sorted(statuses.items()))}, {early.cut + late.cut} streams cut, {len(wrong)} wrong")
    print(f"each of {len(fuzzer.fields)} fields at an extreme at least {least} times")
    middle = statistics.median(livez)
    print(f"/livez: median {middle * 1000:.0f} ms, 99th percentile {percentile * 1000:.0f} ms, of {len(livez)}")
    print(f"memory {before / 2**20:.0f} MiB after a tenth, {grown:+.1%} at the end")
    return int(bool(wrong) or grown > 0.05 or any(status >= 500 and status != 503 for status in statuses))


if __name__ == "__main__":
    sys.exit(main())
