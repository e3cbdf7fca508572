"""Records of attempts that a tenant forged may harm that run; nothing of others is made or deleted by them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from two_pipelines import FORGED, GIGABYTE, UIDS, WELL, TwoPipelines

from operators.attempts import Attempts
from operators.index import MOST_PODS
from operators.kube_client import CONFIG_MAPS, PODS
from operators.pytorchjob import PYTORCHJOBS

ENDED = {"stage": "base", "number": 1, "started": 1_700_000_000.0, "ended": 1_700_000_100.0, "keys": ["k"]}
FAILED = {"reason": "Preempted", "message": "gone"}
SUCCEEDED = {"reason": "Succeeded"}
OTHERS = "well-56ef-dataset-1"  # the job, and the plan, of the pipeline beside it

FORGERIES: dict[str, tuple[str, Any]] = {
    "another's job, ended": ("base/0001", ENDED | {"job": OTHERS, "outcome": FAILED}),
    "another's job, running": ("base/0001", ENDED | {"job": OTHERS, "ended": None}),
    "a job of no pipeline": ("base/0001", ENDED | {"job": "kube-root-ca.crt", "outcome": FAILED}),
    "a job outside its namespace": ("base/0001", ENDED | {"job": f"../team-well/{OTHERS}", "outcome": FAILED}),
    "another's pods": ("base/0001", ENDED | {"pods": {"0": "others"}, "job_uid": "others", "launches": ["01-x"]}),
    "an unknown stage": ("sleep/0001", ENDED | {"stage": "sleep", "outcome": FAILED}),
    "a stage that is a path": ("..%2f/0001", ENDED | {"stage": "../../..", "outcome": FAILED}),
    "a huge number": ("base/999999", ENDED | {"number": 999_999, "outcome": FAILED}),
    "a number that is not the file's": ("base/0001", ENDED | {"number": 1 << 52, "outcome": FAILED}),
    "a success": ("base/0001", ENDED | {"outcome": SUCCEEDED}),
    "a success that is tidied": ("dataset/0001", ENDED | {"stage": "dataset", "outcome": SUCCEEDED, "cleaned": True}),
    "keys that are paths": ("base/0001", ENDED | {"keys": ["../../leases/gc.json"], "outcome": FAILED}),
    "dates to come": ("base/0001", ENDED | {"started": 9e10, "ended": 9.9e10, "used": 1e11, "outcome": FAILED}),
    "hosts of strange text": ("base/0001", ENDED | {"hosts": ["a b\n", "x" * 5000, "$(reboot)"], "outcome": FAILED}),
    "numbers out of bounds": ("base/0001", ENDED | {"gpus": 1 << 60, "reached": -1, "outcome": FAILED}),
    "no list": ("base/0001", ENDED | {"launches": {"a": 1}, "hosts": 3, "outcome": FAILED}),
    "a long message": ("base/0001", ENDED | {"outcome": FAILED | {"message": "x" * 200_000}}),
    "no object": ("base/0001", ["attempt"]),
    "nothing that it has": ("base/0001", {}),
    "NaN": ("base/0001", b'{"stage": "base", "number": 1, "started": NaN}'),
    "no JSON": ("base/0001", b"\x00\xff"),
    "deep": ("base/0001", b"[" * 100_000),
    "a gigabyte of nothing": ("base/0001", GIGABYTE),
}


@pytest.fixture
def two(tmp_path: Path) -> TwoPipelines:
    return TwoPipelines(tmp_path)


def forge(two: TwoPipelines, path: str, content: Any) -> None:
    two.forge(f"{two.paths().attempts}/{path}.json", content)


def mark(two: TwoPipelines) -> dict[str, Any]:
    """Everything in the cluster that is not the forged pipeline's."""
    kept = {}
    for resource in (PYTORCHJOBS, PODS, CONFIG_MAPS):
        for name, body in two.cluster[resource].items():
            if not name.startswith(FORGED):
                kept[f"{resource.plural}/{name}"] = copy.deepcopy(body)
    return kept


@pytest.mark.parametrize("kind", FORGERIES)
def test_a_forged_record_harms_no_one_else(two: TwoPipelines, kind: str) -> None:
    two.reconcile(WELL)
    bystander = {"metadata": {"name": "kube-root-ca.crt", "namespace": f"team-{FORGED}", "uid": "ca", "labels": {}}}
    two.cluster[CONFIG_MAPS]["kube-root-ca.crt"] = bystander
    before = mark(two)
    assert f"configmaps/{OTHERS}" in before and f"pods/{OTHERS}-worker-0" in before
    forge(two, *FORGERIES[kind])
    for _ in range(4):
        assert two.reconcile(FORGED)["phase"] in ("Running", "Pending")
    assert mark(two) == before, "nothing of others is deleted or changed"
    assert two.run_to_its_end(WELL) == "Succeeded"
    created = [name for name in two.cluster.created if name.startswith(FORGED)]
    assert all(name.startswith(f"{FORGED}-12ab-") for name in created), "names are derived, not read"


def test_the_pods_of_a_record_are_asked_for_by_names_that_are_counted(two: TwoPipelines) -> None:
    pods = {str(number): "others" for number in range(3000)}
    pods |= {f"{number}/../../../team-well/pods/{OTHERS}": "others" for number in range(2000)}
    forge(two, "base/0001", ENDED | {"ended": None, "pods": pods})
    two.reconcile(FORGED)
    assert two.cluster.asked.count("get pods") == MOST_PODS


def test_of_ten_thousand_records_the_newest_are_read(two: TwoPipelines, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(1, 10_001):
        forge(two, f"base/{number:04d}", ENDED | {"number": number, "outcome": FAILED, "job": OTHERS})
    for number in range(1, 60):  # of 200 KB each
        text = {"reason": "Error", "message": "x" * 200_000}
        forge(two, f"mid/{number:04d}", ENDED | {"stage": "mid", "number": number, "outcome": text})
    read = Attempts(two.store, two.paths(), pipeline=FORGED, uid=UIDS[FORGED]).load()
    assert [record.number for record in read.of("base")] == list(range(9_001, 10_001))
    assert len(read.of("mid")) == (8 << 20) // 200_100 and read.of("mid")[-1].number == 59
    assert sum("passed over (and" in message for message in caplog.messages) == 2
    two.reconcile(FORGED)
    assert two.cluster.asked.count("get configmaps") <= 20, "few are tidied at a time"
    assert two.run_to_its_end(WELL) == "Succeeded"


ANNOTATIONS: dict[str, Any] = {
    "no JSON": "{",
    "no object": "[1]",
    "NaN": '{"started": NaN}',
    "a part": '{"keys": []}',
    "another stage and number": {"stage": "base", "number": 7},
    "an end": {"outcome": SUCCEEDED, "cleaned": True, "decided": SUCCEEDED},
    "another's job": {"job": OTHERS, "job_uid": "others", "pods": {"0": "others"}},
    "keys that are paths": {"keys": ["../../x"]},
    "numbers out of bounds": {"nodes": -1, "gpus": 1 << 60},
    "hosts": {"hosts": ["$(reboot)"]},
    "nothing": None,
}


@pytest.mark.parametrize("kind", ANNOTATIONS)
def test_the_annotation_of_a_job_gives_no_authority(two: TwoPipelines, kind: str) -> None:
    two.reconcile(WELL)
    two.reconcile(FORGED)
    (job,) = [body for name, body in two.cluster[PYTORCHJOBS].items() if name.startswith(FORGED)]
    told, forged = json.loads(job["metadata"]["annotations"]["nanochat.dev/attempt"]), ANNOTATIONS[kind]
    text = json.dumps(told | forged) if isinstance(forged, dict) else forged
    job["metadata"]["annotations"] = {} if text is None else {"nanochat.dev/attempt": text}
    two.store.delete(two.paths().attempts)  # as after a controller that died before it recorded the attempt
    before = mark(two)
    two.restart()
    status = two.reconcile(FORGED)
    assert [(a["job"], a["stage"], a["number"], a["reason"]) for a in status["attempts"]] == [
        ("forged-12ab-dataset-1", "dataset", 1, "Running")
    ]
    assert mark(two) == before
    assert two.run_to_its_end(FORGED) == "Succeeded" and two.run_to_its_end(WELL) == "Succeeded"


def test_objects_that_only_carry_our_labels_are_left_alone(two: TwoPipelines) -> None:
    two.reconcile(FORGED)
    pods, jobs, maps = (two.cluster[kind] for kind in (PODS, PYTORCHJOBS, CONFIG_MAPS))
    pod = copy.deepcopy(pods["forged-12ab-dataset-1-worker-0"])
    pod["metadata"] |= {"name": "somebody", "uid": "somebody", "ownerReferences": []}
    pod["status"] = {"phase": "Failed", "reason": "Evicted"}
    job = copy.deepcopy(jobs["forged-12ab-dataset-1"])
    job["metadata"] |= {"name": "forged-12ab-tokens-1", "uid": "else", "ownerReferences": []}
    plan = copy.deepcopy(maps["forged-12ab-dataset-1"])
    plan["metadata"] |= {"name": "forged-12ab-tokens-1", "uid": "else", "ownerReferences": [{"uid": UIDS[WELL]}]}
    pods["somebody"], jobs["forged-12ab-tokens-1"], maps["forged-12ab-tokens-1"] = pod, job, plan
    for number in range(3):
        assert [a["reason"] for a in two.reconcile(FORGED)["attempts"]] == ["Running"], number
    forge(two, "tokens/0001", ENDED | {"stage": "tokens", "outcome": FAILED})
    two.restart()
    two.reconcile(FORGED)
    del jobs["forged-12ab-dataset-1"], pods["forged-12ab-dataset-1-worker-0"]
    for _ in range(3):
        two.reconcile(FORGED)
    assert {"somebody"} <= set(pods) and "forged-12ab-tokens-1" in jobs and "forged-12ab-tokens-1" in maps


def test_pods_of_a_job_that_is_gone_end_before_the_next_attempt(two: TwoPipelines) -> None:
    two.reconcile(FORGED)
    two.reconcile(FORGED)
    del two.cluster[PYTORCHJOBS]["forged-12ab-dataset-1"]
    kept = copy.deepcopy(two.cluster[PODS])
    two.restart()
    two.reconcile(FORGED)
    assert not two.cluster[PODS], "they are known by the job that made them, and deleted"
    two.cluster[PODS].update(kept)
    two.reconcile(FORGED)
    assert two.cluster.created == ["forged-12ab-dataset-1"], "while they run nothing is started"
