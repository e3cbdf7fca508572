"""`nanochat bench serve --clients 16`: a server with so many clients at once against its engine alone, in turns.

    document = measure_clients(folder, Clients(clients=16, slots=8, rounds=5, tokens=32, busy=1), threads=2)

Both answer the same prompts of random tokens, at temperature 0 and to the last token that is asked for, beside so many
processes that keep a core busy. Clients read streams, each on a connection of its own, and do as little as they can
with what they read: they run on the same machine. Afterwards requests come one by one at random times, at 80 % of the
rate that the server has shown.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from nanochat.bench.figures import Measured, times_faster
from nanochat.bench.serve import quantiles, serving
from nanochat.bench.tables import Table, number, seconds, short, times
from nanochat.bench.workers import Worker, Workers, asleep
from nanochat.spec.errors import UserError

SEED = 17
PROMPT, BYTES = 32, 256  # tokens of a prompt, and of those that every vocabulary begins with
MOST_READ = 64 << 10  # bytes at a time
LONGEST_ANSWER = 64 << 20  # bytes
BUSY = "while True: pass"
CALM, ARRIVALS = 0.8, 20  # of the rate with all at once, for so many rounds' worth of requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Clients:
    """How many ask at once, and for what."""

    clients: int
    slots: int
    rounds: int
    tokens: int  # of each answer
    busy: int = 0  # processes that keep a core busy meanwhile


def prompts(clients: int) -> Iterator[list[list[int]]]:
    """The prompts of each round, one for each client, the same in every process."""
    draw = random.Random(SEED)
    while True:
        yield [[draw.randrange(BYTES) for _ in range(PROMPT)] for _ in range(clients)]


def measure_clients(folder: Path, asked: Clients, *, threads: int) -> dict[str, Any]:
    """Let the engine and a server of it answer in turns -> the document for programs."""
    task = {"module": "clients_engine", "folder": str(folder), **asdict(asked)}
    engine: list[dict[str, Any]] = []
    server: list[dict[str, float]] = []
    firsts: list[float] = []
    with Workers() as workers, serving(folder, slots=asked.slots, threads=threads) as (url, process):
        worker = workers.start("the engine", task, asleep(threads))
        worker.answer()
        crowd = Crowd(url, asked, psutil.Process(process))
        _turn(worker, crowd)  # the first round warms both up
        with kept_busy(asked.busy):
            for round in range(asked.rounds):
                alone, (served, first) = _turn(worker, crowd, server_first=round % 2 == 1)
                engine.append(alone)
                server.append(served)
                firsts += first
            found = [Measured("engine", engine), Measured("server", server)]
            reached = found[1].rate("answers")
            later = crowd.arrivals(CALM * reached.median)
    return {
        "bench": "clients",
        "asked": asdict(asked),
        "measured": [item.to_dict() for item in found],
        "requests_per_second": asdict(reached),
        "share": {
            "seconds": asdict(times_faster(found[1], found[0])),
            "cpu_seconds": asdict(times_faster(found[1], found[0], under="cpu_seconds")),
        },
        "first_token": quantiles(firsts),
        "arrivals": {"requests_per_second": CALM * reached.median, "first_token": quantiles(later)},
    }


Round = tuple[dict[str, float], list[float]]  # figures, and the seconds to each first token


def _turn(worker: Worker, crowd: Crowd, *, server_first: bool = False) -> tuple[dict[str, Any], Round]:
    served = crowd.round() if server_first else None
    alone = worker.ask("step")
    return alone, served or crowd.round()


@contextmanager
def kept_busy(count: int) -> Iterator[None]:
    """So many processes of one thread that compute without end, inside."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


class Crowd:
    """The clients of one server."""

    def __init__(self, url: str, asked: Clients, process: psutil.Process) -> None:
        self._asked, self._process = asked, process
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._prompts = prompts(asked.clients)

    def round(self) -> Round:
        """Let all ask at once, and wait for their answers; the figures as a measured process tells them."""
        asked, before, began = next(self._prompts), self._process.cpu_times(), time.monotonic()
        firsts = asyncio.run(self._all(asked))
        taken, after = time.monotonic() - began, self._process.cpu_times()
        used = after.user + after.system - before.user - before.system
        told = {"seconds": taken, "cpu_seconds": used, "answers": len(asked), "tokens": len(asked) * self._asked.tokens}
        return told, firsts

    def arrivals(self, rate: float) -> list[float]:
        """Let requests begin at random times, so many a second; the seconds to the first token of each."""
        asked = [prompt for _ in range(ARRIVALS) for prompt in next(self._prompts)]
        return asyncio.run(self._arrive(asked, rate))

    async def _arrive(self, prompts: list[list[int]], rate: float) -> list[float]:
        draw = random.Random(SEED)
        async with asyncio.TaskGroup() as group:
            tasks = []
            for prompt in prompts:
                tasks.append(group.create_task(self._ask(prompt)))
                await asyncio.sleep(draw.expovariate(rate))
        return [task.result() for task in tasks]

    async def _all(self, prompts: list[list[int]]) -> list[float]:
        return await asyncio.gather(*(self._ask(prompt) for prompt in prompts))

    async def _ask(self, prompt: list[int]) -> float:
        """Read one answer to its end; the seconds until its first piece came."""
        tokens = self._asked.tokens
        body = {"prompt": prompt, "max_tokens": tokens, "min_tokens": tokens, "temperature": 0, "stream": True}
        sent = json.dumps({**body, "stream_options": {"include_usage": True}}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(sent)}\r\n"
        began = time.monotonic()
        reader, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + sent)
        read, first = bytearray(), 0.0
        while piece := await reader.read(MOST_READ):
            read += piece
            if not first and b"data:" in read:
                first = time.monotonic() - began
            if len(read) > LONGEST_ANSWER:
                break
        writer.close()
        if b'"completion_tokens":%d,' % tokens not in read:
            raise UserError(f"the server did not answer as it was asked: {bytes(read[-300:]).decode(errors='replace')}")
        return first


def clients_tables(document: Mapping[str, Any]) -> list[Table]:
    """The document for people."""
    asked, first = document["asked"], document["first_token"]
    title = (
        f"{asked['clients']} clients at once on {asked['slots']} slots, {asked['tokens']} tokens each, beside "
        f"{asked['busy']} busy processes: {number(document['requests_per_second'])} requests a second, "
        f"first tokens within {short(first['p50'])} s in half of all cases and {short(first['p99'])} s in 99 %"
    )
    rows = [
        [item["name"], seconds(item["figures"]["seconds"]), seconds(item["figures"]["cpu_seconds"])]
        for item in document["measured"]
    ]
    share = document["share"]
    rows.append(["server's tokens/s, of the engine's", times(share["seconds"]), times(share["cpu_seconds"])])
    calm = document["arrivals"]
    later = [[f"{short(calm['first_token'][at])} s" for at in ("p50", "p90", "p99")]]
    return [
        Table(title, ["", "by the clock", "by CPU time"], rows),
        Table(
            f"First tokens of {calm['first_token']['count']} requests that come by themselves, "
            f"{short(calm['requests_per_second'])} a second",
            ["50 % within", "90 % within", "99 % within"],
            later,
        ),
    ]
