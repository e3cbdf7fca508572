"""A home in which the small pipeline has run."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_pipeline import PIPELINE, nanochat


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the pipeline has run to its end once."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "small.yaml").write_text(PIPELINE)
    done = nanochat(folder, "run", "small.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder
