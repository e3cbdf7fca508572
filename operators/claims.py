"""Which of several pipelines makes an artifact that more than one needs: the oldest that is at it.

Every pipeline says after each reconciliation which keys it is making or waits to make. A younger pipeline waits for
those; when the older one has made them, failed, was suspended or deleted, it goes on. A pipeline that was seen but not
reconciled yet may want anything, so that younger ones start nothing until it was (after a restart, most of all).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

Age = tuple[str, str]  # creationTimestamp (RFC 3339, UTC) and uid: the smaller is the older


@dataclass(slots=True)
class _Claim:
    name: str
    age: Age
    root: str = ""
    keys: frozenset[str] = field(default_factory=frozenset)
    settled: bool = False  # it was reconciled


class Claims:
    """The claims of all pipelines; safe to use from several threads."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        """`changed` is called after a pipeline let go of keys, so that those that wait look again."""
        self._changed = changed
        self._lock = threading.Lock()
        self._claims: dict[str, _Claim] = {}

    def expect(self, uid: str, name: str, created: str) -> None:
        """There is a pipeline, which will say what it makes."""
        with self._lock:
            self._claims.setdefault(uid, _Claim(name=name, age=(created, uid)))

    def settle(self, uid: str, root: str = "", keys: Collection[str] = ()) -> None:
        """Claim keys, in the store at `root`, that a pipeline makes or is about to make."""
        with self._lock:
            claim = self._claims.get(uid)
            if claim is None:
                return
            freed = not claim.settled or not claim.keys <= set(keys)
            claim.root, claim.keys, claim.settled = root, frozenset(keys), True
        if freed:
            self._changed()

    def drop(self, uid: str) -> None:
        """A pipeline is gone."""
        with self._lock:
            gone = self._claims.pop(uid, None)
        if gone is not None:
            self._changed()

    def unsettled(self, uid: str) -> str:
        """The name of an older pipeline whose wants are not known yet, or ''."""
        with self._lock:
            own = self._claims[uid].age
            return next((c.name for c in self._claims.values() if c.age < own and not c.settled), "")

    def elsewhere(self, uid: str, root: str, keys: Collection[str]) -> Mapping[str, str]:
        """Of these keys those that an older pipeline makes, with its name."""
        with self._lock:
            own = self._claims[uid].age
            older = sorted(
                (c for c in self._claims.values() if c.age < own and c.root == root), key=lambda c: c.age, reverse=True
            )
            return {key: claim.name for claim in older for key in claim.keys.intersection(keys)}
