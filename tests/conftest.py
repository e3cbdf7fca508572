"""Fixtures that all areas share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The data mirror with the hub's layout; skips where there is none."""
    beside = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "mirror"
    path = Path(os.environ.get("NANOCHAT_MIRROR", beside)).resolve()
    if not (path / "datasets").is_dir():
        pytest.skip("no data mirror: set NANOCHAT_MIRROR")
    return path
