"""Why an output has to be made: the closest artifact, and which settings or inputs differ."""

from __future__ import annotations

from collections.abc import Sequence

from nanochat.pipeline.graph import Output
from nanochat.storage.artifacts import Artifacts, Recent

SHOWN = 3
NEW = "nothing like it was made before"


def explain_miss(artifacts: Artifacts, missing: Sequence[Output], *, total: int, recent: Recent) -> str:
    """One line for a stage: what is missing of its `total` outputs, and how that differs from what is there. `recent`
    as in `Artifacts.closest`."""
    first = missing[0]
    count = f"{len(missing)} of {total} artifacts missing; " if total > 1 else ""
    damage = artifacts.damage((out.kind, out.key) for out in missing)
    for out in missing:
        if (out.kind, out.key) in damage:
            return f"{count}{out.ref}: {'; '.join(damage[out.kind, out.key])}"
    # Of a stage that makes one artifact: what other stages made of this kind, say the model of another, tells nothing.
    name = first.name if total == 1 else None
    wanted = dict(first.recipe) | {"name": first.name}
    near = artifacts.closest(first.kind, wanted, first.input_keys(), name=name, recent=recent)
    if near is None:
        return f"{count}{NEW}"
    changes = [f"{name} {_short(old)} -> {_short(new)}" for name, (old, new) in sorted(near.settings.items())]
    changes += [f"input {name} is another" for name in sorted(near.inputs)]
    more = f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
    return f"{count}changed: {', '.join(changes[:SHOWN])}{more}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
