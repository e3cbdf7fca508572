"""Has MLflow told of all pipelines' runs, one after the other, so that one that is slow or away delays no pipeline.

    mlflow_sync = MlflowSync(lambda: runs)
    mlflow_sync.start()

What MLflow shows is a projection of the run's folder. It is made complete whenever MLflow can be reached, also long
after the pipeline's end and by another controller: a mark in the folder says that nothing is missing. A run is told of
when it changed. One that takes too long, or is too large, is set aside for a while, with a message, and so are for this
round the others of its store: a round is held up by no run for longer than RUN_SECONDS.
"""

from __future__ import annotations

import json
import logging
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from nanochat.tracking.client import unreachable
from operators import logs, metrics
from operators.mlflow_worker import Answer, Order
from operators.rest import PHASES
from operators.run_state import RunSnapshot
from operators.status import DONE

log = logging.getLogger(__name__)

INTERVAL = 30.0  # seconds between rounds
RUN_SECONDS = 120.0  # that telling of one run may take
ASIDE = (60.0, 120.0, 300.0, 600.0)  # seconds for which a run is set aside after so many failures in a row
COMMAND = (sys.executable, "-m", "operators.mlflow_worker")
IDLE_SECONDS = 60.0  # without an order, after which the worker is ended
LARGE = 512 << 20  # bytes of the worker with which it is ended: the next run needs room


@dataclass(slots=True)
class _Known:
    """The last order about a run."""

    told: str = ""  # mark of the state that MLflow knows
    failures: int = 0
    again: float = 0.0  # not before, of time.monotonic()


class Worker:
    """The process that tells MLflow, started when there is something to tell."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._used = 0.0

    def ask(self, order: Order, seconds: float) -> Answer:
        """Carry out an order; TimeoutError where it takes longer, EOFError where the process ended over it."""
        process, self._used = self._running(), time.monotonic()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(asdict(order)) + "\n")
            process.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                if not selector.select(seconds):
                    self.close()
                    raise TimeoutError
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.close()
            raise EOFError
        answer = Answer(**json.loads(line))
        if answer.memory > LARGE:
            self.close()
        return answer

    def rest(self) -> None:
        """End the process where it was not asked for a while."""
        if self._process is not None and time.monotonic() - self._used > IDLE_SECONDS:
            self.close()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            level = logging.getLevelName(logging.getLogger().getEffectiveLevel())
            command, pipe = [*COMMAND, f"--log-level={level}"], subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        return self._process


class MlflowSync:
    """Goes through the runs, one after the other, again and again."""

    def __init__(self, runs: Callable[[], Sequence[RunSnapshot]]) -> None:
        """`runs` gives the runs of all pipelines as they stand."""
        self._runs = runs
        self._known: dict[str, _Known] = {}  # by uid
        self.worker = Worker()

    def start(self) -> None:
        """Begin; the thread ends with the process."""
        threading.Thread(target=self._run, name="mlflow_sync", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self.round()
            except Exception:
                metrics.errors.labels(kind="program").inc()
                log.exception("a round of telling MLflow failed")
            self.worker.rest()
            time.sleep(INTERVAL)

    def round(self) -> None:
        """Bring MLflow up to date with every run that has something new."""
        runs = self._runs()
        self._known = {run.uid: self._known.get(run.uid) or _Known() for run in runs}
        away: dict[str, bool] = {}  # tracking URI -> whether it is out of reach in this round
        slow: set[str] = set()  # roots of stores
        for run in runs:
            known = self._known[run.uid]
            if not run.tracking or not run.began or known.told == run.mark or time.monotonic() < known.again:
                continue
            if run.tracking not in away:
                away[run.tracking] = unreachable(run.tracking) is not None
            if away[run.tracking] or run.store.root in slow:
                metrics.tracked.labels(result="error").inc()
                continue
            with logs.about(namespace=run.namespace, name=run.name):
                self._tell(run, known, slow)

    def _tell(self, run: RunSnapshot, known: _Known, slow: set[str]) -> None:
        try:
            answer = self.worker.ask(_order(run), RUN_SECONDS)
        except TimeoutError:
            slow.add(run.store.root)
            answer = Answer(told=False, why=f"it took longer than {RUN_SECONDS:.0f} s")
        except EOFError:
            answer = Answer(told=False, why="the process that tells MLflow ended over it: the run wrote too much")
        metrics.tracked.labels(result="ok" if answer.told else "error").inc()
        if answer.told:
            known.told, known.failures, known.again = run.mark, 0, 0.0
        elif answer.why:
            seconds = ASIDE[min(known.failures, len(ASIDE) - 1)]
            known.failures, known.again = known.failures + 1, time.monotonic() + seconds
            log.warning("the run is not told to MLflow for %.0f s: %s", seconds, answer.why)


def _order(run: RunSnapshot) -> Order:
    return Order(
        namespace=run.namespace,
        name=run.name,
        folder=run.paths.root,
        tracking=run.tracking,
        mark=run.mark,
        rests=run.phase in PHASES,
        ended=run.phase in DONE,
        location=asdict(run.artifacts.location),
        credentials=run.artifacts.credentials,
        cache=str(run.artifacts.cache.folder),
    )
