"""`nanochat pull`: whole or not at all, held to what the store says, and gone on with."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from nanochat.cli.models import Found
from nanochat.cli.pull import copy, pull
from nanochat.model.artifact import SERVED
from nanochat.pipeline.ref import ArtifactRef
from nanochat.pipeline.run_status import RunStatus, StageRunStatus
from nanochat.spec.errors import StorageError, UserError
from nanochat.storage import Artifacts, Profile, open_store
from nanochat.storage.store import FileRecord

KEY = "1" * 32
FILES = {"model.safetensors": b"w" * 100_000, "config.json": b"{}", "inner/more.bin": b"t" * 1000}
FILES |= {name: name.encode() for name in SERVED if name not in FILES}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with one run of `demo`, which made one model."""
    for name in ("NANOCHAT_ROOT", "NANOCHAT_ENDPOINT", "NANOCHAT_PROFILES", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    monkeypatch.setenv("NANOCHAT_HOME", str(home))
    store = open_store(Profile(root=str(home)))
    with Artifacts(store, home / "cache").writer("model", KEY, "01-a") as writer:
        for name, content in FILES.items():
            (writer.folder / name).parent.mkdir(exist_ok=True)
            (writer.folder / name).write_bytes(content)
        writer.commit(recipe={}, inputs={})
    stage = StageRunStatus("base", "Succeeded", keys={ArtifactRef.of("model", "base"): KEY})
    store.write_json("runs/default.demo/0123abcd/status.json", asdict(RunStatus("demo", "default", stages=(stage,))))
    return home


def found_in(home: Path) -> Found:
    artifacts = Artifacts(open_store(Profile(root=str(home))), home / "cache")
    manifest = artifacts.find("model", KEY)
    assert manifest is not None
    return Found("the model", artifacts, manifest)


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("word", ["demo", "0123", "artifact"])
@pytest.mark.parametrize("there", [True, False])
def test_a_model_is_copied_and_copied_once(home: Path, tmp_path: Path, word: str, there: bool) -> None:
    target = tmp_path / "model"
    if there:
        target.mkdir()
    name = found_in(home).artifacts.uri(found_in(home).manifest) if word == "artifact" else word
    pull(name, target)
    assert content_of(target) == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "model"]
    before = (target / "config.json").stat()
    pull(name, target)
    assert (target / "config.json").stat() == before


def test_what_was_interrupted_goes_on_with_what_is_missing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, target, got = found_in(home), tmp_path / "model", list[str]()
    download = type(found.store).download

    def once(store: Any, record: FileRecord, local: Path) -> None:
        if len(got) == 2:
            local.write_bytes(b"half")  # as one that is killed leaves it
            (local.parent / "another").write_bytes(b"left")
            got.append("")
            raise KeyboardInterrupt
        got.append(local.name)
        download(store, record, local)

    monkeypatch.setattr(type(found.store), "download", once)
    with pytest.raises(KeyboardInterrupt):
        copy(found, target)
    assert not target.exists()
    first = got[:2]
    copy(found, target)
    assert content_of(target) == FILES
    assert sorted([*first, *got[3:]]) == sorted(Path(name).name for name in FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "model"]


def test_a_file_that_is_damaged_in_the_store_leaves_no_model(home: Path, tmp_path: Path) -> None:
    found, target = found_in(home), tmp_path / "model"
    (weights,) = home.rglob("model.safetensors")
    weights.chmod(0o644)
    weights.write_bytes(b"v" * 100_000)
    with pytest.raises(StorageError, match=r"the model is damaged in the store: .* nothing was written"):
        copy(found, target)
    assert not target.exists()
    weights.unlink()
    with pytest.raises(StorageError, match="nothing was written"):
        copy(found, target)


def test_a_folder_with_something_else_is_left_alone(home: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("mine")
    with pytest.raises(UserError, match="is not empty: name a folder that is new"):
        copy(found_in(home), tmp_path / "model")
    assert content_of(tmp_path / "model") == {"mine": b"mine"}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        copy(found_in(home), tmp_path / "file")
