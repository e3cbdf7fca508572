"""Each failure of storage becomes one sentence that says what to change, and transient ones are tried again."""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from nanochat.spec.errors import StorageError, UserError
from nanochat.storage import Artifacts, Profile, failures, open_store
from nanochat.storage.failures import translate_errors, with_retries


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited between tries; nobody waits really."""
    seconds: list[float] = []
    monkeypatch.setattr(failures, "sleep", seconds.append)
    return seconds


class FakeOperation:
    """Raises each of the given errors once, then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def __call__(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def _try(operation: Callable[[], str]) -> str:
    return with_retries(operation, doing="reading", where="s3://b/x", delays=(1, 2, 4))


def test_transient_errors_are_tried_again_with_growing_delay(waited: list[float]) -> None:
    operation = FakeOperation(ConnectionResetError(), TimeoutError(), OSError(errno.ESTALE, "stale"))
    assert _try(operation) == "done"
    assert waited == [1, 2, 4]


def test_trying_again_ends(waited: list[float]) -> None:
    with pytest.raises(StorageError, match="does not answer: check the endpoint"):
        _try(FakeOperation(*[ConnectionRefusedError()] * 9))
    assert waited == [1, 2, 4]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "no space"), "is full: free space"),
        (OSError(errno.EDQUOT, "quota"), "is full: free space"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "is full: free space"),
        (PermissionError(errno.EACCES, "no"), "no right for reading"),
        (OSError(errno.EROFS, "read-only"), "no right for reading"),
        (NotADirectoryError(), "is a file where a folder should be"),
    ],
)
def test_what_the_user_has_to_change_is_not_tried_again(waited: list[float], error: Exception, message: str) -> None:
    with pytest.raises(UserError, match=message), translate_errors(doing="reading", where="x"):
        _try(FakeOperation(error))
    assert waited == []


def test_programming_errors_and_missing_files_pass() -> None:
    for error in (KeyError("x"), FileNotFoundError("x")):
        with pytest.raises(type(error)), translate_errors(doing="reading", where="x"):
            _try(FakeOperation(error))


def _s3(endpoint: str, root: str = "s3://bucket/faults") -> Profile:
    return Profile(root=root, endpoint=endpoint, region="us-east-1")


def _needs_credentials_checked(endpoint: str) -> None:
    """Moto's server lets everybody in; versitygw does not."""
    host, port = endpoint.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        if b" 200 " in connection.recv(64):
            pytest.skip("this server checks no credentials")


@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_refused_credentials_are_named_and_not_shown(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    _needs_credentials_checked(s3_endpoint)
    secrets = ("not-to-be-seen", os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    monkeypatch.setenv(wrong, "not-to-be-seen")
    store = open_store(_s3(s3_endpoint))
    for operation in (store.check, lambda: store.read("x"), lambda: store.list("x"), lambda: store.write("x", b"")):
        with pytest.raises(UserError, match="refuses these credentials") as caught:
            operation()
        shown = "".join(traceback.format_exception(caught.value)) + repr(store) + caught.value.detail
        for secret in secrets:
            assert secret not in shown


def test_missing_credentials_are_named(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match="there are no credentials"):
        open_store(_s3(s3_endpoint)).check()


def test_a_missing_bucket_is_named(s3_endpoint: str) -> None:
    store = open_store(_s3(s3_endpoint, "s3://no-such-bucket/x"))
    for operation in (store.check, lambda: store.read("x"), lambda: store.list("x"), lambda: store.write("x", b"")):
        with pytest.raises(UserError, match="there is no bucket for s3://no-such-bucket"):
            operation()


def test_credentials_in_the_profile_are_refused() -> None:
    with pytest.raises(UserError, match="AWS_ACCESS_KEY_ID") as caught:
        open_store(Profile(root="s3://bucket", endpoint="http://me:hidden@host"))
    assert "hidden" not in caught.value.message


def test_an_endpoint_that_does_not_answer_is_named(waited: list[float]) -> None:
    with socket.socket() as bound:  # but it does not listen
        bound.bind(("127.0.0.1", 0))
        store = open_store(_s3(f"http://127.0.0.1:{bound.getsockname()[1]}"))
        with pytest.raises(StorageError, match="does not answer: check the endpoint"):
            store.read("x")
    assert waited == list(failures.DELAYS)


class FaultyProxy:
    """Passes connections on to a server, but for some requests only what the client says."""

    def __init__(self, endpoint: str) -> None:
        host, port = endpoint.removeprefix("http://").split(":")
        self._target = (host, int(port))
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.lose: Callable[[bytes], bool] = lambda request: False
        self.lost = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        threading.Thread(target=self._accept, daemon=True).start()
        try:
            yield
        finally:
            self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server:
            lost = threading.Event()
            answers = threading.Thread(target=self._answer, args=(client, server, lost), daemon=True)
            answers.start()
            with suppress(OSError):
                while data := client.recv(65_536):
                    if self.lose(data):
                        lost.set()
                    server.sendall(data)
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            answers.join()

    def _answer(self, client: socket.socket, server: socket.socket, lost: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(65_536):
                if lost.is_set():
                    self.lost += 1
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(data)


@pytest.mark.parametrize("losses", [1, 3])
def test_a_creation_whose_answer_was_lost_counts(s3_endpoint: str, losses: int) -> None:
    proxy = FaultyProxy(s3_endpoint)
    proxy.lose = lambda request: request.startswith(b"PUT") and proxy.lost < losses
    with proxy.running():
        store = open_store(_s3(proxy.endpoint, f"s3://bucket/lost-{losses}"))
        assert store.create("manifest.json", b"mine")
        assert proxy.lost == losses
        assert not store.create("manifest.json", b"mine")


def test_transfers_survive_lost_connections(s3_endpoint: str, tmp_path: Path) -> None:
    proxy = FaultyProxy(s3_endpoint)
    requests = iter(range(1_000_000))
    proxy.lose = lambda request: request.startswith((b"PUT", b"GET", b"POST")) and next(requests) % 3 == 0
    (tmp_path / "local").write_bytes(os.urandom(40 << 20))
    with proxy.running():
        store = open_store(_s3(proxy.endpoint))
        record = store.upload(tmp_path / "local", "file")
        store.download(record, tmp_path / "back")
    assert proxy.lost > 0
    assert (tmp_path / "back").read_bytes() == (tmp_path / "local").read_bytes()


@contextmanager
def _small_disk(limit: int) -> Iterator[None]:
    """No file can grow beyond `limit` bytes: the kernel refuses as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    store = open_store(Profile(root=str(tmp_path / "store")))
    store.write("file", b"before")
    (tmp_path / "local").write_bytes(bytes(100_000))
    with _small_disk(1000):
        for operation in (
            lambda: store.write("file", bytes(100_000)),
            lambda: store.create("other", bytes(100_000)),
            lambda: store.upload(tmp_path / "local", "other"),
        ):
            with pytest.raises(UserError, match="is full: free space there, then run again"):
                operation()
    assert store.read("file") == b"before"
    assert [entry.path for entry in store.list()] == ["file"]
    assert not store.leftovers()


def test_a_full_disk_under_a_writer_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    artifacts = Artifacts(open_store(Profile(root=str(tmp_path / "store"))), tmp_path / "cache")
    with (
        _small_disk(1000),
        pytest.raises(UserError, match="is full"),
        artifacts.writer("model", "key", "launch") as writer,
    ):
        (writer.folder / "weights").write_bytes(bytes(100_000))
    assert artifacts.find("model", "key") is None
    assert not artifacts.store.list()


def test_a_full_disk_under_the_cache_is_named(s3_endpoint: str, tmp_path: Path) -> None:
    artifacts = Artifacts(open_store(_s3(s3_endpoint, "s3://bucket/full")), tmp_path / "cache")
    with artifacts.writer("model", "key", "launch") as writer:
        (writer.folder / "weights").write_bytes(bytes(100_000))
        manifest = writer.commit(recipe={}, inputs={})
    with _small_disk(1000), pytest.raises(UserError, match=r"cache.* is full"):
        artifacts.fetch(manifest)
    assert (artifacts.fetch(manifest) / "weights").read_bytes() == bytes(100_000)


def test_nothing_of_s3_is_imported_for_a_folder() -> None:
    program = (
        "import sys\nfrom nanochat.storage import Profile, open_store\nopen_store(Profile(root='x'))\n"
        "print(sorted({'s3fs', 'aiobotocore', 'botocore', 'aiohttp', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
