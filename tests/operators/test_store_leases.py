"""The controller's leases: what it says to those who remove garbage."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from nanochat.pipeline import leases
from nanochat.pipeline.leases import GC, Collecting, LeaseRecord
from nanochat.spec.errors import StorageError
from nanochat.storage import Profile, Store, open_store
from operators.store_leases import StoreLeases


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(Profile(root=str(tmp_path)))


def held(store: Store) -> list[LeaseRecord]:
    with Collecting(store) as collecting:
        return collecting.leases()


def test_one_lease_of_a_store_names_all_runs_and_models(store: Store) -> None:
    own = StoreLeases()
    for run in ("runs/a/1", "runs/b/2", "runs/a/1"):
        own.hold(store, run)
        assert own.since(store, run) is not None
    own.serve(store, ["s3://b/artifacts/model/k"])
    own.let_go(store, "runs/a/1")
    assert own.since(store, "runs/a/1") is None
    own.hold(store, "runs/c/3")
    (record,) = held(store)
    assert (record.runs, record.models) == (("runs/b/2", "runs/c/3"), ("s3://b/artifacts/model/k",))
    StoreLeases().let_go(store, "runs/b/2")  # a controller that has just begun holds nothing


def test_nothing_begins_while_garbage_is_removed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "WATCH_SECONDS", 0.2)
    own = StoreLeases()
    with Collecting(store):
        with pytest.raises(StorageError, match="garbage is removed from it at the moment, by process"):
            own.hold(store, "runs/a/1")
        assert own.since(store, "runs/a/1") is None
    own.hold(store, "runs/a/1")
    assert own.since(store, "runs/a/1") is not None
    store.write_json(GC, asdict(LeaseRecord("dead", "machine", 7)))
    for _ in range(100):
        try:
            own.hold(store, "runs/a/2")
            break
        except StorageError:
            leases.time.sleep(0.05)
    assert own.since(store, "runs/a/2") is not None, "one that was killed holds nobody up"


def test_runs_that_are_expected_are_named_with_the_first(store: Store) -> None:
    own = StoreLeases()
    own.expect("runs/a/1")
    own.expect("runs/b/2")
    own.let_go(store, "runs/b/2")
    own.hold(store, "runs/c/3")
    assert own.since(store, "runs/a/1") is not None and own.since(store, "runs/b/2") is None
    (record,) = held(store)
    assert set(record.runs) == {"runs/a/1", "runs/c/3"}
