"""Findings of `nanochat doctor`, of this machine or of a cluster, and how they are shown.

yield Check("storage", "fail", "s3://bucket does not answer", "check the endpoint")
raise typer.Exit(show(checks, as_json=False))
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `level` is ok, skip (it could not be looked at), warn or fail; `advice` says what to do."""

    name: str
    level: str
    found: str
    advice: str = ""


def show(checks: Iterable[Check], *, as_json: bool) -> int:
    """Print each check as it comes, or all of them as JSON; returns 1 where one failed, else 0."""
    shown = list[Check]()
    for check in checks:
        shown.append(check)
        if as_json:
            continue
        print(f"{check.level:<5} {check.name:<11} {check.found}", flush=True)
        if check.advice:
            print(f"{'':<18}{check.advice}", flush=True)
    if as_json:
        print(json.dumps([asdict(check) for check in shown], indent=2, ensure_ascii=False))
    return 1 if any(check.level == "fail" for check in shown) else 0
