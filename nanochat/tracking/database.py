"""The registry in MLflow's own SQLite database, for what can be seen without MLflow, which takes seconds to import.

    registry = DatabaseRegistry("sqlite:////home/me/.cache/nanochat/mlflow.db")
    registry.holds("nanochat", "3")     # one query, where the version is there

What the query does not find, and all else, MLflow itself is asked for, so that its tables may change.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

from nanochat.tracking.registry import Registry

SQLITE = "sqlite:///"
BUSY_SECONDS = 2.0
_VERSION = "SELECT 1 FROM model_versions WHERE name = ? AND version = ? AND current_stage IS NOT 'Deleted_Internal'"


class DatabaseRegistry(Registry):
    """The registry at a tracking URI of SQLite."""

    def holds(self, model: str, version: str) -> bool:
        """Whether a version is there; deleted ones are not."""
        return self._is_seen(model, version) or super().holds(model, version)

    def _is_seen(self, model: str, version: str) -> bool:
        """Whether the database has the version; False too where it cannot be read, or has other tables."""
        file = Path(self._uri.removeprefix(SQLITE)).absolute()
        with suppress(sqlite3.Error):
            address = f"file:{quote(str(file))}?mode=ro"  # none is made
            with closing(sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS)) as database:
                return database.execute(_VERSION, (model, version)).fetchone() is not None
        return False
