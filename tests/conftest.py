"""Fixtures that all areas share."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from s3_server import S3Server
from store_servers import AzureServer, GcsServer, StoreServer, serving

from nanochat.runtime.threads import cores

# Tests compute little, and some run side by side: threads would wait for each other. PyTorch reads it on its import.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where byte code is not written, each of the hundreds of processes that tests start would compile the project anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# What starts tests in the background may ignore these, and so would each process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# How long an example takes says more of the machine than of what is tested.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

gc.disable()


def pytest_collection_finish() -> None:
    """What was imported until now stays, so that the garbage collector need not look at it."""
    gc.freeze()
    gc.enable()


def pytest_make_parametrize_id(val: object) -> str | None:
    """The name of a parameter of bytes: its length, for what it holds may differ from process to process.

    gzip writes the time into its header, and processes that run side by side must have found the same names.
    """
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, for a third of their time tests wait for processes that start or end."""
    return cores() + 1


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


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    """A running server of Google Cloud Storage that has the bucket."""
    with GcsServer.start(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture(scope="session")
def azure_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    """A running server of Azure Blob Storage that has the container."""
    with AzureServer.start(tmp_path_factory.mktemp("azure")) as server:
        yield server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[StoreServer]:
    """A server that a test may stop: it keeps what it holds, honours exclusive creation and checks credentials."""
    with serving(tmp_path) as server:
        yield server
