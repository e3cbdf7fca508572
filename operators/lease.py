"""One controller at a time: a Lease of coordination.k8s.io, held and renewed by one of them.

lease = Lease(kube, namespace, name, identity)
lease.acquire()            # blocks until it is ours, then renews in the background
since_renewal(kube, namespace)                  # seconds since any controller renewed it
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from operators.kube_client import LEASES, MERGE, KubeClient
from operators.kube_error import KubeError, Object

log = logging.getLogger(__name__)

TIMEOUT = (3, 5)  # seconds to connect, and between bytes
NAME = "nanochat-controller"  # of the lease, in the namespace of the release
SECONDS = 15  # that a lease holds; it is renewed five times as often


def since_renewal(kube: KubeClient, namespace: str) -> float | None:
    """Seconds since a controller renewed its lease, by the API server's clock; None where there is none."""
    try:
        found, now = kube.dated(LEASES, namespace, NAME)
        return now - datetime.fromisoformat(found["spec"]["renewTime"]).timestamp()
    except KubeError as error:
        if error.status == 404:
            return None
        raise


class Lease:
    """A lease of `seconds`. It counts as lost when it could not be renewed for that long, or another one holds it.

    Whether another holder's has run out is judged by this machine's clock from when it was last seen to change.
    """

    def __init__(
        self,
        kube: KubeClient,
        namespace: str,
        name: str,
        identity: str,
        *,
        seconds: int = SECONDS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._kube, self._namespace, self._name, self._identity = kube.within(TIMEOUT), namespace, name, identity
        self._seconds, self._clock, self._sleep = seconds, clock, sleep
        self._seen: tuple[tuple[str, str], float] = (("", ""), 0.0)  # a renewal, and when we first saw it
        self._done = threading.Event()
        self.held = False
        self.on_lost: Callable[[], None] = lambda: None

    def acquire(self) -> None:
        """Wait until the lease is ours; then a thread renews it and calls `on_lost` should that fail."""
        while not self.take():
            self._sleep(2.0)
        threading.Thread(target=self._renew, name="lease", daemon=True).start()

    def take(self) -> bool:
        """Take or renew the lease if it is free, run out, or ours."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": self._identity, "leaseDurationSeconds": self._seconds, "renewTime": now}
        body = {"metadata": {"name": self._name, "namespace": self._namespace}, "spec": spec}
        try:
            found = self._kube.get(LEASES, self._namespace, self._name)
            if found is None:
                self.held = self._kube.create(LEASES, body) is not None
                return self.held
            if not self._is_free(found["spec"]):
                self.held = False
                return False
            # The version makes it fail where another one was faster.
            body["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
            self._kube.json("update", LEASES.path(self._namespace, self._name), what=self._name, body=body)
        except KubeError as error:
            return self._failed(error)
        self.held = True
        return True

    def release(self) -> None:
        """Let the next one have it at once."""
        self._done.set()
        if not self.held:
            return
        self.held = False
        change = {"spec": {"holderIdentity": "", "leaseDurationSeconds": 1}}
        path = LEASES.path(self._namespace, self._name)
        try:
            self._kube.json("patch", path, what=self._name, body=change, content_type=MERGE)
        except KubeError as error:
            self._failed(error)

    def _is_free(self, spec: Object) -> bool:
        """Whether a lease names nobody, us, or one whose time has run out."""
        if spec.get("holderIdentity", "") in ("", self._identity):
            return True
        mark = (spec["holderIdentity"], spec.get("renewTime", ""))
        if self._seen[0] != mark:
            self._seen = (mark, self._clock())
        return self._clock() - self._seen[1] > (spec.get("leaseDurationSeconds") or self._seconds)

    def _renew(self) -> None:
        renewed = self._clock()
        while not self._done.wait(self._seconds / 5):
            if self.take():
                renewed = self._clock()
            elif not self._done.is_set() and self._clock() - renewed > self._seconds:
                self.held = False
                self.on_lost()
                return

    def _failed(self, error: KubeError) -> bool:
        log.warning("the lease could not be taken now: %s", error.said)
        return False
