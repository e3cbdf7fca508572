"""The stores that all pipelines share, and what they look for in them together."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from store_servers import StoreServer

from nanochat.model.artifact import MADE_OF, SERVED, fingerprint
from nanochat.pipeline.graph import build_graph
from nanochat.pipeline.outputs import Outputs
from nanochat.spec.errors import UserError
from nanochat.spec.load import check_pipeline
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.folder import FolderStore
from nanochat.storage.manifest import Manifest
from nanochat.storage.store import Profile
from operators import stores as module
from operators.config import StoreProfile
from operators.stores import SharedArtifacts, Stores


class Counting(FolderStore):
    """Counts what is asked of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: list[str] = []

    def read(self, path: str, limit: int) -> bytes:
        self.asked.append(path)
        return super().read(path, limit)

    def children(self, prefix: str = "") -> Sequence[str]:
        self.asked.append(prefix)
        return super().children(prefix)


def make(artifacts: Artifacts, kind: str, key: str) -> None:
    with artifacts.writer(kind, key, "01-a") as writer:
        (writer.folder / "file").write_bytes(b"made")
        writer.commit(recipe={}, inputs={}, metadata={"stage": key})


def told(found: Mapping[tuple[str, str], Manifest]) -> dict[tuple[str, str], dict[str, Any]]:
    return {pair: manifest.metadata for pair, manifest in found.items()}


@pytest.fixture
def shared(tmp_path: Path) -> SharedArtifacts:
    store = Counting(tmp_path / "store")
    return SharedArtifacts(store, tmp_path / "cache", Profile(root=store.root))


def asked(shared: SharedArtifacts) -> list[str]:
    assert isinstance(shared.store, Counting)
    found, shared.store.asked = shared.store.asked, []
    return found


def test_a_place_has_one_store_and_at_most_so_many_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = Stores(tmp_path / "cache")
    one = StoreProfile(root=str(tmp_path / "one"), tracking="http://mlflow")
    assert stores.open(one) is stores.open(StoreProfile(root=one.root)), "the tracking server is no part of the place"
    assert stores.open(one, root=str(tmp_path / "two")).root == str(tmp_path / "two")
    monkeypatch.setattr(module, "MOST", 2)
    kept = stores.open(one)
    stores.open(one, root=str(tmp_path / "three"))
    assert stores.open(one) is kept, "what is used is kept"


def test_what_one_has_looked_for_the_others_do_not_look_for(shared: SharedArtifacts) -> None:
    wanted = [("evaluation", "a"), ("evaluation", "b"), ("model", "c")]
    make(shared, "evaluation", "a")
    asked(shared)
    assert told(shared.survey(wanted)) == {("evaluation", "a"): {"stage": "a"}}
    first = asked(shared)
    assert not any("/b" in path or "/c" in path for path in first), "a listing tells that they are not there"
    assert told(shared.survey(wanted)) == {("evaluation", "a"): {"stage": "a"}} and asked(shared) == []
    make(shared, "model", "c")
    now = time.monotonic()
    assert ("model", "c") not in shared.survey(wanted), "it may be some seconds old,"
    assert told(shared.survey(wanted, since=now))["model", "c"] == {}, "but never older than is asked for"
    asked(shared)
    assert shared.damaged("model", "nothing") == () and asked(shared) == []


def test_what_is_old_is_looked_for_again_and_forgotten(
    shared: SharedArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shared.survey([("model", "a")]) == {}
    make(shared, "model", "a")
    shared.forget()
    assert shared.survey([("model", "a")]) == {}
    monkeypatch.setattr(module, "FRESH_SECONDS", 0.0)
    shared.forget()
    assert not shared._known
    assert told(shared.survey([("model", "a")])) == {("model", "a"): {}}


def test_one_store_serves_many_threads_and_takes_up_renewed_credentials(
    tmp_path: Path, own_server: StoreServer
) -> None:
    credentials = own_server.write_credentials(tmp_path / "credentials")
    profile = StoreProfile.model_validate(asdict(own_server.profile()) | {"credentials": str(credentials)})
    store = Stores(tmp_path / "cache").open(profile)

    def use(number: int) -> bytes:
        store.write(f"files/{number}", str(number).encode())
        return store.read(f"files/{number}", 16)

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(use, range(100))) == [str(number).encode() for number in range(100)]
    good = {file.name: file.read_bytes() for file in credentials.iterdir()}
    for name, value in own_server.refused[0].items():
        (credentials / name).write_text(value)
    with pytest.raises(UserError, match="refuses these credentials"):
        store.read("files/1", 16)
    for name, content in good.items():
        (credentials / name).write_bytes(content)
    assert store.read("files/1", 16) == b"1"


def test_a_finished_pipeline_asks_for_nothing_that_another_has_looked_for(shared: SharedArtifacts) -> None:
    spec = {"model": {"depth": 4}, "sources": {"text": {"kind": "world", "shards": 4}}}
    body = {"apiVersion": "nanochat.dev/v1alpha1", "kind": "ChatPipeline", "metadata": {"name": "one"}, "spec": spec}
    graph = build_graph(check_pipeline(body).spec)
    models = dict[str, str]()  # reference -> fingerprint
    for out in (out for node in graph.nodes for out in node.outputs):
        with shared.writer(out.kind, out.key, "01-a") as writer:
            for name in SERVED:
                (writer.folder / name).write_bytes(out.key.encode())
            made = {MADE_OF: {ref: models[ref] for ref in map(str, out.inputs) if ref in models}}
            manifest = writer.commit(recipe={}, inputs=out.input_keys(), metadata=made)
        if out.kind == "model":
            models[str(out.ref)] = fingerprint(manifest)
    first, second = Outputs(shared, graph), Outputs(shared, graph)
    for outputs in (first, second):
        asked(shared)
        outputs.refresh()
        outputs.forget_outdated()
        assert all(not outputs.missing(stage) for stage in graph.stages), "all is of these models"
    assert asked(shared) == []

    (sft,) = (out for out in graph.node("sft").outputs if out.kind == "model")
    shared.remove("model", sft.key)
    with shared.writer("model", sft.key, "02-b") as writer:
        for name in SERVED:
            (writer.folder / name).write_bytes(b"other weights")
        writer.commit(recipe={}, inputs=sft.input_keys(), metadata={})
    second.forget_outdated(since=time.monotonic())
    gone = {out.kind for node in graph.nodes for out in node.outputs if out.key not in second.present}
    assert gone == {"evaluation", "report", "release"}, "what told of the former is made anew"
