"""Kubernetes Events about pipelines: what `kubectl describe` shows.

events = Events(kube, "nanochat-controller")
events.emit(V1ObjectReference(...), "Warning", "Stalled", "base attempt 1: no sign of life")

They are written by a thread of their own, and as few as client-go's EventCorrelator lets through: news of a kind that
repeats raises the count of one Event, one object has at most BURST at once and then one every five minutes, and all
together at most RATE a second. What is beyond that is left out, and the log has it.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from kubernetes.client import CoreV1Event, V1EventSource, V1ObjectMeta, V1ObjectReference

from operators.kube_client import EVENTS, MERGE, KubeClient
from operators.kube_error import KubeError, Object
from operators.kube_models import to_json
from operators.rate_limits import Bucket

log = logging.getLogger(__name__)
V = TypeVar("V")

WINDOW = 3600.0  # seconds in which the same news raises the count of one Event
TIMEOUT = (5, 10)  # seconds to connect, and between bytes
BURST, REFILL = 25, 1 / 300  # Events about one object, and how many more each second
RATE = 20.0  # Events a second
MOST = 4096  # news and objects that are remembered, as client-go does; and Events that wait to be written


class Events:
    """Emits Events in the background of what matters: where one cannot be written, that is logged."""

    def __init__(self, kube: KubeClient, component: str, *, clock: Callable[[], float] = time.time) -> None:
        self._kube, self._component, self._clock = kube.within(TIMEOUT), component, clock
        self._counts: OrderedDict[str, int] = OrderedDict()  # name of an Event -> how often
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()  # by the object's uid
        self._lock = threading.Lock()
        self._waiting: queue.Queue[tuple[Object, int]] = queue.Queue(MOST)
        threading.Thread(target=self._work, name="events", daemon=True).start()

    def emit(self, reference: V1ObjectReference, kind: str, reason: str, message: str) -> None:
        """Say something about an object; `kind` is Normal or Warning."""
        now = self._clock()
        text = f"{reference.uid} {reason} {message} {int(now // WINDOW)}"
        name = f"{reference.name}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        with self._lock:
            bucket = _kept(self._buckets, str(reference.uid), lambda: Bucket(BURST, REFILL, BURST, now))
            if not bucket.take(now):
                return
            count = self._counts[name] = _kept(self._counts, name, lambda: 0) + 1
        stamp = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        event = CoreV1Event(
            metadata=V1ObjectMeta(name=name, namespace=str(reference.namespace)),
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
            self._waiting.put_nowait((to_json(event), count))
        except queue.Full:
            log.warning("an Event is left out, too many wait: %s", message)

    def flush(self) -> None:
        """Wait until all that was emitted is written."""
        self._waiting.join()

    def _work(self) -> None:
        while True:
            event, count = self._waiting.get()
            try:
                self._write(event, count)
            except KubeError as error:
                log.warning("an Event could not be written (%s): %s", error.said, event["message"])
            except Exception:  # whatever it is, the next one is written
                log.exception("an Event could not be written: %s", event["message"])
            finally:
                self._waiting.task_done()
            time.sleep(1 / RATE)

    def _write(self, event: Object, count: int) -> None:
        if count == 1:
            self._kube.create(EVENTS, event)
            return
        meta, change = event["metadata"], {"count": count, "lastTimestamp": event["lastTimestamp"]}
        path, what = EVENTS.path(meta["namespace"], meta["name"]), f"Event {meta['namespace']}/{meta['name']}"
        self._kube.json("patch", path, what=what, body=change, content_type=MERGE)


def _kept(table: OrderedDict[str, V], name: str, new: Callable[[], V]) -> V:
    """The value of a name, which is new where it has none; those that were not asked for longest are dropped."""
    if name not in table:
        table[name] = new()
    table.move_to_end(name)
    if len(table) > MOST:
        table.popitem(last=False)
    return table[name]
