"""A short-lived pod that tries what only a pod can: are the images to be had, the store, and MLflow?

yield from looked(view, "probe", lambda: probe_checks(view))

It is the pod of a stage without GPUs but for its program and its small requests: the same Secret, service account,
labels, tolerations and image, and a container for each other image of the pipeline. It is deleted in any case; where
this process is killed by SIGKILL, the pod ends by itself and is removed by the next look.
"""

from __future__ import annotations

import json
import secrets
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from nanochat.cli.checks import Check
from nanochat.cli.cluster_parts import GOES_ON
from nanochat.cli.cluster_pods import pod_of
from nanochat.cli.cluster_view import ClusterView, said
from nanochat.parse.json_text import read_json
from nanochat.storage.records import RECORD
from operators.cluster import Cluster
from operators.kube_client import PODS
from operators.kube_error import Object
from operators.observation import CONTAINER_WAITS
from operators.sentences import Wait

LABEL = "nanochat.dev/probe"
ROOM_SECONDS = 45.0  # for a node to take the pod
SECONDS = 300.0  # for its images to be pulled and its program to end
LOOK = 1.0
AT_ONCE = ("InvalidImageName", "ErrImageNeverPull", "ImagePullBackOff", "CreateContainerConfigError")
REQUESTS = {"cpu": "100m", "memory": "512Mi"}


def probe_checks(view: ClusterView) -> Iterator[Check]:
    """The findings of the pod: images, store, mlflow."""
    untried = "the images, the store and MLflow were not tried from a pod"
    reasons = {"secret", "podsecurity", "quota", "pods"} & view.broken
    if view.homeless & set(view.stages[:1]):
        reasons.add("stages")
    if reasons:
        yield Check("probe", "skip", f"{untried}: see {', '.join(sorted(reasons))}")
        return
    if not view.may("create", PODS) or not view.may("delete", PODS):
        advice = "ask for the role edit there, or have this run by who has it"
        yield Check("probe", "skip", f"{untried}: you may not create and delete pods in {view.namespace}", advice)
        return
    _sweep(view)
    body = build_probe(view)
    name = body["metadata"]["name"]
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        view.kube.create(PODS, body)
        yield from _follow(view, name)
    finally:
        view.kube.delete(PODS, view.namespace, name, grace=0)
        signal.signal(signal.SIGTERM, before)


def _sweep(view: ClusterView) -> None:
    """Delete the pods of looks that were killed, once they have ended."""
    for left in view.kube.listing(PODS, view.namespace, labelSelector=LABEL).items:
        if (left.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            view.kube.delete(PODS, view.namespace, left["metadata"]["name"], uid=left["metadata"]["uid"])


def build_probe(view: ClusterView) -> Object:
    """The pod's object."""
    body, *others = (pod_of(view, stage) for stage in view.stages)
    spec, profile = body["spec"], view.accepted.profile
    template = spec["containers"][0]
    images = dict.fromkeys(pod["spec"]["containers"][0]["image"] for pod in (body, *others))
    pulled = [item["name"] for pod in (body, *others) for item in pod["spec"].get("imagePullSecrets") or ()]
    spec["volumes"] = [item for item in spec["volumes"] if "emptyDir" in item]
    kept = {item["name"] for item in spec["volumes"]}
    template["volumeMounts"] = [item for item in template["volumeMounts"] if item["name"] in kept]
    template["resources"] = {"requests": REQUESTS, "limits": {"memory": REQUESTS["memory"]}}
    asked = json.dumps({"profile": asdict(profile.location()), "tracking": profile.tracking})
    program = ["python", "-m", "nanochat.cli.probe", asked]
    spec["containers"] = [
        template | {"name": f"probe-{number}", "image": image, "command": ["true"] if number else program}
        for number, image in enumerate(images)
    ]
    spec |= {"restartPolicy": "Never", "activeDeadlineSeconds": int(SECONDS) + 60, "terminationGracePeriodSeconds": 1}
    spec["imagePullSecrets"] = [{"name": name} for name in dict.fromkeys(pulled)]
    body["metadata"]["name"] = f"nanochat-doctor-{secrets.token_hex(4)}"
    body["metadata"]["labels"][LABEL] = "doctor"
    return body


def _follow(view: ClusterView, name: str) -> Iterator[Check]:
    """Look at the pod until it has said what it has to say."""
    began = time.monotonic()
    while True:
        pod = view.kube.get(PODS, view.namespace, name)
        if pod is None:
            yield Check("probe", "skip", f"somebody else deleted pod {name} before it had ended", "try again")
            return
        passed = time.monotonic() - began
        if (found := _findings(view, pod)) is not None:
            yield from found
            return
        if passed > (SECONDS if pod["spec"].get("nodeName") else ROOM_SECONDS):
            yield _too_long(view, pod, passed)
            return
        time.sleep(LOOK)


def _findings(view: ClusterView, pod: Object) -> list[Check] | None:
    """The findings, once the pod has told all; None while it may tell more."""
    states = {item["name"]: item for item in (pod.get("status") or {}).get("containerStatuses") or ()}
    held = [item for item in states.values() if _waits(item).get("reason") in AT_ONCE]
    images = [item for item in held if CONTAINER_WAITS[_waits(item)["reason"]] is not Wait.CONFIG]
    ended = (states.get("probe-0") or {}).get("state", {}).get("terminated")
    if held and not images:
        why = said(Wait.CONFIG, pod="the probe", why=_waits(held[0]).get("message", ""))
        return [Check("secret", "fail", why, f"kubectl -n {view.namespace} get secrets,configmaps lists what is there")]
    unsettled = [item for item in states.values() if item not in held and "terminated" not in (item.get("state") or {})]
    if not states or unsettled:
        return None
    found = [_image_check(view, pod, item) for item in images]
    if not images:
        pulled = ", ".join(item["image"] for item in pod["spec"]["containers"])
        found = [Check("images", "ok", f"{pulled}: pulled on {pod['spec'].get('nodeName', '')}")]
    return [*found, *(_words(view, ended) if ended else ())]


def _image_check(view: ClusterView, pod: Object, status: Object) -> Check:
    image = next(item["image"] for item in pod["spec"]["containers"] if item["name"] == status["name"])
    waits = _waits(status)
    wait = CONTAINER_WAITS[waits["reason"]]
    why = waits.get("message") or waits["reason"]
    advice = (
        "correct images.registry and images.tag of the chart, or image of spec.pods or of the stage; push it; or "
        f"name a Secret in {view.namespace} with the registry's credentials in images.pullSecrets"
    )
    return Check("images", "fail", f"{image}: {said(wait, pod='the probe', why=why)}", advice)


def _words(view: ClusterView, ended: Mapping[str, Any]) -> Iterator[Check]:
    """The findings that the program left."""
    profile = view.accepted.profile
    keys = f"the keys of Secret {view.namespace}/{profile.secret}" if profile.secret else "the service account's rights"
    try:
        told = read_json(ended.get("message") or "", limit=RECORD)
        found = {item["name"]: (item["level"], item["found"]) for item in told}
    except (ValueError, TypeError, KeyError):
        text = f"the probe ended with exit code {ended.get('exitCode')}: {(ended.get('message') or '')[-300:]}"
        yield Check("probe", "skip", text, "the image may be of another version than this command")
        return
    level, text = found.get("storage", ("skip", "the probe said nothing of the store"))
    advice = f"correct {keys}, or the profile's root and endpoint (docs/storage.md)" if level == "fail" else ""
    yield Check("store", level, f"from a pod: {text}", advice)
    if "tracking" in found and "mlflow" not in view.broken:
        level, text = found["tracking"]
        yield Check("mlflow", level, f"from a pod: {text}", GOES_ON if level == "fail" else "")


def _too_long(view: ClusterView, pod: Object, passed: float) -> Check:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    unplaced = next((item for item in conditions if item["type"] == "PodScheduled" and item["status"] == "False"), None)
    if unplaced is not None:
        why = said(Wait.UNSCHEDULABLE, why=unplaced.get("message", ""))
        advice = "see stages" if "stages" in view.broken else "try again when there is room"
        return Check("probe", "skip", f"the probe {why} (for {passed:.0f} s)", advice)
    warning = Cluster(view.kube).warning(view.namespace, pod["metadata"]["uid"])
    why = f": {warning.text}" if warning else ""
    return Check(
        "probe", "skip", f"the probe has not ended within {passed:.0f} s{why}", "try again: images may be large"
    )


def _waits(status: Object) -> Mapping[str, Any]:
    """Why a container waits; empty where it does not."""
    return (status.get("state") or {}).get("waiting") or {}
