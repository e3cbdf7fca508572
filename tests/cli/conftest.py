"""Homes in which the small pipeline has run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from once import once
from small_pipeline import PIPELINE, nanochat


def run_pipeline(folder: Path) -> None:
    """Run the small pipeline to its end in an empty home."""
    (folder / "small.yaml").write_text(PIPELINE)
    done = nanochat(folder, "run", "small.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the pipeline has run to its end; nothing is changed in it."""
    return once(tmp_path_factory, "trained", run_pipeline)


@pytest.fixture(scope="module")
def home(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of that home for the tests of one file."""
    return shutil.copytree(trained, tmp_path_factory.mktemp("home"), dirs_exist_ok=True)
