"""Kubernetes Events about pipelines: what `kubectl describe` shows.

events = Events(kube, "nanochat-controller")
events.emit(V1ObjectReference(...), "Warning", "Stalled", "base attempt 1: no sign of life")
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from datetime import UTC, datetime

from kubernetes.client import CoreV1Event, V1EventSource, V1ObjectMeta, V1ObjectReference

from operators.kube_client import EVENTS, MERGE, KubeClient, KubeError
from operators.kube_models import to_json

log = logging.getLogger(__name__)

WINDOW = 3600.0  # seconds in which the same news raises the count of one Event
TIMEOUT = (5, 10)  # seconds to connect, and between bytes


class Events:
    """Emits Events in the background of what matters: where one cannot be written, that is logged."""

    def __init__(self, kube: KubeClient, component: str) -> None:
        self._kube, self._component = kube.within(TIMEOUT), component
        self._counts: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def emit(self, reference: V1ObjectReference, kind: str, reason: str, message: str) -> None:
        """Say something about an object; `kind` is Normal or Warning."""
        now = time.time()
        text = f"{reference.uid} {reason} {message} {int(now // WINDOW)}"
        name = f"{reference.name}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        with self._lock:
            self._counts = {n: v for n, v in self._counts.items() if now - v[1] < WINDOW}
            count = self._counts.get(name, (0, 0.0))[0] + 1
            self._counts[name] = (count, now)
        stamp = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        namespace = str(reference.namespace)
        event = CoreV1Event(
            metadata=V1ObjectMeta(name=name, namespace=namespace),
            involved_object=reference,
            type=kind,
            reason=reason[:128],
            message=message[:1024],
            source=V1EventSource(component=self._component),
            first_timestamp=stamp,
            last_timestamp=stamp,
            count=count,
        )
        try:
            if count == 1:
                self._kube.create(EVENTS, to_json(event))
            else:
                change = {"count": count, "lastTimestamp": stamp}
                path = EVENTS.path(namespace, name)
                self._kube.json("patch", path, what=f"Event {namespace}/{name}", body=change, content_type=MERGE)
        except KubeError as error:
            log.warning("an Event could not be written (%s): %s", error.said, message)
