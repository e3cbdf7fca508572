"""One suite over both kinds of store: a folder, and a real S3 server (versitygw, else moto's server)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nanochat.storage import Artifacts, Checkpoints, Profile, Store, open_store

BUCKET = "bucket"
USER, SECRET = "storage-test-user", "storage-test-secret"


@pytest.fixture(scope="session", autouse=True)
def _credentials() -> Iterator[None]:
    """The server's credentials, and none of this machine's."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in {
            "AWS_ACCESS_KEY_ID": USER,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        yield


def _versitygw(folder: Path) -> str | None:
    """The program on PATH, or unpacked from $NANOCHAT_TOOLS or the folder of tools beside the checkout."""
    found = shutil.which("versitygw")
    if found:
        return found
    beside = Path(__file__).resolve().parents[2] / ".." / "shared" / "cluster" / "bin"
    packed = Path(os.environ.get("NANOCHAT_TOOLS", beside)) / "versitygw.zst"
    zstd = shutil.which("zstd")
    if not packed.exists() or zstd is None:
        return None
    program = folder / "versitygw"
    subprocess.run([zstd, "-q", "-d", str(packed), "-o", str(program)], check=True)
    program.chmod(0o755)
    return str(program)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def _wait(endpoint: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the S3 server ended"
        try:
            urllib.request.urlopen(endpoint, timeout=5).close()
            return
        except urllib.error.HTTPError as error:
            error.close()
            return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(endpoint)


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory, _credentials: None) -> Iterator[str]:
    """The address of a running S3 server that has the bucket."""
    folder, port = tmp_path_factory.mktemp("s3"), _free_port()
    program = _versitygw(folder)
    data = folder / "data"
    (data / BUCKET).mkdir(parents=True)
    if program:
        command = [program, "--port", f"127.0.0.1:{port}", "posix", str(data)]
    else:
        pytest.importorskip("moto.server", reason="neither versitygw nor moto's server is installed")
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = os.environ | {"ROOT_ACCESS_KEY": USER, "ROOT_SECRET_KEY": SECRET}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _wait(endpoint, process)
        if program is None:
            # Moto checks no credentials, so that anybody can make the bucket.
            request = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
            urllib.request.urlopen(request, timeout=10).close()
        yield endpoint
    finally:
        process.terminate()
        process.wait(timeout=20)


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
