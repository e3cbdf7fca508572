"""One controller at a time: a Lease of coordination.k8s.io, held and renewed by one of them.

lease = Lease(CoordinationV1Api(), namespace, name, identity)
lease.acquire()            # blocks until it is ours, then renews in the background
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import urllib3
from kubernetes.client.exceptions import ApiException

log = logging.getLogger(__name__)


class Lease:
    """A lease of `seconds`. It counts as lost when it could not be renewed for that long, or another one holds it.

    Whether another holder's has run out is judged by this machine's clock from when it was last seen to change.
    """

    def __init__(
        self,
        api: Any,  # CoordinationV1Api
        namespace: str,
        name: str,
        identity: str,
        *,
        seconds: int = 15,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._api, self._namespace, self._name, self._identity = api, namespace, name, identity
        self._seconds, self._clock, self._sleep = seconds, clock, sleep
        self._seen: tuple[Any, float] = (None, 0.0)  # another's renewal, and when we first saw it
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
        try:
            found = self._api.read_namespaced_lease(self._name, self._namespace, _request_timeout=(3, 5))
        except ApiException as error:
            if error.status != 404:
                return self._failed(error)
            found = None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            return self._failed(error)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": self._identity, "leaseDurationSeconds": self._seconds, "renewTime": now}
        try:
            if found is None:
                body = {"metadata": {"name": self._name, "namespace": self._namespace}, "spec": spec}
                self._api.create_namespaced_lease(self._namespace, body, _request_timeout=(3, 5))
            else:
                holder = found.spec.holder_identity
                if holder and holder != self._identity and not self._ran_out(found):
                    self.held = False
                    return False
                # The version makes it fail where another one was faster.
                body = {
                    "metadata": {"name": self._name, "resourceVersion": found.metadata.resource_version},
                    "spec": spec,
                }
                self._api.replace_namespaced_lease(self._name, self._namespace, body, _request_timeout=(3, 5))
        except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
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
        try:
            self._api.patch_namespaced_lease(self._name, self._namespace, change, _request_timeout=(3, 5))
        except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
            self._failed(error)

    def _ran_out(self, found: Any) -> bool:
        mark = (found.spec.holder_identity, found.spec.renew_time)
        if self._seen[0] != mark:
            self._seen = (mark, self._clock())
        return self._clock() - self._seen[1] > (found.spec.lease_duration_seconds or self._seconds)

    def _renew(self) -> None:
        renewed = self._clock()
        while not self._done.wait(self._seconds / 5):
            if self.take():
                renewed = self._clock()
            elif not self._done.is_set() and self._clock() - renewed > self._seconds:
                self.held = False
                self.on_lost()
                return

    def _failed(self, error: Exception) -> bool:
        why = error.reason if isinstance(error, ApiException) else type(error).__name__
        log.warning("the lease could not be taken now: %s", why)
        return False
