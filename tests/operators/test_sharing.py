"""Pipelines that need the same artifacts, with real reconcilers in a cluster in memory, whatever happens to them."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import FakeKube

from nanochat.spec.chatpipeline import ATTEMPT, PIPELINE
from nanochat.spec.errors import StorageError
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.folder import FolderStore
from nanochat.storage.opening import open_store
from nanochat.storage.store import Profile
from operators.claims import YIELD_SECONDS
from operators.config import Config
from operators.kube_client import CONFIG_MAPS, PIPELINES, PODS, Resource
from operators.kube_error import Object
from operators.pytorchjob import PYTORCHJOBS
from operators.reconciler import Run
from operators.services import Services
from operators.stores import Stores

BEGAN = 1_800_000_000.0
TICK = 5.0  # seconds between two reconciliations of a pipeline
GRACE = 20  # seconds that a pod takes to end


class Quiet:
    """Nobody reads the Events."""

    def emit(self, *_arguments: Any) -> None: ...


class Nodes(FakeKube):
    """A cluster whose pods take a while to end; those of a pipeline in `full` find no room."""

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self.full: set[str] = set()
        self.ending: dict[str, float] = {}  # pod -> when it is gone
        self.told: dict[str, str] = {}  # job -> its annotation

    def create(self, resource: Resource, body: Object) -> Object | None:
        created = super().create(resource, body)
        if resource is PYTORCHJOBS and created is not None:
            self.told[created["metadata"]["name"]] = created["metadata"]["annotations"][ATTEMPT]
        self.tick()
        return created

    def delete(self, resource: Resource, _namespace: str, name: str, *, uid: str = "", **options: Any) -> None:
        before = dict(self[PODS])
        super().delete(resource, _namespace, name, uid=uid, **options)
        for pod in before.keys() - self[PODS].keys():
            if before[pod]["status"]["phase"] != "Running":
                continue
            self.ending.setdefault(pod, self.now + GRACE)
            due = datetime.fromtimestamp(self.ending[pod], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            before[pod]["metadata"] |= {"deletionTimestamp": due, "deletionGracePeriodSeconds": GRACE}
            self.change(PODS, before[pod])

    def tick(self) -> None:
        """The scheduler, the kubelets and garbage collection."""
        alive = {found["metadata"]["uid"] for found in self[PIPELINES].values()}
        for job in list(self[PYTORCHJOBS].values()):
            owners = job["metadata"]["ownerReferences"]
            if owners and owners[0]["uid"] not in alive:
                self.delete(PYTORCHJOBS, "", job["metadata"]["name"])
        for name, pod in list(self[PODS].items()):
            waits = pod["metadata"]["labels"][PIPELINE] in self.full
            if self.ending.get(name, self.now + 1) <= self.now:
                del self[PODS][name], self.ending[name]
            elif waits and "nodeName" in pod["spec"] and pod["metadata"]["creationTimestamp"] == self.stamp():
                told = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no room"}
                self.change(PODS, pod | {"spec": {}, "status": {"phase": "Pending", "conditions": [told]}})
            elif not waits and "nodeName" not in pod["spec"]:
                self.change(PODS, pod | {"spec": {"nodeName": "node-0"}, "status": {"phase": "Running"}})


@dataclass
class Site:
    """A store, a cluster, and a controller with its pipelines."""

    folder: Path
    dice: random.Random
    cluster: Nodes = field(default_factory=lambda: Nodes(BEGAN))
    steady: float = 1000.0
    suspended: set[str] = field(default_factory=set)
    edits: Counter[str] = field(default_factory=Counter)
    uids: dict[str, str] = field(default_factory=dict)  # of the pipelines that are there
    born: int = 0

    def __post_init__(self) -> None:
        config = {"image": "trainer", "profiles": {"default": {"root": str(self.folder / "store")}}}
        self.config = Config.model_validate(config, by_alias=True)
        self.artifacts = Artifacts(open_store(Profile(root=str(self.folder / "store"))), self.folder / "cache")
        self.restart()

    def restart(self) -> None:
        """Another controller, which knows nothing."""
        self.services = Services(
            **self.cluster.services(),
            config=self.config,
            events=Quiet(),
            stores=Stores(self.folder / "cache"),  # type: ignore[arg-type]
        )
        self.runs: dict[str, Run] = {}

    def apply(self, name: str) -> None:
        self.born += 1
        self.uids[name] = f"{self.born:04d}{name}"

    def remove(self, name: str, *, orphan: bool) -> None:
        """`kubectl delete cp`, with --cascade=orphan or without."""
        if self.cluster[PIPELINES].pop(name, None) and orphan:
            for job in self.cluster[PYTORCHJOBS].values():
                if job["metadata"]["labels"][PIPELINE] == name:
                    self.cluster.change(PYTORCHJOBS, job | {"metadata": job["metadata"] | {"ownerReferences": []}})
        uid = self.uids.pop(name)
        self.services.index.resync("")
        if name in self.runs:
            self.services.claims.drop(uid)
            self.runs.pop(name).end()

    def reconcile(self, name: str) -> None:
        """One look at a pipeline."""
        self.cluster.now += 1
        self.steady += 1
        self.cluster.tick()
        body: Object = {
            "apiVersion": "nanochat.dev/v1alpha1",
            "kind": "ChatPipeline",
            "metadata": {"name": name, "namespace": "team"},
            "spec": {
                "model": {"depth": 2},
                "retries": {"limit": 3 + self.edits[name]},
                "sources": {"text": {"kind": "world", "shards": 1}},
                "stages": {"tokenizer": {"maxChars": 10_000_000 + self.edits[name]}},
                "suspend": name in self.suspended,
            },
        }
        uid = self.uids[name]
        found = self.cluster.declare(body, uid=uid)
        self.services.index.resync("")
        self.services.claims.learn()
        if name not in self.runs:
            self.runs[name] = Run("team", name, uid, self.services)
        self.runs[name].reconcile(found, self.cluster.now, self.steady)
        self.check()

    def live(self) -> list[tuple[str, frozenset[str]]]:
        """Jobs of which something may run, and what they make."""
        found = []
        for pod in self.cluster[PODS].values():
            job = pod["metadata"]["name"].rpartition("-worker-")[0]
            keys = json.loads(self.cluster.told[job])["keys"]
            found.append((job, frozenset(keys)))
        return found

    def check(self) -> None:
        """Nothing is made twice at one time."""
        makers = Counter(key for _, keys in self.live() for key in keys)
        assert not [key for key, count in makers.items() if count > 1], self.live()

    def work(self) -> None:
        """Each stage whose pods run makes what it has to, and ends."""
        for name in list(self.cluster[PYTORCHJOBS]):
            pods = [pod for pod in self.cluster[PODS].values() if pod["metadata"]["name"] == f"{name}-worker-0"]
            if not pods or pods[0]["status"]["phase"] != "Running" or f"{name}-worker-0" in self.cluster.ending:
                continue
            launch = f"01-{pods[0]['metadata']['uid'][:8]}"
            for out in json.loads(self.cluster[CONFIG_MAPS][name]["data"]["plan.json"])["outputs"]:
                if self.artifacts.find(out["kind"], out["key"]) is None:
                    with self.artifacts.writer(out["kind"], out["key"], launch) as writer:
                        (writer.folder / "file").write_text(out["key"])
                        writer.commit(recipe=out["recipe"], inputs=out["inputs"])
            for pod in pods:
                del self.cluster[PODS][pod["metadata"]["name"]]
            done = {"conditions": [{"type": "Succeeded", "status": "True"}]}
            self.cluster.change(PYTORCHJOBS, self.cluster[PYTORCHJOBS][name] | {"status": done})


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, random.Random(0))


def message(site: Site, name: str) -> str:
    return site.cluster.status_of(name).get("message", "")


def test_one_that_finds_no_room_makes_room_for_the_next(site: Site) -> None:
    """The older one waits for nodes that are not there; it says for whom it has made room, and why."""
    site.cluster.full.add("old")
    for name in ("old", "new"):
        site.apply(name)
        site.reconcile(name)
    assert message(site, "new") == "dataset: waits for pipeline old, which makes it"
    began = site.steady
    while not any(job.startswith("new-") for job, _ in site.live()):
        for name in ("old", "new"):
            site.reconcile(name)
        assert site.steady - began < YIELD_SECONDS + 20
    assert message(site, "old") == (
        "dataset: waits for pipeline new, which makes it; its own attempt ended: it could not start: cannot be "
        "scheduled: no room"
    )
    assert [item["reason"] for item in site.cluster.status_of("old")["attempts"]] == ["Preempted"]
    site.work()
    for _ in range(3):
        site.reconcile("new")
        site.reconcile("old")
    assert {name: site.cluster.status_of(name)["stages"][0]["phase"] for name in ("old", "new")} == {
        "old": "Cached",
        "new": "Succeeded",
    }


def test_one_that_is_suspended_and_resumed_waits_for_the_one_that_took_over(site: Site) -> None:
    for name in ("old", "new"):
        site.apply(name)
        site.reconcile(name)
    site.suspended.add("old")
    for _ in range(GRACE):
        site.reconcile("old")
        site.reconcile("new")
    assert [job[:3] for job, _ in site.live()] == ["new"]
    site.suspended.clear()
    for _ in range(5):
        site.reconcile("old")
    assert message(site, "old") == "dataset: waits for pipeline new, which makes it"
    site.restart()
    site.reconcile("old")
    assert message(site, "old") == "dataset: waits for pipeline new, which makes it"


def test_a_job_that_lost_its_pipeline_is_waited_for_and_used(site: Site) -> None:
    site.apply("demo")
    site.reconcile("demo")
    ((job, _),) = site.live()
    site.remove("demo", orphan=True)
    site.apply("demo")
    for restarts in (False, True):
        if restarts:
            site.restart()
        site.reconcile("demo")
        assert message(site, "demo").startswith(f"dataset: waits for job {job}, which makes it and whose pipeline was")
    site.work()
    site.reconcile("demo")
    assert site.cluster.status_of("demo")["stages"][0]["phase"] == "Cached"
    assert job in site.cluster[PYTORCHJOBS], "what is not its own it leaves alone"


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_nothing_is_made_twice_and_who_can_goes_on(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(seed)
    site, names, away = Site(tmp_path, dice), ["a", "b", "c"], False

    def refuse(self: FolderStore, *arguments: Any, **more: Any) -> Any:
        raise StorageError("it is away")

    for name in names:
        site.apply(name)
    for _ in range(60):
        name, event = dice.choice(names), dice.randrange(12)
        if event == 0:
            site.suspended ^= {name}
        elif event == 1:
            site.edits[name] ^= 1
        elif event == 2:
            site.restart()
        elif event == 3:
            away = not away
        elif event == 4 and name in site.uids and not away:
            site.remove(name, orphan=dice.random() < 0.5)
        elif event == 5:
            site.cluster.full ^= {name}
        elif event == 6 and not away:
            site.work()
        if name not in site.uids:
            site.apply(name)
        with monkeypatch.context() as patch:
            for method in ("read", "write", "create", "list", "children") if away else ():
                patch.setattr(FolderStore, method, refuse)
            site.reconcile(name)
    site.suspended.clear()
    site.edits.clear()
    site.cluster.full = {"a"}
    stages = ("dataset", "tokenizer", "tokens")
    for _ in range(80):
        for name in names:
            site.reconcile(name)
        site.work()
        told = [site.cluster.status_of(name)["stages"][:3] for name in names]
        if all(item["phase"] in ("Succeeded", "Cached") for stage in told for item in stage):
            break
    else:
        raise AssertionError([message(site, name) for name in names])
    assert [item["name"] for item in told[0]] == list(stages)
