"""Which model version the inference server is to serve: a pure function of the registry's alias and the Deployment.

    decision = decide(champion, read(deployment))
    if decision.write: cluster.apply_deployment(applied(deployment, decision))

All that is remembered is in the Deployment: what was written is in its pod template, the last version that became ready
and the one that was given up in its annotation. They change in one request, so that a controller may be killed at any
instant. A version that was given up is not tried again until the alias moves, or is given to it anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

Object = Mapping[str, Any]
Condition = tuple[str, str, str]  # status, reason, message

CONTAINER = "server"
MEMORY = "nanochat.dev/serving"
# What the pods are told: the variable of the container, and the annotation of the template for people.
TOLD = {
    "uri": ("NANOCHAT_MODEL_URI", "nanochat.dev/model-uri"),
    "version": ("NANOCHAT_MODEL_VERSION", "nanochat.dev/model-version"),
    "fingerprint": ("NANOCHAT_MODEL_FINGERPRINT", "nanochat.dev/model-fingerprint"),
}


@dataclass(frozen=True, slots=True)
class Target:
    """A version to serve."""

    uri: str
    version: str
    fingerprint: str
    run: str = ""  # folder of the run that released it
    promoted: str = ""  # when it was made champion

    def same(self, other: Target | None) -> bool:
        """Whether pods are told the same."""
        return other is not None and all(getattr(self, name) == getattr(other, name) for name in TOLD)


@dataclass(frozen=True, slots=True)
class Champion:
    """The version that has the alias; without a target it cannot be served, as `refused` says."""

    version: str
    run: str = ""
    promoted: str = ""
    target: Target | None = None
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A version that did not become ready."""

    version: str
    run: str
    promoted: str
    why: str

    def means(self, champion: Champion) -> bool:
        """Whether it is this champion, made so at this time."""
        return (self.version, self.promoted) == (champion.version, champion.promoted)


@dataclass(frozen=True, slots=True)
class Memory:
    """What the Deployment's annotation holds."""

    written: Target | None = None  # what is in the pod template
    good: Target | None = None  # what became ready last
    rejected: Rejected | None = None

    @classmethod
    def parse(cls, text: str) -> Memory:
        """From the annotation; what cannot be read is forgotten."""
        try:
            data = json.loads(text or "{}")
            known = {"written": Target, "good": Target, "rejected": Rejected}
            return cls(**{name: kind(**data[name]) for name, kind in known.items() if data.get(name)})
        except (ValueError, TypeError, AttributeError):
            return cls()

    def to_text(self) -> str:
        told = {f.name: asdict(value) for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return json.dumps(told, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Deployed:
    """The Deployment as it stands."""

    current: Target | None  # what its pods are told
    memory: Memory
    rollout: Literal["going", "complete", "failed"]
    why: str = ""  # it failed


@dataclass(frozen=True, slots=True)
class News:
    """What pipelines are told: the conditions of the runs that released what is served, and what is not."""

    served: str = ""  # version
    conditions: Mapping[str, Condition] = field(default_factory=dict)  # by the run's folder

    def about(self, run: str, *, told_before: bool) -> Condition | None:
        """The condition of a run; None where it has none."""
        superseded = ("False", "Superseded", f"version {self.served} of another run is served")
        return self.conditions.get(run) or (superseded if told_before and self.served else None)


@dataclass(frozen=True, slots=True)
class Decision:
    """What the Deployment is to hold, whether that has to be written, and what is to be told."""

    target: Target | None
    memory: Memory
    write: bool
    news: News


def decide(champion: Champion | None, deployed: Deployed) -> Decision:
    """`champion` is None where no version has the alias, or where that is not known now: then nothing new is begun."""
    current, good, rejected = deployed.current, deployed.memory.good, deployed.memory.rejected
    if deployed.rollout == "complete" and current is not None:
        good = current
    wanted = current
    if deployed.rollout == "failed" and current is not None and good is not None and not current.same(good):
        rejected = Rejected(current.version, current.run, current.promoted, deployed.why)
        wanted = good
    if champion is not None and rejected is not None and not rejected.means(champion):
        rejected = None
    if champion is not None and champion.target is not None and rejected is None:
        wanted = champion.target
    memory = Memory(written=wanted, good=good, rejected=rejected)
    write = wanted is not None and (not wanted.same(current) or memory != deployed.memory)
    return Decision(wanted, memory, write, _news(champion, deployed, wanted, memory))


def _news(champion: Champion | None, deployed: Deployed, wanted: Target | None, memory: Memory) -> News:
    served = memory.good
    conditions: dict[str, Condition] = {}
    if served is not None:
        conditions[served.run] = ("True", "Serving", f"version {served.version} is served")
    instead = f"version {served.version} is served" if served else "no version is served"
    if memory.rejected is not None:
        version = memory.rejected.version
        message = f"version {version} did not become ready ({memory.rejected.why}): {instead}"
        again = f"; 'nanochat rollback --to {version}' tries it again"
        conditions[memory.rejected.run] = ("False", "RolloutFailed", message + again)
    elif champion is not None and champion.target is None:
        message = f"version {champion.version} is not served: {champion.refused}; {instead}"
        conditions[champion.run] = ("False", "Refused", message)
    elif wanted is not None and not wanted.same(served):
        failed = deployed.rollout == "failed" and wanted.same(deployed.current)
        message = f"version {wanted.version} is rolled out; {instead}"
        conditions[wanted.run] = ("Unknown", "RollingOut", message)
        if failed:  # there is nothing to go back to
            message = f"version {wanted.version} does not become ready ({deployed.why}): {instead}"
            conditions[wanted.run] = ("False", "RolloutFailed", message)
    return News(served.version if served else "", conditions)


# ---- the Deployment -------------------------------------------------------------------------------------------------


def read(deployment: Object) -> Deployed:
    """What a Deployment, as the API server gives it, comes to."""
    memory = Memory.parse((deployment["metadata"].get("annotations") or {}).get(MEMORY, ""))
    containers = deployment["spec"]["template"]["spec"]["containers"]
    server = next((item for item in containers if item["name"] == CONTAINER), {})
    values = {item["name"]: item.get("value", "") for item in server.get("env", ())}
    told = {name: values.get(variable, "") for name, (variable, _) in TOLD.items()}
    current = Target(**told) if told["uri"] else None
    if current is not None and current.same(memory.written):
        current = memory.written
    rollout, why = _rollout(deployment)
    return Deployed(current, memory, rollout, why)


def _rollout(deployment: Object) -> tuple[Literal["going", "complete", "failed"], str]:
    """As `kubectl rollout status` judges it: a condition alone may still be that of the template before."""
    status, wanted = deployment.get("status") or {}, deployment["spec"].get("replicas", 1)
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return "going", ""
    counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "availableReplicas")]
    if wanted and counts == [wanted] * 3:
        return "complete", ""
    for condition in status.get("conditions", ()):
        if condition["type"] == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded":
            return "failed", condition.get("message", "").rstrip(".")
    return "going", ""


def applied(deployment: Object, decision: Decision) -> dict[str, Any]:
    """The fields of the Deployment that are the controller's, for server-side apply."""
    assert decision.target is not None
    meta, target = deployment["metadata"], decision.target
    told = {name: getattr(target, name) for name in TOLD}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": meta["name"],
            "namespace": meta["namespace"],
            "uid": meta["uid"],  # another one of the name is left alone
            "annotations": {MEMORY: decision.memory.to_text()},
        },
        "spec": {
            "template": {
                "metadata": {"annotations": {TOLD[name][1]: value for name, value in told.items()}},
                "spec": {
                    "containers": [
                        {
                            "name": CONTAINER,
                            "env": [{"name": TOLD[name][0], "value": value} for name, value in told.items()],
                        }
                    ]
                },
            }
        },
    }
