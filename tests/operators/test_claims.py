"""Who makes what several need: never two at a time, and never one that keeps others from it in vain."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from fake_cluster import FakeKube

from nanochat.spec.chatpipeline import ATTEMPT, PIPELINE, UID
from operators.claimants import Claimant, Want
from operators.claims import MOST_SECONDS, TURN_SECONDS, YIELD_SECONDS, Claims
from operators.index import Index
from operators.kube_client import PIPELINES, PODS
from operators.pytorchjob import PYTORCHJOBS, PyTorchJobs

ROOT = "s3://store"
BEGAN = 1_800_000_000.0
K = Want(frozenset({"k"}))


@dataclass
class Site:
    """A cluster with pipelines, whose jobs are made and deleted by hand."""

    kube: FakeKube = field(default_factory=lambda: FakeKube(BEGAN))
    woken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Another controller, which knows what the API server tells."""
        self.index = Index(self.kube, PyTorchJobs(self.kube), lambda namespace, name: None)  # type: ignore[arg-type]
        self.claims = Claims(self.index, changed=lambda _, name: self.woken.append(name), clock=lambda: self.kube.now)
        self.listen()

    def listen(self) -> None:
        """What the watches and the listing tell."""
        self.index.resync("")
        self.claims.learn()

    def pipeline(self, name: str, *, age: int = 0, namespace: str = "team", **more: Any) -> Claimant:
        """A pipeline that is there; the one with the larger age is the older."""
        self.kube.now = BEGAN - age
        profile = {"root": more.pop("root", ROOT)}
        spec = {"store": more.pop("profile", "default")}
        meta = {"name": name, "namespace": namespace, **more}
        found = self.kube.declare({"metadata": meta, "spec": spec}, uid=f"{name}-uid")
        self.kube.now = BEGAN
        self.index.resync("")
        return Claimant.of(found, root=profile["root"], profile=spec["store"])

    def status(self, who: Claimant, **stages: dict[str, str]) -> None:
        """The status that a controller has written."""
        told = [{"name": stage, "keys": keys} for stage, keys in stages.items()]
        self.kube[PIPELINES][who.name]["status"] = {"profile": {"root": who.root}, "stages": told}

    def job(self, who: Claimant, *keys: str, stage: str = "base", number: int = 1) -> str:
        """The pipeline's job that makes these keys; its pods run at once."""
        name = f"{who.name}-{who.uid[:4]}-{stage}-{number}"
        record = {"stage": stage, "number": number, "keys": keys}
        meta = {
            "name": name,
            "namespace": who.namespace,
            "labels": {PIPELINE: who.name, UID: who.uid},
            "annotations": {ATTEMPT: json.dumps(record)},
            "ownerReferences": [{"apiVersion": "v1", "kind": "ChatPipeline", "name": who.name, "uid": who.uid}],
        }
        worker = {"replicas": 1, "template": {"spec": {"containers": []}}}
        body = {"metadata": meta, "spec": {"runPolicy": {}, "pytorchReplicaSpecs": {"Worker": worker}}}
        self.kube.create(PYTORCHJOBS, body)
        return name

    def waits(self, who: Claimant, want: Want = K, *, now: float = 0.0) -> str:
        """What a pipeline is told that would start something; '' where it may."""
        return "; ".join(sorted(set(self.claims.take(who, want, now).values())))

    def starts(self, who: Claimant, *keys: str) -> None:
        """A reconciliation that starts an attempt."""
        assert not self.waits(who, Want(frozenset(keys)))
        self.job(who, *keys)
        self.index.resync("")
        self.claims.settle(who, keys)


@pytest.fixture
def site() -> Site:
    return Site()


# ---- who waits for whom ---------------------------------------------------------------------------------------------


def test_whoever_began_makes_it_whatever_its_age(site: Site) -> None:
    older, younger = site.pipeline("older", age=60), site.pipeline("younger")
    site.starts(younger, "k", "m")
    assert site.waits(older) == "waits for pipeline younger, which makes it"
    assert site.waits(older, Want(frozenset({"l"}))) == ""


def test_one_that_makes_something_else_too_is_waited_for_as_a_whole(site: Site) -> None:
    first, second, third = site.pipeline("first"), site.pipeline("second"), site.pipeline("third")
    site.starts(first, "k")
    assert site.claims.take(second, Want(frozenset({"k", "l"})), 0.0) == {
        "k": "waits for pipeline first, which makes it"
    }
    assert site.waits(third, Want(frozenset({"l"}))) == "", "who waits for one of several has taken none of them"


@pytest.mark.parametrize(
    ("other", "waits"),
    [
        ({}, "waits for pipeline other, which makes it"),
        ({"namespace": "lab"}, "waits for pipeline lab/other, which makes it"),
        ({"namespace": "lab", "profile": "labs"}, ""),
        ({"profile": "labs"}, "waits for pipeline other, which makes it"),
        ({"root": "s3://elsewhere"}, ""),
        ({"namespace": "lab", "root": "s3://elsewhere"}, ""),
    ],
)
def test_whose_attempts_matter(site: Site, other: dict[str, str], waits: str) -> None:
    """Those in one store; of another namespace, only where both use one profile. A restart changes nothing."""
    own, theirs = site.pipeline("own"), site.pipeline("other", **other)
    site.status(theirs)
    site.starts(theirs, "k")
    assert site.waits(own) == waits
    site.restart()
    assert site.waits(own) == waits


def test_of_those_that_wait_the_oldest_goes_first(site: Site) -> None:
    pipelines = [site.pipeline(name, age=age) for name, age in (("maker", 0), ("c", 1), ("a", 3), ("b", 2))]
    maker, c, a, b = pipelines
    site.starts(maker, "k")
    for who in (c, a, b):
        site.claims.settle(who, wants=[K])
    assert site.woken == []
    site.claims.settle(maker)
    assert sorted(site.woken) == ["a", "b", "c"]
    assert site.waits(c) == site.waits(b) == "waits for pipeline a, which makes it"
    assert site.waits(a) == ""
    assert site.waits(b) == "waits for pipeline a, which makes it"


def test_one_that_does_not_come_loses_its_turn(site: Site) -> None:
    older, younger = site.pipeline("older", age=1), site.pipeline("younger")
    site.claims.settle(older, wants=[K])
    assert site.waits(younger, now=100.0) == "waits for pipeline older, which makes it"
    assert site.woken == ["older"]
    assert site.waits(younger, now=100.0 + TURN_SECONDS) != ""
    assert site.waits(younger, now=101.0 + TURN_SECONDS) == ""
    assert site.waits(older) == "waits for pipeline younger, which makes it"


def test_one_that_waits_for_something_else_keeps_nobody_back(site: Site) -> None:
    maker, older, younger = site.pipeline("maker"), site.pipeline("older", age=1), site.pipeline("younger")
    site.starts(maker, "k")
    site.claims.settle(older, wants=[Want(frozenset({"k", "l"}))])
    assert site.waits(younger, Want(frozenset({"l"}))) == ""


def test_who_was_suspended_or_failed_has_let_go(site: Site) -> None:
    older, younger = site.pipeline("older", age=1), site.pipeline("younger")
    site.starts(older, "k")
    site.claims.settle(younger, wants=[K])
    site.claims.settle(older)
    assert site.woken == ["younger"] and site.waits(younger) == ""


def test_what_the_api_server_refused_is_free_and_what_it_did_not_answer_is_not(site: Site) -> None:
    own, other = site.pipeline("own"), site.pipeline("other")
    assert site.waits(own) == ""
    assert site.waits(other) == "waits for pipeline own, which makes it", "the job may be there"
    site.claims.settle(other, wants=[K])
    site.claims.refuse(own.uid, K.keys)
    assert site.woken == ["other"] and site.waits(other) == ""


# ---- who is not reconciled ------------------------------------------------------------------------------------------


def test_after_a_restart_jobs_tell_who_makes_what(site: Site) -> None:
    older, younger = site.pipeline("older", age=1), site.pipeline("younger")
    site.status(younger)
    site.starts(younger, "k")
    site.restart()
    assert site.waits(older) == "waits for pipeline younger, which makes it"
    site.claims.settle(younger, {"k"})
    assert site.waits(older) != ""
    site.claims.settle(younger)
    assert site.waits(older) == ""


def test_one_that_cannot_be_reconciled_and_makes_nothing_keeps_nobody_back(site: Site) -> None:
    site.pipeline("older", age=1)
    younger = site.pipeline("younger")
    site.restart()
    assert site.waits(younger) == ""


def test_after_a_restart_pods_whose_job_is_gone_still_count(site: Site) -> None:
    older, younger = site.pipeline("older", age=1), site.pipeline("younger")
    site.status(younger, base={"model/base": "k"}, mid={"model/mid": "m"})
    name = site.job(younger, "k")
    del site.kube[PYTORCHJOBS][name]
    far = site.pipeline("far", namespace="lab")
    site.restart()
    assert site.waits(far, Want(frozenset({"m"}))) == ""
    assert site.waits(far) == "waits for pipeline team/younger, which makes it"
    assert site.waits(older, Want(frozenset({"m"}))) != "", "its declaration may be another since"
    assert site.waits(older) == "waits for pipeline younger, which makes it"
    site.kube[PODS].clear()
    site.listen()
    assert site.waits(older) == ""


def test_pods_of_which_nobody_knows_what_they_make_are_waited_for(site: Site) -> None:
    """Pipeline and job were deleted, the controller began anew, and the pods have not ended yet."""
    gone, own, far = site.pipeline("gone"), site.pipeline("own"), site.pipeline("far", namespace="lab")
    del site.kube[PYTORCHJOBS][site.job(gone, "k")], site.kube[PIPELINES]["gone"]
    site.restart()
    assert site.waits(own) == "waits for the pods of pipeline gone, which was deleted, to end"
    assert site.waits(far, Want(frozenset({"l"}))) == ""
    (pod,) = site.kube[PODS].values()
    site.kube.change(PODS, pod | {"metadata": pod["metadata"] | {"ownerReferences": []}})
    site.listen()
    assert site.waits(own) == "", "a pod that somebody labelled so stops nobody"
    site.kube[PODS].clear()
    site.listen()
    assert site.waits(own) == ""


@pytest.mark.parametrize("restarts", [False, True])
def test_a_job_that_lost_its_pipeline(site: Site, restarts: bool) -> None:
    """`kubectl delete cp --cascade=orphan`, and the pipeline is applied again."""
    first = site.pipeline("demo")
    site.starts(first, "k")
    job = site.job(first, "k")
    site.kube[PYTORCHJOBS][job]["metadata"] |= {"ownerReferences": None, "resourceVersion": "1000000"}
    second = replace(site.pipeline("demo"), uid="other-uid")
    site.kube[PIPELINES]["demo"]["metadata"]["uid"] = second.uid
    elsewhere = site.pipeline("far", namespace="lab", profile="labs")
    if restarts:
        site.restart()
    else:
        site.claims.drop(first.uid)
        site.listen()
    told = site.waits(second)
    assert told.startswith(f"waits for job {job}, which makes it and whose pipeline was deleted without it")
    assert f"`kubectl delete pytorchjob {job} -n team` at once" in told
    assert site.waits(elsewhere) == ""
    site.kube[PYTORCHJOBS][job] |= {"status": {"conditions": [{"type": "Succeeded", "status": "True"}]}}
    site.kube[PYTORCHJOBS][job]["metadata"]["resourceVersion"] = "1000001"
    site.index.resync("")
    assert "waits for job" in site.waits(second), "its pods may still run"
    site.kube[PODS].clear()
    site.index.resync("")
    assert site.waits(second) == ""


def test_a_pipeline_that_is_deleted_makes_it_until_nothing_of_it_runs(site: Site) -> None:
    first, second = site.pipeline("first"), site.pipeline("second")
    site.starts(first, "k")
    del site.kube[PIPELINES]["first"]
    site.index.resync("")
    site.claims.drop(first.uid)
    assert site.waits(second) == "waits for job first-firs-base-1 of pipeline first, which was deleted, to end"
    site.kube[PYTORCHJOBS].clear()
    site.index.resync("")
    assert site.waits(second) == "waits for the pods of pipeline first, which was deleted, to end"
    site.kube[PODS].clear()
    site.index.resync("")
    assert site.waits(second) == ""


@pytest.mark.parametrize("annotation", ["", "{", "[1]", "null", '{"stage": "base"}', '{"keys": 7}'])
def test_a_job_whose_annotation_makes_no_sense_keeps_nobody_back(site: Site, annotation: str) -> None:
    first, second = site.pipeline("first"), site.pipeline("second")
    job = site.job(first, "k")
    site.kube[PYTORCHJOBS][job]["metadata"]["annotations"][ATTEMPT] = annotation
    site.restart()
    assert site.waits(second) == ""


# ---- who yields -----------------------------------------------------------------------------------------------------


def test_an_attempt_that_does_not_run_yields_to_one_that_was_not_tried(site: Site) -> None:
    stuck, next_one, later = site.pipeline("stuck", age=2), site.pipeline("next", age=1), site.pipeline("later")
    site.starts(stuck, "k")
    assert site.claims.yield_to(stuck, K, MOST_SECONDS) == "", "nobody else wants it"
    for who in (next_one, later):
        site.claims.settle(who, wants=[K])
    assert site.claims.yield_to(stuck, K, YIELD_SECONDS - 1) == ""
    assert site.claims.yield_to(stuck, K, YIELD_SECONDS) == "next"
    assert site.waits(next_one) == "waits for pipeline stuck, which makes it", "until nothing of it can run"
    assert site.waits(stuck) == "waits for pipeline next, which makes it", "in the very pass in which its job is gone"
    site.claims.settle(stuck, wants=[K])
    assert site.waits(stuck) == site.waits(later) == "waits for pipeline next, which makes it"
    assert site.waits(next_one) == ""


def test_two_that_both_cannot_run_take_turns_ever_more_rarely(site: Site) -> None:
    holder, other = site.pipeline("a", age=1), site.pipeline("b")
    patience = []
    for _ in range(8):
        site.starts(holder, "k")
        site.claims.settle(other, wants=[K])
        waited = next(
            seconds
            for seconds in itertools.chain(YIELD_SECONDS * 2**n for n in range(10))
            if site.claims.yield_to(holder, K, min(seconds, MOST_SECONDS))
        )
        patience.append(min(waited, MOST_SECONDS) / YIELD_SECONDS)
        site.kube[PYTORCHJOBS].clear()
        site.claims.settle(holder, wants=[K])
        assert site.waits(holder) != ""
        holder, other = other, holder
    assert patience == [1, 2, 2, 4, 4, 8, 8, 16]


@pytest.mark.parametrize("mended", ["edited", "ran"])
def test_one_that_may_be_right_now_is_tried_soon(site: Site, mended: str) -> None:
    one, two = site.pipeline("one", age=1), site.pipeline("two")
    site.starts(one, "k")
    site.claims.settle(two, wants=[K])
    assert site.claims.yield_to(one, K, YIELD_SECONDS)
    site.claims.settle(one, wants=[K])
    site.starts(two, "k")
    assert site.claims.yield_to(two, K, YIELD_SECONDS) == ""
    if mended == "edited":
        one = replace(one, generation=2)
    site.claims.settle(one, wants=[K], runs=mended == "ran")
    assert site.claims.yield_to(two, K, YIELD_SECONDS) == "one"


def test_nothing_is_gained_by_one_that_asks_for_the_same_in_the_same_queue(site: Site) -> None:
    stuck, other = site.pipeline("stuck"), site.pipeline("other")
    place, smaller = Want(K.keys, ("team", "queue", 2)), Want(K.keys, ("team", "queue", 1))
    site.starts(stuck, "k")
    site.claims.settle(other, wants=[place])
    assert site.claims.yield_to(stuck, place, MOST_SECONDS) == ""
    assert site.claims.yield_to(stuck, K, MOST_SECONDS) == "other", "it was admitted, and cannot run for its own fault"
    site.claims.settle(other, wants=[smaller])
    assert site.claims.yield_to(stuck, place, MOST_SECONDS) == "other"


def test_nobody_yields_to_one_that_could_not_start_either(site: Site) -> None:
    stuck, busy, other = site.pipeline("stuck"), site.pipeline("busy"), site.pipeline("other")
    site.starts(stuck, "k")
    site.starts(busy, "l")
    site.claims.settle(other, wants=[Want(frozenset({"k", "l"}))])
    assert site.claims.yield_to(stuck, K, MOST_SECONDS) == ""
    site.claims.settle(busy)
    assert site.claims.yield_to(stuck, K, MOST_SECONDS) == "other"


def test_what_is_at_rest_takes_no_room(site: Site) -> None:
    for n in range(50):
        site.claims.settle(site.pipeline(f"p{n}"), {"k"} if n == 7 else ())
    assert list(site.claims._entries) == ["p7-uid"]
    site.claims.settle(site.pipeline("p7"))
    assert not site.claims._entries and not site.claims._by_key
