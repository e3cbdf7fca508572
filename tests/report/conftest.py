"""What the tests of reports share."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_run import FakeRun, whole_run


@pytest.fixture(scope="session")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One tracking database for all tests here: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    """A run with every kind of thing in it."""
    return whole_run(tmp_path)
