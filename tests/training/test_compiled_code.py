"""Compiled code on one machine and on two: who may load whose, and what happens where the store is no help."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from s3_server import S3Server

from nanochat.model.sizes import ModelConfig
from nanochat.runtime.compiler import cxx_compiler
from nanochat.spec.errors import StorageError
from nanochat.storage import Artifacts, Profile, open_store
from nanochat.training import compiled_code
from nanochat.training.compiled_code import ARCHIVE, KEY, KIND, PLACE, CompiledCode, pack, program, unpack

MODEL = ModelConfig.from_depth(2, width=64, head_dim=32, vocab_size=640, sequence_length=32)
PROGRAM = program(MODEL, torch.device("cpu"), rows=4)
OURS, THEIRS = "k" * 32, "another key of another namespace"


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is as it was in the end."""
    monkeypatch.setenv(PLACE, "")
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "")
    monkeypatch.setenv(KEY, OURS)
    monkeypatch.setattr(compiled_code, "skip_headers", lambda: None)
    monkeypatch.setattr(compiled_code, "SECONDS", 600.0)


@pytest.fixture(params=["folder", "s3"])
def profile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Profile:
    if request.param == "folder":
        return Profile(root=str(tmp_path / "store"))
    server: S3Server = request.getfixturevalue("s3_server")
    for name, value in server.credentials.items():
        monkeypatch.setenv(name, value)
    return server.profile(tmp_path.name)


@pytest.fixture
def machine(profile: Profile, tmp_path: Path) -> Callable[..., Machine]:
    """Machines by name, each with a cache of its own and all with one store."""
    return lambda name="first", program=PROGRAM: Machine(
        CompiledCode(Artifacts(open_store(profile), tmp_path / name), f"01-{name}", program)
    )


class Machine:
    """Where a model is compiled once."""

    def __init__(self, code: CompiledCode) -> None:
        self.code = code

    def begin(self, *, key: str = OURS) -> Path:
        """What a launch does before it compiles -> the folder that PyTorch uses."""
        os.environ.pop(PLACE, None)
        os.environ[KEY] = key
        self.code.prepare()
        return Path(os.environ[PLACE])

    def compile(self, **options: Any) -> Path:
        """Begin, compile and share."""
        folder = self.begin(**options)
        (folder / "ab").mkdir(exist_ok=True)
        (folder / "ab" / "kernel.so").write_bytes(b"code")
        (folder / "ab" / "kernel.lock").touch()
        self.code.share()
        for thread in threading.enumerate():
            if thread.name == "compiled-code":
                thread.join()
        return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


Machines = Callable[..., Machine]


def test_code_is_kept_on_the_machine_and_crosses_to_those_with_the_key(machine: Machines) -> None:
    first = machine().compile()
    assert machine().begin() == first and (first / "ab" / "kernel.so").read_bytes() == b"code"
    second = machine("second").begin()
    assert second != first and names(second) == ["asked", "kernel.so", "whole"]
    assert (second / "ab" / "kernel.so").read_bytes() == b"code"


def test_without_a_key_code_stays_where_it_was_made(machine: Machines) -> None:
    first = machine()
    assert first.compile(key="") == machine().begin(key="")
    assert not first.code.artifacts.store.list()
    assert names(machine("second").begin(key="")) == []


def test_a_key_that_can_be_guessed_is_not_used(machine: Machines, caplog: pytest.LogCaptureFixture) -> None:
    first = machine()
    first.compile(key="secret")
    assert not first.code.artifacts.store.list()
    assert (
        "NANOCHAT_CODE_KEY is not used, so that each machine compiles anew: give it 32 characters or more"
        in caplog.text
    )


def test_another_namespace_neither_reads_nor_replaces_it(machine: Machines) -> None:
    machine().compile()
    other = machine("other")
    assert names(other.begin(key=THEIRS)) == ["asked"]
    (other.compile(key=THEIRS) / "ab" / "kernel.so").write_bytes(b"theirs")
    assert (machine("second").begin() / "ab" / "kernel.so").read_bytes() == b"code"


@pytest.mark.parametrize("change", ["torch", "python", "package", "cpu", "gpu", "threads", "model", "rows"])
def test_code_of_another_program_or_machine_is_not_taken(machine: Machines, change: str) -> None:
    machine().compile()
    assert names(machine("second", PROGRAM | {change: "another"}).begin()) == ["asked"]


def forge(code: CompiledCode, archive: bytes, signature: str) -> None:
    """What someone writes who may write to the store and has no key."""
    name = code._name(OURS.encode())
    code.artifacts.remove(KIND, name)
    with code.artifacts.writer(KIND, name, "forged") as writer:
        (writer.folder / ARCHIVE).write_bytes(archive)
        writer.commit(recipe={}, inputs={}, metadata={"signature": signature})


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_forged_code_is_passed_over(machine: Machines, caplog: pytest.LogCaptureFixture) -> None:
    first = machine()
    first.compile()
    manifest = first.code.artifacts.find(KIND, first.code._name(OURS.encode()))
    assert manifest is not None
    for signature in ("", "é", str(manifest.metadata["signature"])):
        caplog.clear()
        forge(first.code, zipped({"ab/kernel.so": b"evil"}), signature)
        assert names(machine(f"second{len(signature)}").begin()) == ["asked"]
        assert "was not signed with NANOCHAT_CODE_KEY" in caplog.text


def test_damaged_code_is_told_and_stored_anew(machine: Machines, caplog: pytest.LogCaptureFixture) -> None:
    first = machine()
    first.compile()
    store = first.code.artifacts.store
    (path,) = [entry.path for entry in store.list() if entry.path.endswith(ARCHIVE)]
    store.write(path, b"x" * (store.size(path) or 0))
    second = machine("second")
    assert names(second.begin()) == ["asked"]
    assert "compiled code is passed over" in caplog.text and "is damaged" in caplog.text
    second.compile()
    assert names(machine("third").begin()) == ["asked", "kernel.so", "whole"]


def test_a_store_that_is_slow_is_not_waited_for(
    machine: Machines, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine().compile()
    answer, second = threading.Event(), machine("second")
    monkeypatch.setattr(compiled_code, "SECONDS", 0.01)
    monkeypatch.setattr(second.code.artifacts, "find", lambda *_: answer.wait())
    try:
        assert names(second.begin()) == ["asked"]
    finally:
        answer.set()
    assert "compiled code is not waited for any longer" in caplog.text


def test_a_store_that_fails_is_told(
    machine: Machines, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise StorageError("the store is away")

    first = machine()
    monkeypatch.setattr(first.code.artifacts, "find", fail)
    first.compile()
    assert "compiled code is passed over: the store is away" in caplog.text
    assert "compiled code could not be stored, so that other machines compile it too: the store is away" in caplog.text


def test_what_is_too_large_is_neither_stored_nor_fetched_nor_unpacked(
    machine: Machines, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    first = machine()
    first.compile()
    monkeypatch.setattr(compiled_code, "LARGEST", 3)
    assert pack(first.begin()) is None and "is not stored" in caplog.text
    assert names(machine("second").begin()) == ["asked"] and "more than 3 bytes" in caplog.text
    (scratch := tmp_path / "scratch").mkdir()
    unpack(zipped({"kernel.so": b"code"}), scratch, tmp_path / "nowhere")
    assert "it has 4 bytes, more than 3" in caplog.text and not (tmp_path / "nowhere").exists()


def test_the_store_is_asked_once_on_a_machine(machine: Machines) -> None:
    """The other ranks of a node find what the first one fetched, or that it did not."""
    second = machine("second")
    second.begin()
    machine().compile()
    assert names(second.begin()) == ["asked"]


def test_a_place_that_the_environment_names_is_left_alone(machine: Machines, tmp_path: Path) -> None:
    machine().compile()
    os.environ[PLACE] = str(tmp_path / "chosen")
    second = machine("second")
    second.code.prepare()
    assert os.environ[PLACE] == str(tmp_path / "chosen") and not (tmp_path / "chosen").exists()


SCRIPT = """
import sys, threading, torch
from pathlib import Path
from nanochat.storage import Artifacts, Profile, open_store
from nanochat.training import compiled_code
compiled_code.SECONDS = 600.0
artifacts = Artifacts(open_store(Profile(root=sys.argv[1])), Path(sys.argv[2]))
code = compiled_code.CompiledCode(artifacts, "01", {"gpu": ""})
code.prepare()
print(torch.compile(lambda x: (x.sin() + 1).sum())(torch.zeros(64)).item())
code.share()
[thread.join() for thread in threading.enumerate() if thread.name == "compiled-code"]
"""
COMPILER = """#!/bin/sh
echo "$@" >> {log}
exec {compiler} "$@"
"""


@pytest.mark.skipif(cxx_compiler() is None, reason="there is no C++ compiler")
def test_nothing_is_compiled_where_another_machine_has(tmp_path: Path) -> None:
    """Each machine has a cache and a folder for temporary files of its own."""
    log, compiler = tmp_path / "log", tmp_path / "compiler"
    compiler.write_text(COMPILER.format(log=log, compiler=cxx_compiler()))
    compiler.chmod(0o755)

    def launch(name: str) -> list[str]:
        """The compiler's calls of a launch that compile or preprocess."""
        log.write_text("")
        (tmp_path / name).mkdir()
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "store"), str(tmp_path / name / "cache")],
            env={k: v for k, v in os.environ.items() if not k.startswith("TORCHINDUCTOR")}
            | {"CXX": str(compiler), "TMPDIR": str(tmp_path / name)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        assert done.stdout == "64.0\n"
        return [line[-200:] for line in log.read_text().splitlines() if ".cpp" in line or ".h" in line]

    assert launch("first")
    assert launch("second") == []
