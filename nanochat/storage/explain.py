"""Why an artifact has to be made anew: what its recipe has that the nearest one there has not.

near = closest(recent(artifacts, "tokenizer"), recipe)
if near is not None:
    print(near.sentence())      # vocabSize 1024 -> 2048
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nanochat.storage.artifacts import MANIFEST, ROOT, Artifacts
from nanochat.storage.manifest import Damaged, Manifest, check_name

log = logging.getLogger(__name__)

SMALL = 1 << 20  # bytes; larger manifests are not read only to explain something
SHOWN = 60  # characters of a value

_DIGEST = re.compile(r"(sha256:)?[0-9a-f]{32,}")
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Difference:
    """A field of the recipe, by its path with dots, as it was and as it is wanted; None where it is absent."""

    field: str
    before: Any
    after: Any

    def __str__(self) -> str:
        if any(isinstance(value, str) and _DIGEST.fullmatch(value) for value in (self.before, self.after)):
            return f"{self.field} changed"
        return f"{self.field} {_short(self.before)} -> {_short(self.after)}"


@dataclass(frozen=True, slots=True)
class Near:
    """The nearest artifact and where its recipe differs."""

    manifest: Manifest
    differences: tuple[Difference, ...]

    def sentence(self, most: int = 3) -> str:
        """The differences in one line."""
        shown = [str(difference) for difference in self.differences[:most]]
        more = len(self.differences) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "")


def recent(artifacts: Artifacts, kind: str, most: int = 100) -> list[Manifest]:
    """The newest readable manifests of a kind."""
    entries = [
        entry
        for entry in artifacts.store.list(f"{ROOT}/{check_name(kind)}")
        if entry.path.count("/") == 3 and entry.path.endswith(f"/{MANIFEST}") and entry.size <= SMALL
    ]
    entries.sort(key=lambda entry: entry.modified, reverse=True)
    manifests: list[Manifest] = []
    for entry in entries[:most]:
        try:
            manifests.append(Manifest.from_bytes(artifacts.store.read(entry.path)))
        except (Damaged, FileNotFoundError):
            # Those who look for this very artifact are warned; here it is only not a help.
            log.debug("%s is passed over", entry.path)
    return manifests


def closest(manifests: Iterable[Manifest], recipe: Mapping[str, Any]) -> Near | None:
    """Of `manifests` the one whose recipe differs in the fewest fields; the first of several."""
    wanted = dict(_flat(recipe))
    nearest: Near | None = None
    for manifest in manifests:
        there = dict(_flat(manifest.recipe))
        fields = sorted(there.keys() | wanted.keys())
        differences = tuple(
            Difference(field=field, before=there.get(field), after=wanted.get(field))
            for field in fields
            if there.get(field, _ABSENT) != wanted.get(field, _ABSENT)
        )
        if nearest is None or len(differences) < len(nearest.differences):
            nearest = Near(manifest=manifest, differences=differences)
    return nearest


def _flat(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Fields of nested objects, as (path with dots, value); tuples as the lists that JSON makes of them."""
    for key, item in value.items():
        at = f"{path}.{key}" if path else str(key)
        if isinstance(item, Mapping):
            yield from _flat(item, at)
        else:
            yield at, list(item) if isinstance(item, tuple) else item


def _short(value: Any) -> str:
    text = "(none)" if value is None else str(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
