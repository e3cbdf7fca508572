"""Why an artifact has to be made anew: how its recipe and inputs differ from those of the nearest one there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nanochat.storage.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Near:
    """The nearest artifact.

    `settings` maps fields of the recipe, by their path with dots, to what they were and what is wanted (None where
    absent); `inputs` names the inputs that are others. Both are empty where only the files were damaged.
    """

    manifest: Manifest
    settings: dict[str, tuple[Any, Any]]
    inputs: tuple[str, ...]

    @property
    def distance(self) -> int:
        """In how much it differs."""
        return len(self.settings) + len(self.inputs)


def nearest(manifests: Iterable[Manifest], recipe: Mapping[str, Any], inputs: Mapping[str, str]) -> Near | None:
    """Of `manifests` the one that differs in the fewest fields and inputs; the first of several."""
    wanted = dict(_flat(recipe))
    found: Near | None = None
    for manifest in manifests:
        there = dict(_flat(manifest.recipe))
        near = Near(
            manifest=manifest,
            settings={
                field: (there.get(field), wanted.get(field))
                for field in sorted(there.keys() | wanted.keys())
                if there.get(field) != wanted.get(field)
            },
            inputs=tuple(
                name
                for name in sorted(manifest.inputs.keys() | inputs.keys())
                if manifest.inputs.get(name) != inputs.get(name)
            ),
        )
        if found is None or near.distance < found.distance:
            found = near
    return found


def _flat(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Fields of nested objects, as (path with dots, value); tuples as the lists that JSON makes of them."""
    for key, item in value.items():
        at = f"{path}.{key}" if path else str(key)
        if isinstance(item, Mapping):
            yield from _flat(item, at)
        else:
            yield at, list(item) if isinstance(item, tuple) else item
