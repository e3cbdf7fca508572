"""The controller's log: one JSON object a line, with the pipeline that it is about."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_about: ContextVar[dict[str, str]] = ContextVar("about", default={})  # noqa: B039 (never changed in place)


@contextmanager
def about(**names: str) -> Iterator[None]:
    """Everything logged inside carries these names (namespace, name)."""
    token = _about.set(names)
    try:
        yield
    finally:
        _about.reset(token)


class JsonFormatter(logging.Formatter):
    """time (UTC), level, logger, message, the object's names, and the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_about.get(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(level: str) -> None:
    """Send all logs to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in ("httpx", "urllib3", "botocore", "aiobotocore", "uvicorn.access", "kopf"):
        logging.getLogger(name).setLevel(logging.WARNING)
