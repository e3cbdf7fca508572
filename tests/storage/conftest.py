"""One suite over all kinds of store: a folder, and real servers of S3, Google Cloud Storage and Azure.

A module with `STORES` runs on those that it names, the others on a folder and S3: what they try knows of no backend.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from store_servers import OURS, StoreServer

from nanochat.storage import Artifacts, Checkpoints, Profile, Store, open_store


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    stores = getattr(metafunc.module, "STORES", ("folder", "s3"))
    for name in {"profile", "server"} & set(metafunc.fixturenames):
        kinds = stores if name == "profile" else [kind for kind in stores if kind != "folder"]
        metafunc.parametrize(name, kinds, indirect=True)


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of this machine's credentials."""
    for name in [name for name in os.environ if name.startswith(OURS)]:
        monkeypatch.delenv(name)


def _server(request: pytest.FixtureRequest, kind: str) -> StoreServer:
    server: StoreServer = request.getfixturevalue(f"{kind}_server")
    monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    for name, value in server.credentials.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def server(request: pytest.FixtureRequest, _no_credentials: None) -> StoreServer:
    """A server of each kind of object storage, with its credentials in the environment."""
    return _server(request, request.param)


@pytest.fixture
def profile(request: pytest.FixtureRequest, _no_credentials: None, tmp_path: Path) -> Profile:
    """The profile of an empty store of each kind."""
    if request.param == "folder":
        return Profile(root=str(tmp_path / "store"))
    return _server(request, request.param).profile(tmp_path.name)


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
