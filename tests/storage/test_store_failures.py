"""Each failure of storage becomes one sentence that says what to change, and transient ones are tried again."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from store_servers import StoreServer

from nanochat.spec.errors import StorageError, UserError
from nanochat.storage import Artifacts, FileRecord, Profile, Store, failures, open_store
from nanochat.storage.failures import translate_errors, with_retries

STORES = ("s3", "gcs", "azure")


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


def test_slow_is_another_word_than_unreachable(waited: list[float]) -> None:
    with pytest.raises(StorageError, match="gave no answer in time"):
        _try(FakeOperation(*[TimeoutError()] * 9))
    assert waited == [1, 2, 4]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "no space"), "is full: free space"),
        (OSError(errno.EDQUOT, "quota"), "is full: free space"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "is full: free space"),
        (RuntimeError("I/O error: File too large (os error 27)"), "is full: free space"),
        (RuntimeError("I/O error: Disk quota exceeded (os error 122)"), "is full: free space"),
        (RuntimeError('I/O error: Permission denied (os error 13) at path "x"'), "no right for reading"),
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


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_an_error_that_a_library_has_in_words_alone_is_the_systems(number: int) -> None:
    error = RuntimeError(f"Error while serializing: I/O error: ... (os error {number})")
    with (
        pytest.raises(StorageError, match=rf"writing failed in x \(OSError {errno.errorcode[number]}\)"),
        translate_errors(doing="writing", where="x"),
    ):
        raise error
    with pytest.raises(FileNotFoundError) as missing, translate_errors(doing="writing", where="x"):
        raise RuntimeError('I/O error: No such file or directory (os error 2) at path "x/.tmp1"')
    assert missing.value.filename == "x"


OPERATIONS: tuple[Callable[[Store], object], ...] = (
    lambda store: store.check(),
    lambda store: store.read("x", 1 << 20),
    lambda store: store.size("x"),
    lambda store: store.list("x"),
    lambda store: store.children("x"),
    lambda store: store.write("x", b""),
    lambda store: store.delete("x"),
    lambda store: store.create("x", b""),
    lambda store: store.upload(Path(__file__), "x"),
    lambda store: store.download(FileRecord("x", 0, ""), Path(tempfile.gettempdir()) / "x"),
)


def test_refused_credentials_are_named_and_not_shown(server: StoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
    if not server.refused:
        pytest.skip("this server checks no credentials: install versitygw")
    for changes in server.refused:
        with monkeypatch.context() as patch:
            for name, value in changes.items():
                patch.setenv(name, value)
            store = open_store(server.profile("faults"))
            for operation in OPERATIONS:
                with pytest.raises(UserError, match="refuses these credentials") as caught:
                    operation(store)
                assert next(iter(changes)) in caught.value.message
                shown = "".join(traceback.format_exception(caught.value)) + repr(store) + caught.value.detail
                for secret in server.secrets:
                    assert secret not in shown


def test_missing_credentials_are_named(server: StoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    for name in server.credentials:
        if not name.startswith("AWS_CONFIG"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UserError, match="there are no credentials"):
        open_store(server.profile("faults")).check()


def test_credentials_in_a_folder_come_before_the_environment(
    server: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = server.write_credentials(tmp_path / "given")
    for name in server.credentials:
        monkeypatch.delenv(name)
    open_store(server.profile("faults"), credentials=folder).check()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="must hold the file"):
        open_store(server.profile("faults"), credentials=tmp_path / "empty").check()


def test_a_missing_bucket_is_named(server: StoreServer) -> None:
    root = server.profile().root.replace("bucket", "no-such-bucket")
    store = open_store(replace(server.profile(), root=f"{root}/x"))
    for operation in OPERATIONS:
        with pytest.raises(UserError, match=f"there is no (bucket|container) for {root}"):
            operation(store)


@pytest.mark.parametrize("scheme", ["s3", "gs", "abfs"])
def test_credentials_in_the_profile_are_refused(scheme: str) -> None:
    with pytest.raises(UserError, match=r"endpoint: .*environment variables or a Secret") as caught:
        open_store(Profile(root=f"{scheme}://bucket", endpoint="http://me:hidden@host"))
    assert "hidden" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "value"), [("GOOGLE_CREDENTIALS", "{hidden"), ("AZURE_STORAGE_ACCOUNT_KEY", "hidden")]
)
def test_credentials_that_are_none_are_not_shown(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    profile = Profile(root="gs://bucket" if name.startswith("GOOGLE") else "abfs://bucket", endpoint="https://host")
    with pytest.raises(UserError, match=f"{name} is not ") as caught:
        open_store(profile).read("x", 1 << 20)
    assert "hidden" not in "".join(traceback.format_exception(caught.value))


def test_an_extra_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for scheme, library, extra in (("gs", "gcsfs.core", "gcs"), ("abfs", "adlfs", "azure")):
        monkeypatch.setitem(sys.modules, library, None)
        monkeypatch.delitem(sys.modules, f"nanochat.storage.backends.{extra}", raising=False)
        with pytest.raises(UserError, match=rf"pip install '\.\[{extra}\]'"):
            open_store(Profile(root=f"{scheme}://bucket"))


def test_an_endpoint_that_does_not_answer_is_named(server: StoreServer, waited: list[float]) -> None:
    with socket.socket() as bound:  # but it does not listen
        bound.bind(("127.0.0.1", 0))
        store = open_store(replace(server.profile(), endpoint=f"http://127.0.0.1:{bound.getsockname()[1]}"))
        with pytest.raises(StorageError, match="does not answer: check the endpoint"):
            store.read("x", 1 << 20)
    assert waited == list(failures.DELAYS)


class FaultyProxy:
    """Passes connections on to a server, but for some requests only what the client says, or answers itself."""

    def __init__(self, server: StoreServer) -> None:
        address = urlsplit(server.endpoint)
        self._target = (address.hostname, address.port)
        self._server = socket.create_server(("127.0.0.1", 0))
        port = self._server.getsockname()[1]
        self.profile = replace(server.profile("faults"), endpoint=f"http://127.0.0.1:{port}{address.path}")
        self.lose: Callable[[bytes], bool] = lambda request: False
        self.lost = 0
        self.answers: list[int] = []  # the status of each answer that it gives itself

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
        if self.answers and client.recv(65_536):
            answer = f"HTTP/1.1 {self.answers.pop()} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            client.sendall(answer.encode())
            client.close()
            return
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


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_server_that_fails_is_asked_again(server: StoreServer, waited: list[float], status: int) -> None:
    proxy = FaultyProxy(server)
    open_store(server.profile("faults")).write("x", b"content")
    proxy.answers = [status] * 4
    with proxy.running():
        assert open_store(proxy.profile).read("x", 1 << 20) == b"content"
    assert waited and waited == list(failures.DELAYS[: len(waited)])
    assert not proxy.answers


@pytest.mark.parametrize("status", [401, 403])
def test_a_right_that_is_missing_is_named(server: StoreServer, waited: list[float], status: int) -> None:
    proxy = FaultyProxy(server)
    proxy.answers = [status] * 9
    with proxy.running(), pytest.raises(UserError, match="refuses these credentials for reading: correct"):
        open_store(proxy.profile).read("x", 1 << 20)
    assert waited == []


@pytest.mark.parametrize("losses", [1, 3])
def test_a_creation_whose_answer_was_lost_counts(server: StoreServer, losses: int) -> None:
    proxy = FaultyProxy(server)
    proxy.lose = lambda request: request.startswith((b"PUT", b"POST")) and proxy.lost < losses
    with proxy.running():
        store = open_store(proxy.profile)
        assert store.create(f"lost-{losses}", b"mine")
        assert proxy.lost == losses
        assert not store.create(f"lost-{losses}", b"mine")


def test_transfers_survive_lost_connections(server: StoreServer, tmp_path: Path) -> None:
    proxy = FaultyProxy(server)
    requests = iter(range(1_000_000))
    # fake-gcs-server appends a part that is sent again, which Google's drops: the whole upload has to be tried again.
    most = 4 if server.scheme == "gs" else 1_000
    proxy.lose = lambda request: (
        proxy.lost < most and request.startswith((b"PUT", b"GET", b"POST")) and next(requests) % 3 == 0
    )
    (tmp_path / "local").write_bytes(os.urandom(40 << 20))
    with proxy.running():
        store = open_store(proxy.profile)
        record = store.upload(tmp_path / "local", "file")
        store.download(record, tmp_path / "back")
    assert proxy.lost > 0
    assert (tmp_path / "back").read_bytes() == (tmp_path / "local").read_bytes()


def test_big_files_take_little_memory(server: StoreServer, tmp_path: Path) -> None:
    """A file of 192 MiB goes both ways with at most 128 MiB more than a small one needs."""
    program = (
        "import json, psutil, sys, threading, time\nfrom pathlib import Path\n"
        "from nanochat.storage import Profile, open_store\n"
        "store, folder = open_store(Profile(**json.loads(sys.argv[1]))), Path(sys.argv[2])\n"
        "seen, process = [0], psutil.Process()\n"
        "def watch():\n"
        "    while True:\n"
        "        seen[0] = max(seen[0], process.memory_info().rss >> 20)\n"
        "        time.sleep(0.005)\n"
        "threading.Thread(target=watch, daemon=True).start()\n"
        "def peak(name):\n"
        "    store.download(store.upload(folder / name, f'memory/{name}'), folder / 'back')\n"
        "    return seen[0]\n"
        "small = peak('small')\n"
        "print(peak('big') - small)\n"
    )
    (tmp_path / "small").write_bytes(b"1")
    with (tmp_path / "big").open("wb") as file:
        for _ in range(12):
            file.write(os.urandom(16 << 20))
    command = [sys.executable, "-c", program, json.dumps(asdict(server.profile())), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 128


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
    assert store.read("file", 1 << 20) == b"before"
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


def test_a_full_disk_under_the_cache_is_named(server: StoreServer, tmp_path: Path) -> None:
    artifacts = Artifacts(open_store(server.profile("full")), tmp_path / "cache")
    with artifacts.writer("model", "key", "launch") as writer:
        (writer.folder / "weights").write_bytes(bytes(100_000))
        manifest = writer.commit(recipe={}, inputs={})
    with _small_disk(1000), pytest.raises(UserError, match=r"cache.* is full"):
        artifacts.fetch(manifest)
    assert (artifacts.fetch(manifest) / "weights").read_bytes() == bytes(100_000)


def test_nothing_of_object_storage_is_imported_for_a_folder() -> None:
    program = (
        "import sys\nfrom nanochat.storage import Profile, open_store\nopen_store(Profile(root='x'))\n"
        "unwanted = {'s3fs', 'gcsfs', 'adlfs', 'botocore', 'google', 'azure', 'aiohttp', 'torch'}\n"
        "print(sorted(unwanted & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
