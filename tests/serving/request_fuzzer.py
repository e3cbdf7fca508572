"""Requests to the API, valid and almost valid, made from its schema; and what has to hold while they are answered.

    make fuzz                                              # 20,000 of them against a server of its own
    python tests/serving/request_fuzzer.py --requests 20000 --seed 7

Each request has one field in turn at one of its extremes: the least and greatest values that are allowed, null, and
those just beyond. Half of the requests have one thing wrong. Some streams are cut, some bodies are no JSON at all.
`fuzzed_routes` has the routes and the extremes of their fields.
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

import httpx
import psutil
import torch
from fuzzed_routes import PAGES, Json, Route, routes
from serve_process import start_serve

from nanochat.model.export import save_model
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.tokenizer import Tokenizer

# At their extremes in their turn alone.
_COSTLY = ("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens", "n", "stream")
NOT_JSON = ("", "{", "[1]", "nul", '{"messages": NaN}', "[" * 5000, '{"messages": "\\ud800"}', '{"n": 1e999}', '"x"')
METHODS = ("POST", "PUT", "DELETE")  # that no page takes


@dataclass(frozen=True, slots=True)
class Case:
    """One request, and the answers that are right for it."""

    path: str
    body: bytes
    right: frozenset[int]
    at_extremes: tuple[str, ...] = ()  # the fields of which it has an extreme
    route: Route | None = None  # of what is answered with JSON
    stream: bool = False
    cut: bool = False
    method: str = "POST"


class Fuzzer:
    """Cases one after the other, from a seed."""

    def __init__(self, seed: int, *, vocabulary: int) -> None:
        self._random = random.Random(seed)
        found = routes(vocabulary)
        self.fields = [route.named(name) for route in found for name in route.extremes]
        # Those that are at no extreme but in their turn have two.
        self._turns = [
            (route, name)
            for route in found
            for name in (*route.extremes, *(each for each in (*_COSTLY, "messages") if each in route.extremes))
        ]
        self._turn = 0

    def case(self) -> Case:
        rnd = self._random
        route, name = self._turns[self._turn % len(self._turns)]
        chance = rnd.random()
        if chance < 0.02:
            return Case(route.path, rnd.choice(NOT_JSON).encode(), frozenset({400}))
        if chance < 0.04:
            path = rnd.choice(PAGES)
            if rnd.random() < 0.5:
                return Case(path, b"{}", frozenset({405}), method=rnd.choice(METHODS))
            return Case(f"{path}?{rnd.randrange(10**9)}=%00", b"", frozenset({200}), method="GET")
        self._turn += 1
        of = route.extremes[name]
        valid = bool(of.valid) and (not of.invalid or rnd.random() < 0.52)
        body, others = self._valid(route, alone="." in name)
        route.put(body, name, copy.deepcopy(rnd.choice(of.valid if valid else of.invalid)))
        if valid:
            route.mend(body)
        stream = valid and body.get("stream") is True
        right, cut = frozenset({200} if valid else {400}), stream and rnd.random() < 0.4
        told = tuple(route.named(each) for each in (name, *others))
        return Case(route.path, json.dumps(body).encode(), right, told, route, stream, cut)

    def _valid(self, route: Route, *, alone: bool) -> tuple[dict[str, Json], list[str]]:
        """A valid body and those of its fields that are at an extreme; `alone`: none of them inside a message."""
        rnd = self._random
        body = route.body(rnd)
        eligible = [name for name, of in route.extremes.items() if of.valid and name not in _COSTLY]
        others = [name for name in rnd.sample(eligible, min(len(eligible), rnd.randrange(5)))]
        others = [name for name in others if not (alone and "." in name)]
        for name in others:
            route.put(body, name, copy.deepcopy(rnd.choice(route.extremes[name].valid)))
        route.mend(body)
        if rnd.random() < 0.1:
            body[f"unknown-{rnd.randrange(10)}"] = [{"a": None}]
        return body, others


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
    async with client.stream(case.method, case.path, content=case.body, headers=headers) as answer:
        status, text = answer.status_code, ""
        async for line in answer.aiter_lines():
            text += line + "\n"
            if case.cut and status == 200 and text.count("data:") > 1:
                tally.cut += 1
                break
    tally.statuses[status] += 1
    tally.extremes.update(case.at_extremes)
    if problem := _problem(case, status, text):
        asked = f"{case.method} {case.path} {case.body[:600]!r}"
        tally.wrong.append(f"{problem}: {status} {text[:300]!r} to {asked}")


def _problem(case: Case, status: int, text: str) -> str:
    if status == 200 and case.stream:
        assert case.route is not None
        return "" if case.cut or case.route.ended(text) else "the stream has no end"
    if status == 200 and case.route is None:
        return "" if 200 in case.right else "it was answered"
    try:
        answer = json.loads(text)
    except ValueError:
        return "the answer is not JSON"
    if status == 200:
        assert case.route is not None
        return "" if 200 in case.right and case.route.answer in answer else "it was answered"
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
                    tally.wrong.append(f"no answer: {error!r} to {case.path} {case.body[:600]!r}")

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


def fill_caches(url: str, draw: random.Random) -> None:
    """Have prompts of all lengths computed: the kernels for matrices of so many shapes are kept, up to a bound
    (`nanochat.runtime.threads`), and the fuzzer's own prompts would meet that only after thousands of requests."""
    with httpx.Client(base_url=url, timeout=120) as client:
        context = client.get("/tokenizer_info").raise_for_status().json()["model_max_length"]
        for length in range(1, context - 1):
            body = {"prompt": [draw.randrange(256) for _ in range(length)], "max_tokens": 1}
            client.post("/v1/completions", json=body).raise_for_status()


def own_memory(process: psutil.Process) -> int:
    """Bytes that are the process's own. Of the files of libraries as much is in memory as other processes leave."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) << 10


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder, tiny_server(Path(folder)) as (url, process, vocabulary):
        fuzzer = Fuzzer(options.seed, vocabulary=vocabulary)
        fill_caches(url, random.Random(options.seed))
        with watched(url) as livez:
            early = asyncio.run(fuzz(url, fuzzer, options.requests // 10))
            before = own_memory(process)
            late = asyncio.run(fuzz(url, fuzzer, options.requests - options.requests // 10))
        grown = own_memory(process) / before - 1
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
