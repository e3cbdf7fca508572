"""One suite over both kinds of store: a folder, and a real S3 server (versitygw, else moto's server)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3_server import BUCKET, CREDENTIALS, S3Server

from nanochat.storage import Artifacts, Checkpoints, Profile, Store, open_store


@pytest.fixture(scope="session", autouse=True)
def _credentials() -> Iterator[None]:
    """The server's credentials, and none of this machine's."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def s3_endpoint(s3_server: S3Server) -> str:
    """The address of a running S3 server that has the bucket."""
    return s3_server.endpoint


@pytest.fixture(params=["folder", "s3"])
def profile(request: pytest.FixtureRequest, tmp_path: Path) -> Profile:
    """The profile of an empty store of each kind."""
    if request.param == "folder":
        return Profile(root=str(tmp_path / "store"))
    endpoint = request.getfixturevalue("s3_endpoint")
    return Profile(root=f"s3://{BUCKET}/{tmp_path.name}", endpoint=endpoint, region="us-east-1")


@pytest.fixture
def store(profile: Profile) -> Store:
    """An empty store of each kind."""
    return open_store(profile)


@pytest.fixture
def cache_folder(tmp_path: Path) -> Path:
    """An empty folder for the local cache."""
    return tmp_path / "cache"


@pytest.fixture
def artifacts(store: Store, cache_folder: Path) -> Artifacts:
    """No artifacts yet, in each kind of store."""
    return Artifacts(store, cache_folder)


@pytest.fixture
def checkpoints(store: Store, cache_folder: Path) -> Checkpoints:
    """No checkpoints yet, in each kind of store."""
    return Checkpoints(store, "base", "key", cache_folder)


@pytest.fixture
def overwrite(store: Store) -> Callable[[str, bytes], None]:
    """Change a file behind the back of those who wrote it."""

    def change(path: str, data: bytes) -> None:
        assert store.exists(path)
        store.write(path, data)

    return change
