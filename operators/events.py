"""Kubernetes Events about pipelines: what `kubectl describe` shows."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from datetime import UTC, datetime
from typing import Any

import urllib3
from kubernetes.client.exceptions import ApiException

log = logging.getLogger(__name__)

WINDOW = 3600.0  # seconds in which the same news raises the count of one Event


class Events:
    """Emits Events in the background of what matters: where one cannot be written, that is logged."""

    def __init__(self, core: Any, component: str) -> None:
        self._core, self._component = core, component
        self._counts: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def emit(self, reference: dict[str, Any], kind: str, reason: str, message: str) -> None:
        """Say something about an object; `kind` is Normal or Warning."""
        now = time.time()
        text = f"{reference['uid']} {reason} {message} {int(now // WINDOW)}"
        name = f"{reference['name']}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        with self._lock:
            self._counts = {n: v for n, v in self._counts.items() if now - v[1] < WINDOW}
            count = self._counts.get(name, (0, 0.0))[0] + 1
            self._counts[name] = (count, now)
        stamp = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        namespace = reference["namespace"]
        body = {
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": reference,
            "type": kind,
            "reason": reason[:128],
            "message": message[:1024],
            "source": {"component": self._component},
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": count,
        }
        try:
            if count == 1:
                self._core.create_namespaced_event(namespace, body, _request_timeout=(5, 10))
            else:
                change = {"count": count, "lastTimestamp": stamp}
                self._core.patch_namespaced_event(name, namespace, change, _request_timeout=(5, 10))
        except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
            why = error.reason if isinstance(error, ApiException) else type(error).__name__
            log.warning("an Event could not be written (%s): %s", why, message)
