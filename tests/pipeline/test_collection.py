"""`gc` in many situations: what is needed stays, what is not goes, and the bytes are as promised."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from mlflow_server import serving
from s3_server import S3Server

from nanochat.model.artifact import WEIGHTS
from nanochat.pipeline import collection, leases
from nanochat.pipeline.collection import collect_garbage
from nanochat.pipeline.leases import GC, Collecting, Lease, LeaseRecord
from nanochat.pipeline.ref import ArtifactRef
from nanochat.pipeline.release_record import ReleaseRecord
from nanochat.pipeline.run_status import RunStatus, StageRunStatus
from nanochat.pipeline.runs import RunPaths
from nanochat.spec.errors import StorageError, UserError
from nanochat.storage import Artifacts, Profile, Store, open_store
from nanochat.storage.garbage import Collected
from nanochat.tracking.client import connect
from nanochat.tracking.registry import FOLDER_TAG, Candidate, Registry

pytestmark = pytest.mark.filterwarnings(
    "ignore::Warning:mlflow", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)
MODEL = "robin"
OLD = 4  # the oldest of five runs; two are kept in these tests


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('database')}/mlflow.db"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(leases, "WATCH_SECONDS", 0.5)
    monkeypatch.setattr(collection, "BEGINNING_SECONDS", 1.5)
    monkeypatch.setattr(collection, "YOUNG_SECONDS", -60.0)  # all that these tests write is young


@dataclass
class Site:
    """A store with five runs of one pipeline, the last first, each with a model of its own that was released."""

    store: Store
    artifacts: Artifacts
    registry: Registry
    client: MlflowClient
    tracking: str
    model: str
    versions: list[str] = field(default_factory=list)  # of the runs

    def key(self, number: int) -> str:
        """One that no other test has: they share a registry."""
        return hashlib.sha256(f"{self.model} {number}".encode()).hexdigest()[:32]

    def run(self, number: int) -> RunPaths:
        return RunPaths.of(namespace="default", name=self.model, uid=f"run{number}")

    def make(self, number: int, *, phase: str = "Succeeded", home: str = "here", released: bool = True) -> None:
        """A run with its artifacts, a checkpoint, logs and a release."""
        key = self.key(number)
        with self.artifacts.writer("model", key, "01-a") as writer:
            (writer.folder / WEIGHTS).write_bytes(b"w" * (1000 + number))
            writer.commit(recipe={}, inputs={})
        self.store.write(f"checkpoints/base/{key}/step-0000010-01-a/state", b"s" * 500)
        self.store.write(f"{self.run(number).logs('base', '01-a')}/rank0/000000.log", b"l" * 300)
        ended = phase in ("Succeeded", "Failed")
        keys = {ArtifactRef.of("model", "base"): key}
        stages = (StageRunStatus("base", phase if not ended else "Succeeded", keys=keys),)
        status = RunStatus("demo", "default", phase, stages=stages, home=home, host="machine")
        self.store.write_json(self.run(number).status, asdict(status))
        if released:
            self.release(number)

    def release(self, number: int) -> None:
        manifest = self.artifacts.find("model", self.key(number))
        assert manifest is not None
        source, tags = self.artifacts.uri(manifest), {FOLDER_TAG: self.run(number).root}
        candidate = Candidate(source=source, key=f"release{number}", metrics={}, tags=tags)
        self.versions.append(self.registry.register(self.model, candidate).version)

    def gone(self, number: int) -> bool:
        """Whether a run's model is gone; then all of the run is, and else nothing."""
        key = self.key(number)
        model = self.artifacts.find("model", key) is None
        assert self.store.exists(self.run(number).status) is not model or self.needed_alone
        return model

    needed_alone: bool = False  # the model is needed without its run

    def collect(self, **options: Any) -> Collected:
        return collect_garbage(self.artifacts, **{"tracking": self.tracking, "keep_runs": 2} | options)

    def size(self) -> int:
        """All bytes but those of leases, which are renewed meanwhile."""
        entries = [*self.store.list(), *self.store.leftovers()]
        return sum(entry.size for entry in entries if not entry.path.startswith("leases/"))


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "folder":
        return open_store(Profile(root=str(tmp_path / "store")))
    server: S3Server = request.getfixturevalue("s3_server")
    for name, value in server.credentials.items():
        monkeypatch.setenv(name, value)
    return open_store(server.profile(tmp_path.name))


@pytest.fixture
def site(store: Store, tmp_path: Path, request: pytest.FixtureRequest) -> Site:
    """A shared store has a tracking server, one in a folder the database: a server takes no models in folders."""
    uri: str = request.getfixturevalue("server" if store.local_path("") is None else "database")
    client = connect(uri)
    name = f"{MODEL}-{tmp_path.name}"[:60]
    made = Site(store, Artifacts(store, tmp_path / "cache"), Registry(uri), client, uri, name)
    for number in range(OLD, -1, -1):  # the store's times tell which is the latest
        made.make(number)
    made.versions.reverse()
    return made


def champion_by_release(site: Site) -> None:
    site.registry.promote(site.model, site.versions[OLD])


def champion_by_rollback(site: Site) -> None:
    site.registry.promote(site.model, site.versions[0])
    site.registry.rollback(site.model, site.versions[OLD])


def champion_by_hand(site: Site) -> None:
    site.client.set_registered_model_alias(site.model, "champion", site.versions[OLD])


def any_alias_by_hand(site: Site) -> None:
    site.client.set_registered_model_alias(site.model, "production", site.versions[OLD])


def registered_by_hand(site: Site) -> None:
    manifest = site.artifacts.find("model", site.key(OLD))
    assert manifest is not None
    other = f"{site.model}-hand"
    site.client.create_registered_model(other)
    made = site.client.create_model_version(other, site.artifacts.uri(manifest), None)
    site.client.set_registered_model_alias(other, "champion", str(made.version))
    site.needed_alone = True


def target_of_the_next_rollback(site: Site) -> None:
    site.registry.promote(site.model, site.versions[OLD])
    site.registry.promote(site.model, site.versions[0])


def former_champion(site: Site) -> None:
    for number in (OLD, 1, 0):
        site.registry.promote(site.model, site.versions[number])


def live_here(site: Site) -> None:
    Lease(site.store, runs=[site.run(OLD).root]).start()


def live_elsewhere(site: Site) -> None:
    """Another machine, whose clock nobody knows."""
    record = LeaseRecord("other", "far-away", 7, (site.run(OLD).root,))
    site.store.write_json("leases/other.json", asdict(record))


def suspended(site: Site) -> None:
    site.make(OLD, phase="Suspended", released=False)
    older(site, OLD)


def waiting(site: Site) -> None:
    site.make(OLD, phase="Waiting", released=False)
    older(site, OLD)


def killed(site: Site) -> None:
    """Its status says that it runs, and no lease does: it may be gone on with."""
    site.make(OLD, phase="Running", released=False)
    older(site, OLD)


def of_another_home(site: Site) -> None:
    """The latest of another home."""
    site.make(OLD, home="there", released=False)


def served(site: Site) -> None:
    lease = Lease(site.store).start()
    manifest = site.artifacts.find("model", site.key(OLD))
    assert manifest is not None
    lease.serve([site.artifacts.uri(manifest)])
    site.needed_alone = True


def older(site: Site, number: int) -> None:
    """The others were written after it."""
    for other in range(number - 1, -1, -1):
        path = site.run(other).status
        site.store.write(path, site.store.read(path, 1 << 20))


NEEDED: Sequence[Callable[[Site], None]] = (
    champion_by_release, champion_by_rollback, champion_by_hand, any_alias_by_hand, registered_by_hand,
    target_of_the_next_rollback, former_champion, live_here, live_elsewhere, suspended, waiting, killed,
    of_another_home, served,
)  # fmt: skip


@pytest.mark.parametrize("situation", NEEDED, ids=lambda situation: situation.__name__)
def test_what_is_needed_stays_and_the_bytes_are_as_promised(site: Site, situation: Callable[[Site], None]) -> None:
    situation(site)
    before = site.size()
    planned = site.collect(dry_run=True)
    assert site.size() == before
    done = site.collect()
    assert [item.size for item in done.removed] == [item.size for item in planned.removed]
    assert before - site.size() == done.size
    assert not site.gone(OLD) and not site.gone(0)
    assert {number for number in range(OLD) if site.gone(number)} == {2, 3}
    if situation in (live_here, live_elsewhere, suspended, waiting, killed):
        assert site.store.exists(f"checkpoints/base/{site.key(OLD)}/step-0000010-01-a/state"), "it resumes there"
    assert site.collect().removed == ()


def test_what_was_champion_goes_where_that_is_asked_for(site: Site) -> None:
    former_champion(site)
    site.collect(champions=True)
    assert site.gone(OLD) and not site.gone(1) and not site.gone(0), "champion and former stay in any case"


def test_what_was_stopped_goes_where_that_is_asked_for(site: Site) -> None:
    killed(site)
    lease = Lease(site.store, runs=[site.run(OLD).root]).start()
    site.collect(unfinished=True)
    assert not site.gone(OLD), "somebody works on it"
    lease.close()
    site.collect(unfinished=True)
    assert site.gone(OLD)


def test_what_was_imported_goes_where_that_is_asked_for(site: Site) -> None:
    with site.artifacts.writer("model", "f" * 32, "import-a") as writer:
        (writer.folder / WEIGHTS).write_bytes(b"w")
        writer.commit(recipe={"stage": "imported"}, inputs={})
    site.collect()
    assert site.artifacts.find("model", "f" * 32) is not None
    site.collect(imported=True)
    assert site.artifacts.find("model", "f" * 32) is None


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_a_lease_counts_as_lost_only_after_it_was_seen_not_to_change(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the machine that holds it may be hours behind, and its lease look old."""
    live = Lease(site.store, runs=[site.run(OLD).root])

    def renew(_: float = 0.0) -> None:
        live._write(live.record)
        path = site.store.local_path(live.path)
        assert path is not None
        os.utime(path, (1, 1))

    renew()
    monkeypatch.setattr(leases, "time", SimpleNamespace(sleep=renew, time=time.time, monotonic=time.monotonic))
    site.collect()
    assert not site.gone(OLD), "it was renewed while the collection waited"
    monkeypatch.setattr(leases, "time", time)
    site.collect()
    assert site.gone(OLD) and not site.store.exists(live.path), "nobody renews it any more"


def test_nothing_is_removed_while_the_registry_is_away(site: Site) -> None:
    champion_by_rollback(site)
    before = site.size()
    away = "http://127.0.0.1:9"
    with pytest.raises(StorageError, match="cannot be asked which models are needed, so nothing is removed") as stopped:
        site.collect(tracking=away)
    assert "--keep-releases" in stopped.value.message and site.size() == before
    record = ReleaseRecord(site.model, site.versions[OLD], True, "all gates hold", registry="sqlite:////not/here.db")
    with site.artifacts.writer("release", "k", "01-a") as writer:
        (writer.folder / "release.json").write_text("{}")
        writer.commit(
            recipe={}, inputs={"model/base": site.key(OLD)}, metadata={"run": site.run(OLD).root, **record.metadata()}
        )
    with pytest.raises(StorageError, match=f"which has version {site.versions[OLD]} of"):
        site.collect()
    lost = f"sqlite:///{site.artifacts.cache.folder}/lost.db"
    record = ReleaseRecord(site.model, site.versions[OLD], True, "all gates hold", registry=lost)
    site.artifacts.remove("release", "k")
    with site.artifacts.writer("release", "k", "01-a") as writer:
        (writer.folder / "release.json").write_text("{}")
        writer.commit(
            recipe={}, inputs={"model/base": site.key(OLD)}, metadata={"run": site.run(OLD).root, **record.metadata()}
        )
    with pytest.raises(StorageError, match="cannot be asked"):
        site.collect(tracking=lost)
    site.collect(tracking=away, ask_registry=False)
    assert not site.gone(OLD) and site.gone(3)


def test_two_at_once_take_turns(site: Site) -> None:
    champion_by_rollback(site)
    before = site.size()
    done: list[Collected] = []
    threads = [threading.Thread(target=lambda: done.append(site.collect())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(found.size for found in done) == before - site.size() and len(done) == 2
    assert min(len(found.removed) for found in done) == 0 and not site.gone(OLD) and site.gone(3)


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_one_that_was_killed_stops_nobody(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.store.write_json(GC, asdict(LeaseRecord("dead", "machine", 7)))
    with Lease(site.store, runs=[site.run(0).root]) as lease:
        lease.await_collection()
    assert "the gc of process 7 of machine is gone" in caplog.text and not site.store.exists(GC)
    site.store.write(GC, b"[")
    assert site.collect().removed


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_one_that_was_taken_for_dead_removes_nothing_more(site: Site) -> None:
    with Collecting(site.store) as slept:
        site.store.write_json(GC, asdict(LeaseRecord("another", "machine", 7)))
        with pytest.raises(StorageError, match="another gc began"):
            slept.check()
    assert site.store.exists(GC), "the other one's right is left alone"


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_a_run_that_begins_waits_and_one_that_has_just_begun_stops_it(site: Site) -> None:
    order: list[str] = []

    def begin() -> None:
        with Lease(site.store, runs=[site.run(0).root]) as lease:
            lease.await_collection()
            order.append("run")

    with Collecting(site.store):
        thread = threading.Thread(target=begin)
        thread.start()
        time.sleep(0.5)
        order.append("gc")
    thread.join()
    assert order == ["gc", "run"]
    with Lease(site.store, runs=["runs/default.new/uid"]), pytest.raises(UserError, match="has only just begun"):
        site.collect()
    assert not site.gone(3)


@pytest.mark.parametrize("store", ["folder"], indirect=True)
@pytest.mark.parametrize("text", [b"", b"[]", b'{"stages": 3}', b"\xff"])
def test_where_a_run_cannot_be_read_nothing_is_removed(site: Site, text: bytes) -> None:
    site.store.write(site.run(1).status, text)
    with pytest.raises(UserError, match=r"nothing is removed: .*status\.json"):
        site.collect()
    assert not site.gone(3)
