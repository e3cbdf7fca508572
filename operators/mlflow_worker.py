"""Tells MLflow of one run after the other, in a process of its own: `python -m operators.mlflow_worker`.

It reads an `Order` a line from its standard input and answers each with an `Answer` on its standard output, both JSON.
MLflow's client takes 120 MiB, and what a pod wrote may be anything: whoever gives the orders ends this process when one
takes too long, and its memory has a bound.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import sys
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

import psutil

from nanochat.report.tracked import RunTracker
from nanochat.spec.errors import NanochatError
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.opening import open_store
from nanochat.storage.records import read_object
from nanochat.storage.store import Profile, Store
from operators import logs

log = logging.getLogger(__name__)

MARK = "tracked.json"  # in a run's folder: MLflow knows all of it
MEMORY = 768 << 20  # bytes of data that the process may have
TRACKERS = 16  # runs whose journals are remembered


@dataclass(frozen=True, slots=True)
class Order:
    """A run to tell of. `mark` stands for its state; where it is at rest, or has ended, that is noted in its folder."""

    namespace: str
    name: str
    folder: str
    tracking: str
    mark: str
    rests: bool
    ended: bool
    location: dict[str, str | bool | None]  # a `nanochat.storage.store.Profile`
    credentials: str
    cache: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether MLflow knows of the run, and why not."""

    told: bool
    why: str = ""
    memory: int = 0  # bytes that the process has afterwards


class Worker:
    """The orders' executor."""

    def __init__(self) -> None:
        self._stores: dict[str, Store] = {}
        self._trackers: OrderedDict[str, RunTracker] = OrderedDict()

    def carry_out(self, order: Order) -> Answer:
        """Tell of one run, unless it is noted that all of it was told."""
        where = json.dumps([order.location, order.credentials])
        try:
            if where not in self._stores:
                credentials = Path(order.credentials) if order.credentials else None
                self._stores[where] = open_store(Profile(**order.location), patient=False, credentials=credentials)  # type: ignore[arg-type]
            store, noted = self._stores[where], f"{order.folder}/{MARK}"
            if order.rests and (read_object(store, noted) or {}).get("digest") == order.mark:
                return Answer(told=True)
            tracker = self._tracker(where + order.folder, store, order)
            if not tracker.sync():
                return Answer(told=False, why=tracker.trouble)
            if order.rests and (tracker.ended or not order.ended):
                store.write_json(noted, {"digest": order.mark})
            return Answer(told=not order.ended or tracker.ended)
        except NanochatError as error:
            return Answer(told=False, why=error.message)

    def _tracker(self, key: str, store: Store, order: Order) -> RunTracker:
        if key not in self._trackers:
            artifacts = Artifacts(store, Path(order.cache))
            self._trackers[key] = RunTracker(store, artifacts, run=order.folder, uri=order.tracking)
        self._trackers.move_to_end(key)
        if len(self._trackers) > TRACKERS:
            self._trackers.popitem(last=False)
        return self._trackers[key]


def serve(lines: Iterable[str], answers: TextIO) -> None:
    """Carry out one order after the other; whatever fails ends its own order alone."""
    worker = Worker()
    for line in lines:
        order = Order(**json.loads(line))
        with logs.about(namespace=order.namespace, name=order.name):
            try:
                answer = worker.carry_out(order)
            except Exception as error:  # what is stored may be anything
                log.exception("the run could not be told to MLflow")
                answer = Answer(told=False, why=f"{type(error).__name__}: {error}"[:500])
        answer = replace(answer, memory=psutil.Process().memory_info().rss)
        print(json.dumps(asdict(answer)), file=answers, flush=True)


def main() -> None:
    """Serve until the standard input ends."""
    parser = argparse.ArgumentParser(prog="operators.mlflow_worker", description="Tells MLflow of runs.")
    parser.add_argument("--log-level", type=str.upper, default="INFO", choices=logs.LEVELS)
    logs.configure(parser.parse_args().log_level)
    os.nice(10)  # pipelines come first
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
