"""Fixtures that all areas share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import S3Server


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The data mirror with the hub's layout; skips where there is none."""
    beside = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "mirror"
    path = Path(os.environ.get("NANOCHAT_MIRROR", beside)).resolve()
    if not (path / "datasets").is_dir():
        pytest.skip("no data mirror: set NANOCHAT_MIRROR")
    return path


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running S3 server that has the bucket."""
    with S3Server.start(tmp_path_factory.mktemp("s3")) as server:
        yield server
