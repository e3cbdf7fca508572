"""A connection to MLflow that fails fast: MLflow is told what happened, it never decides what happens.

MLflow takes seconds to import, so it is imported here, where one connects, and never by a process that trains.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from nanochat.parse.address import shown
from nanochat.spec.errors import StorageError, UserError, missing_module

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

_SQLITE = "sqlite:///"
_PROBE_SECONDS = 2.0
_TRAINS = {"mlflow.experimentKind": "custom_model_development"}  # of an experiment: its page shows runs, not traces
# By itself MLflow tries 7 times for up to 4 minutes. Values that the user has set stay.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",  # its own handlers write into the runner's display
}


def unreachable(uri: str) -> str | None:
    """Why the tracking server cannot be had, in one sentence, or None; it takes two seconds at most."""
    parts = urlsplit(uri)
    if uri.startswith(_SQLITE):
        file = Path(uri.removeprefix(_SQLITE))
        folder = file.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return f"the tracking database's folder {folder} cannot be made ({error.strerror})"
        if not os.access(folder, os.W_OK):
            return f"the tracking database's folder {folder} is not writable"
        return _unreadable(file)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return f"the tracking address {shown(uri)} is neither http(s):// nor sqlite:///"
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=_PROBE_SECONDS).close()
    except (OSError, ValueError) as error:
        return f"the tracking server {shown(uri)} cannot be reached ({error})"
    return None


def _unreadable(file: Path) -> str | None:
    """Why a file is no database: MLflow tries to open it for minutes."""
    try:
        if file.exists():
            with closing(sqlite3.connect(file, timeout=_PROBE_SECONDS)) as database:
                database.execute("PRAGMA schema_version")
    except (OSError, sqlite3.Error) as error:
        return f"the tracking database {file} cannot be opened ({error}): put a backup in its place, or move it away"
    return None


def connect(uri: str) -> MlflowClient:
    """A client; StorageError where the server cannot be reached, UserError where MLflow is not installed."""
    try:
        return _connect(uri)
    except ImportError as error:  # of a database's driver too
        raise UserError(missing_module(error)) from error


def _connect(uri: str) -> MlflowClient:
    reason = unreachable(uri)
    if reason is not None:
        raise StorageError(reason)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):  # tables being made is no news
        logging.getLogger(name).setLevel(logging.WARNING)

    if not uri.startswith(_SQLITE):
        return MlflowClient(uri)
    # A client makes the tables where they are missing; a runner and its release stage must not do so at once. They are
    # made beside and renamed: of a process that was killed some of them would be left, with which MLflow cannot go on.
    database = Path(uri.removeprefix(_SQLITE))
    with Path(f"{database}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not database.exists():
            scratch = Path(f"{database}.new")
            scratch.unlink(missing_ok=True)
            MlflowClient(f"{_SQLITE}{scratch}")
            os.replace(scratch, database)
        return MlflowClient(uri)


def is_deleted(client: MlflowClient, name: str) -> bool:
    """Whether an experiment was deleted, and not for good."""
    return _is_deleted(client.get_experiment_by_name(name))


def _is_deleted(experiment: Experiment | None) -> bool:
    return experiment is not None and experiment.lifecycle_stage == "deleted"


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """The experiment's id. It is made where there is none, and restored where it was deleted.

    SQLite's artifacts live beside the database.
    """
    found = client.get_experiment_by_name(name)
    if found is not None and _is_deleted(found):
        client.restore_experiment(found.experiment_id)
        log.warning("MLflow's experiment '%s' was deleted: it is restored, with its runs", name)
    if found is not None:
        return found.experiment_id
    location = None
    if uri.startswith(_SQLITE):
        location = (Path(uri.removeprefix(_SQLITE)).parent / "mlartifacts" / name).as_uri()
    try:
        return client.create_experiment(name, artifact_location=location, tags=_TRAINS)
    except Exception:  # another process made it in between
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found.experiment_id
