"""The index: what watches, listings and answers of the API server make of it, in whatever order they come."""

from __future__ import annotations

from typing import Any

from fake_cluster import FakeKube

from operators.index import Cache, Index
from operators.kube_client import PODS, Listing
from operators.kube_error import KubeError
from operators.objects import Pod
from operators.pytorchjob import PYTORCHJOBS, PyTorchJobs


def pod(version: int, uid: str = "u", *, name: str = "p", phase: str = "Running", owner: str = "o") -> dict[str, Any]:
    labels = {"nanochat.dev/pipeline": "demo", "nanochat.dev/pipeline-uid": owner}
    meta = {"namespace": "team", "name": name, "uid": uid, "resourceVersion": str(version), "labels": labels}
    meta["creationTimestamp"] = "2027-01-15T08:00:00Z"
    return {"metadata": meta, "spec": {"nodeName": "n"}, "status": {"phase": phase}}


class Pods:
    """A cache of pods and what it told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.reads = 0
        backend = PyTorchJobs(None)  # type: ignore[arg-type]

        def read(body: dict[str, Any]) -> Pod:
            self.reads += 1
            return backend.read_pod(body)

        self.cache = Cache(PODS, read, lambda *pipeline: self.told.append(pipeline), label="l")

    def put(self, *bodies: dict[str, Any]) -> None:
        for body in bodies:
            self.cache.put(self.cache.read(body))

    def remove(self, body: dict[str, Any]) -> None:
        self.cache.remove(self.cache.read(body).meta)

    def found(self, owner: str = "o") -> list[tuple[str, int]]:
        return sorted((item.meta.uid, item.meta.version) for item in self.cache.of("team", owner))


def test_news_wakes_the_pipeline_and_nothing_else_does() -> None:
    pods = Pods()
    pods.put(pod(5), pod(5), pod(4), pod(7))
    assert pods.found() == [("u", 7)] and pods.told == [("team", "demo")] * 2
    pods.remove(pod(8))
    pods.remove(pod(8))
    assert pods.found() == [] and len(pods.told) == 3


def test_what_is_gone_does_not_come_back_with_a_late_answer() -> None:
    pods = Pods()
    pods.put(pod(5))
    pods.remove(pod(6))
    pods.put(pod(5))
    pods.cache.replace(Listing([pod(5)], 5), "team")
    assert pods.found() == []
    pods.put(pod(9, "another of its name"))
    pods.remove(pod(6))
    assert pods.found() == [("another of its name", 9)]


def test_what_comes_back_to_a_watch_by_label_is_there_again() -> None:
    """A watch calls an object deleted, in the version of the change, when its label is taken off."""
    pods = Pods()
    pods.put(pod(5))
    pods.cache.watched("DELETED", pod(8))
    pods.put(pod(8))
    assert pods.found() == []
    pods.put(pod(9))
    pods.cache.watched("DELETED", pod(8))
    assert pods.found() == [("u", 9)], "the word of the watch came late"


def test_an_object_whose_label_is_changed_is_kept_under_the_new_one_alone() -> None:
    pods = Pods()
    pods.put(pod(5), pod(6, owner="e"))
    assert pods.found() == [] and pods.found("e") == [("u", 6)]
    pods.put(pod(7))
    pods.put(pod(6, owner="e"))
    assert pods.found() == [("u", 7)] and pods.found("e") == [], "what came late changes nothing"
    pods.remove(pod(8))
    assert pods.found() == [] and not pods.cache._kept and not pods.cache._owners


def test_a_deletion_that_nobody_told_of_is_seen_by_the_next_listing() -> None:
    pods = Pods()
    pods.put(pod(5, "a", name="a"), pod(6, "b", name="b"), pod(12, "c", name="c"), pod(7, "d", name="d", owner="e"))
    pods.cache.replace(Listing([pod(6, "b", name="b")], 10), "team", "o")
    assert pods.found() == [("b", 6), ("c", 12)], "what came after the listing stays"
    assert pods.found("e") == [("d", 7)], "it was not asked for"
    pods.cache.replace(Listing([], 20), "other")
    assert len(pods.found()) == 2
    pods.cache.replace(Listing([], 20), "")
    assert pods.found() == pods.found("e") == []


def test_a_listing_is_given_as_it_was_and_read_only_where_it_is_new() -> None:
    pods = Pods()
    pods.put(pod(5, "a", name="a"), pod(9, "b", name="b"))
    pods.reads = 0
    listed = pods.cache.replace(Listing([pod(5, "a", name="a"), pod(8, "b", name="b")], 8), "team")
    assert [(item.meta.uid, item.meta.version) for item in listed] == [("a", 5), ("b", 8)]
    assert pods.reads == 1 and pods.found() == [("a", 5), ("b", 9)]


def test_where_jobs_are_not_defined_there_are_none() -> None:
    kube = FakeKube(0.0)
    listing = kube.listing

    def without_jobs(resource: Any, *arguments: Any, **options: Any) -> Listing:
        if resource is PYTORCHJOBS:
            raise KubeError("no such page", status=404)
        return listing(resource, *arguments, **options)

    kube.listing = without_jobs  # type: ignore[method-assign]
    index = Index(kube, PyTorchJobs(kube), lambda *_: None)  # type: ignore[arg-type]
    index.resync("")
    assert index.read("team", "o").jobs == {}


def test_workloads_are_kept_by_job_and_wake_its_pipeline() -> None:
    kube, woken = FakeKube(1_800_000_000.0), list[tuple[str, str]]()
    index = Index(kube, PyTorchJobs(kube), lambda *pipeline: woken.append(pipeline))  # type: ignore[arg-type]
    labels = {"nanochat.dev/pipeline": "demo", "nanochat.dev/pipeline-uid": "o"}
    job = {"namespace": "team", "name": "demo-1", "uid": "j", "resourceVersion": "1", "labels": labels}
    index.jobs.put(index.jobs.read({"metadata": job, "spec": {}}))
    woken.clear()

    def workload(version: int, owner: str) -> dict[str, Any]:
        meta = {"namespace": "team", "name": f"w-{owner}", "uid": f"w-{owner}", "resourceVersion": str(version)}
        meta |= {"ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": owner, "uid": "j"}]}
        return {"metadata": meta, "spec": {"queueName": "q"}}

    index.workloads.watched("ADDED", workload(2, "demo-1"))
    index.workloads.watched("ADDED", workload(3, "of-others"))
    assert woken == [("team", "demo")], "the Workloads of others are no news"
    assert len(index.queues("team").workloads) == 2 and index.queues("elsewhere").workloads == []
    index.resync("")
    assert index.queues("team").installed
