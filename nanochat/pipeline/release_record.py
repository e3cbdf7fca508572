"""The outcome of a release, as its artifact's manifest tells it: for the commands, status and gc.

record = ReleaseRecord.of(manifest.metadata)      # None where the artifact tells nothing
record.sentence                                   # "version 3 of nanochat is registered and became champion: ..."
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

METADATA = "release"  # the manifest's metadata that holds the record
_LONGEST = 500  # characters of a text that is shown


@dataclass(frozen=True, slots=True)
class ReleaseRecord:
    """One release at the time when it was made; what happened to its version since, the registry tells."""

    model: str
    version: str  # '' where it was not registered
    promoted: bool  # whether it became champion
    reason: str  # why, or why not
    registry: str = ""  # address of the registry that has the version

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Self | None:
        """The record in an artifact's metadata; None where there is none that makes sense."""
        data = metadata.get(METADATA)
        if not isinstance(data, Mapping):
            return None
        model, version, reason = (data.get(name) for name in ("model", "version", "reason"))
        if not (isinstance(model, str) and isinstance(version, str) and isinstance(reason, str)):
            return None
        registry = data.get("registry")
        return cls(
            model[:_LONGEST],
            version[:_LONGEST],
            data.get("promoted") is True,
            reason[:_LONGEST],
            registry if isinstance(registry, str) else "",
        )

    def metadata(self) -> dict[str, Any]:
        """The record as the artifact's metadata."""
        return {METADATA: asdict(self)}

    @property
    def refused(self) -> bool:
        """Whether its gates kept it from becoming champion."""
        return bool(self.version) and not self.promoted

    @property
    def sentence(self) -> str:
        """For people."""
        if not self.version:
            return f"not registered: {self.reason}"
        came = "is registered and became champion" if self.promoted else "is registered and does not become champion"
        return f"version {self.version} of {self.model} {came}: {self.reason}"
