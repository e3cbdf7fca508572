"""Which version the inference server gets, decided from the registry's champion and the Deployment as it stands.

    decision = decide(champion, deployed)
    decision.target, decision.write, decision.news.about(run, told_before=False)

It is pure. All that is remembered is in the Deployment (`Memory`): what was written, the last version that became ready
and the one that was given up. A version that was given up is not tried again until the alias moves, or is given to it
anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Literal

from nanochat.parse.json_text import read_json
from nanochat.storage.records import RECORD

Condition = tuple[str, str, str]  # status, reason, message

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
    """The version that has the alias; without a target no further pod can get it, as `refused` says."""

    version: str
    run: str = ""
    promoted: str = ""
    target: Target | None = None
    refused: str = ""
    source: str = ""  # the artifact's address

    def among(self, *targets: Target | None) -> Target | None:
        """The one of these that is this version; servers that have it go on with it."""
        found = next((t for t in targets if t is not None and (t.version, t.uri) == (self.version, self.source)), None)
        return None if found is None else replace(found, run=self.run, promoted=self.promoted)

    @property
    def remedy(self) -> str:
        """The command that makes its artifact anew; '' where no pipeline released it."""
        namespace, _, name = self.run.removeprefix("runs/").partition("/")[0].partition(".")
        return f"; `nanochat retry {name} -n {namespace}` makes it anew" if name else ""


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
    """Contents of the Deployment's annotation."""

    written: Target | None = None  # what is in the pod template
    good: Target | None = None  # what became ready last
    rejected: Rejected | None = None

    @classmethod
    def parse(cls, text: str) -> Memory:
        """From the annotation; what cannot be read is forgotten."""
        try:
            data = read_json(text or "{}", limit=RECORD)
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
    why: str = ""  # not all of its pods are ready
    uid: str = ""
    ready: bool = True  # whether any pod answers


@dataclass(frozen=True, slots=True)
class News:
    """News for pipelines: the conditions of the runs that released the served version, or one that is not served."""

    served: str = ""  # version
    conditions: Mapping[str, Condition] = field(default_factory=dict)  # by the run's folder
    trouble: str = ""  # why the champion is not known

    def about(self, run: str, *, told_before: bool) -> Condition | None:
        """The condition of a run; None where it has none."""
        if run in self.conditions or not told_before:
            return self.conditions.get(run)
        if self.served:
            return ("False", "Superseded", f"version {self.served} of another run is served")
        why = f": {self.trouble}" if self.trouble else ", for the registry has no champion"
        return ("Unknown", "NotServed", f"the chat API serves no version{why}")


@dataclass(frozen=True, slots=True)
class Decision:
    """The contents due in the Deployment, whether they have to be written, and the news."""

    target: Target | None
    memory: Memory
    write: bool
    news: News


def decide(champion: Champion | None, deployed: Deployed) -> Decision:
    """`champion` is None where no version has the alias, or where that is not known now: then nothing new is begun."""
    current, good, rejected = deployed.current, deployed.memory.good, deployed.memory.rejected
    if champion is not None and champion.target is None:
        champion = replace(champion, target=champion.among(current, good))
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
    served = memory.good if deployed.ready else None
    conditions: dict[str, Condition] = {}
    why = f" ({deployed.why})" if deployed.why else ""
    instead = f"version {served.version} is served" if served else "no version is served"
    if served is not None:
        conditions[served.run] = ("True", "Serving", f"version {served.version} is served")
    elif memory.good is not None:
        message = f"no pod of the chat API that has version {memory.good.version} is ready{why}"
        conditions[memory.good.run] = ("False", "NotReady", message)
    if memory.rejected is not None:
        version = memory.rejected.version
        message = f"version {version} did not become ready ({memory.rejected.why}): {instead}"
        again = f"; 'nanochat rollback --to {version}' tries it again"
        conditions[memory.rejected.run] = ("False", "RolloutFailed", message + again)
    elif champion is not None and champion.target is None:
        message = f"version {champion.version} cannot be served: {champion.refused}{champion.remedy}"
        conditions[champion.run] = ("False", "Refused", f"{message}; {instead}")
    elif wanted is not None and not wanted.same(memory.good):
        message = f"version {wanted.version} is rolled out{why if wanted.same(deployed.current) else ''}; {instead}"
        conditions[wanted.run] = ("Unknown", "RollingOut", message)
        if deployed.rollout == "failed" and wanted.same(deployed.current):  # there is nothing to go back to
            message = f"version {wanted.version} does not become ready{why}: {instead}"
            conditions[wanted.run] = ("False", "RolloutFailed", message)
    if champion is not None and champion.target is not None and champion.refused:
        known, _, message = conditions.get(champion.run, ("", "", ""))
        if known == "True":
            message = f"{message} by servers that have it; no other can get it"
        conditions[champion.run] = (known or "False", "Damaged", f"{message}: {champion.refused}{champion.remedy}")
    return News(served.version if served else "", conditions)
