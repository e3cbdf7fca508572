"""What the tests of tracking share."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat.storage import Profile, Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store in a folder."""
    return open_store(Profile(root=str(tmp_path / "store")))


@pytest.fixture(scope="session")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One tracking database for all tests here: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
