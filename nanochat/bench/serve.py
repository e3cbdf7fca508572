"""`nanochat bench serve`: how long people wait for a server's words while others talk to it, too."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import psutil

from nanochat.bench.conversations import Answer, Load, converse_all
from nanochat.bench.tables import Table, short
from nanochat.bench.workers import ENDING, asleep, free_port, with_package
from nanochat.spec.errors import UserError

LOADING = 300.0  # seconds until a server has its model
SHARES = (0.5, 0.9, 0.99)  # of answers, which came in so many seconds or sooner


def measure_serve(url: str, load: Load) -> dict[str, Any]:
    """Talk to the server -> the document for programs."""
    began = time.monotonic()
    answers = asyncio.run(converse_all(url, load))
    elapsed = time.monotonic() - began
    given = [answer for answer in answers if answer.came]
    refused = [answer for answer in answers if answer.refused]
    again = [answer for answer in answers if answer.again]
    waits = {
        "first token of a first turn": [answer.first for answer in given if answer.turn == 0],
        "first token of a later turn": [answer.first for answer in given if answer.turn > 0],
        "between tokens": [gap for answer in given for gap in answer.gaps],
    }
    return {
        "bench": "serve",
        "load": asdict(load),
        "seconds": elapsed,
        "answers": sum(not answer.refused for answer in answers),
        "refused": len(refused),
        "told_to_wait": quantiles([answer.wait for answer in refused]) if refused else None,
        "came_back": {"taken": sum(not answer.refused for answer in again), "count": len(again)},
        "tokens_per_second": sum(answer.tokens for answer in given) / elapsed,
        "busiest": busiest(given),
        "waits": {name: quantiles(values) for name, values in waits.items() if values},
    }


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Seconds in which a share of them came, by the share, and how many they are."""
    ordered = sorted(values)
    found = {f"p{share * 100:g}": ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in SHARES}
    return {**found, "count": len(ordered)}


def busiest(answers: Sequence[Answer]) -> int:
    """How many answers were waited for or given at once, at most."""
    changes = sorted([(answer.asked, 1) for answer in answers] + [(answer.came[-1], -1) for answer in answers])
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


class Memory:
    """A process's resident memory, each second of a block."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._found: list[float] = []  # MiB
        self._ended = threading.Event()

    def __enter__(self) -> Memory:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(1.0) and self._process.is_running():
            self._found.append(self._process.memory_info().rss / 2**20)

    def told(self) -> dict[str, float] | None:
        """The most in MiB in the second tenth of the time and in the last; None where that was too short."""
        tenth = len(self._found) // 10
        if not tenth:
            return None
        return {"early": max(self._found[tenth : 2 * tenth]), "late": max(self._found[-tenth:])}


@contextmanager
def serving(folder: Path, *, slots: int, threads: int) -> Iterator[tuple[str, int]]:
    """Address and process id of a server of the model in a folder, which runs inside; UserError where none comes up."""
    port = free_port()
    command = [sys.executable, "-P", "-m", "nanochat.cli.main", "serve", str(folder), "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--slots", str(slots)], stdout=log, stderr=log, env=with_package(asleep(threads))
        )
        try:
            url = f"http://127.0.0.1:{port}"
            ends = time.monotonic() + LOADING
            while not answers(url):
                if process.poll() is not None or time.monotonic() > ends:
                    log.seek(0)
                    said = log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
                    raise UserError(f"the server did not start: {said[-1][:300]}")
                time.sleep(0.1)
            yield url, process.pid
        finally:
            process.terminate()
            try:
                process.wait(ENDING)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def answers(url: str) -> bool:
    """Whether a server is ready there."""
    try:
        return httpx.get(f"{url}/readyz", timeout=5.0).is_success
    except httpx.HTTPError:
        return False


def serve_tables(document: Mapping[str, Any]) -> list[Table]:
    """The document for people."""
    load = document["load"]
    rows = [
        [name, str(found["count"]), *(f"{short(found[f'p{share * 100:g}'] * 1e3)} ms" for share in SHARES)]
        for name, found in document["waits"].items()
    ]
    asked = f"{load['conversations']} conversations of {load['turns']} turns, {load['rate']:g} a second"
    title = (
        f"{asked}: {document['answers']} answers, {short(document['tokens_per_second'])} tokens/s, "
        f"up to {document['busiest']} at once, {document['refused']} refused"
    )
    if load["retries"]:
        title += ", and of {count} that came back when they were told {taken} taken".format(**document["came_back"])
    if told := document.get("memory"):
        title += ", memory {early:.0f} MiB after a tenth and {late:.0f} MiB at the end".format(**told)
    return [Table(title, ["", "count", *(f"{share * 100:g} % within" for share in SHARES)], rows)]
