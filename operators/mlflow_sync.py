"""Tells MLflow of all pipelines' runs, in a thread of its own, so that one that is slow or away delays no pipeline.

    mlflow_sync = MlflowSync(lambda: runs)
    mlflow_sync.start()

What MLflow shows is a projection of the run's folder. It is made complete whenever MLflow can be reached, also long
after the pipeline's end and by another controller: a mark in the folder says that nothing is missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence

from nanochat.report.tracked import RunTracker
from nanochat.spec.errors import NanochatError
from nanochat.storage.records import read_object
from nanochat.tracking.client import unreachable
from operators import logs, metrics
from operators.run_state import RunSnapshot
from operators.status import DONE

log = logging.getLogger(__name__)

INTERVAL = 30.0  # seconds between rounds
MARK = "tracked.json"


class MlflowSync:
    """Goes through the runs, one after the other, again and again."""

    def __init__(self, runs: Callable[[], Sequence[RunSnapshot]]) -> None:
        """`runs` gives the runs of all pipelines as they stand."""
        self._runs = runs
        self._trackers: dict[str, RunTracker] = {}  # by the run's folder, of those that are not complete
        self._complete: dict[str, str] = {}  # the run's folder -> digest of what was complete

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
            time.sleep(INTERVAL)

    def round(self) -> None:
        """Bring MLflow up to date with every run that has something new."""
        runs = self._runs()
        folders = {run.paths.root for run in runs}
        self._trackers = {folder: tracker for folder, tracker in self._trackers.items() if folder in folders}
        away: dict[str, bool] = {}  # tracking URI -> whether it is out of reach in this round
        for run in runs:
            uri = run.tracking
            if not uri or self._is_complete(run, uri):
                continue
            if uri not in away:
                away[uri] = unreachable(uri) is not None
            if away[uri]:
                metrics.tracked.labels(result="error").inc()
                continue
            with logs.about(namespace=run.namespace, name=run.name):
                self._report(run, uri)

    def _report(self, run: RunSnapshot, uri: str) -> None:
        folder, digest, done = run.paths.root, _digest(run, uri), run.phase in DONE
        if folder not in self._trackers:
            self._trackers[folder] = RunTracker(run.store, run.artifacts, run=folder, uri=uri)
        tracker = self._trackers[folder]
        told = tracker.sync()
        metrics.tracked.labels(result="ok" if told else "error").inc()
        if not (told and done and tracker.ended):
            return
        try:
            run.store.write_json(f"{folder}/{MARK}", {"digest": digest})
        except NanochatError as error:
            log.warning("that MLflow knows all could not be noted: %s", error.message)
            return
        self._complete[folder] = digest
        del self._trackers[folder]

    def _is_complete(self, run: RunSnapshot, uri: str) -> bool:
        """Whether the run has ended and MLflow was told all of it, by this process or by one before."""
        folder = run.paths.root
        if run.phase not in DONE:
            return False
        digest = _digest(run, uri)
        if self._complete.get(folder) == digest:
            return True
        try:
            complete = (read_object(run.store, f"{folder}/{MARK}") or {}).get("digest") == digest
        except NanochatError:
            return False
        if complete:
            self._complete[folder] = digest
        return complete


def _digest(run: RunSnapshot, uri: str) -> str:
    """A digest that differs between two states of a run that has ended: a retry makes attempts."""
    return hashlib.sha256(json.dumps([uri, run.mark]).encode()).hexdigest()
