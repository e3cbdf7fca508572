"""Which outputs of a pipeline are in the store, how far its stages got, and why the missing ones have to be made.

outputs = Outputs(artifacts, graph)
outputs.refresh()                        # looks for all that was not there before
outputs.explain()                        # fills `explanations` for the stages that miss something
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from nanochat.model.artifact import KIND, MADE_OF, fingerprint
from nanochat.pipeline.explain import explain_miss
from nanochat.pipeline.graph import Graph, Output
from nanochat.pipeline.planner import Phase, Status
from nanochat.pipeline.ref import ArtifactRef
from nanochat.pipeline.release_record import ReleaseRecord
from nanochat.spec.errors import NanochatError
from nanochat.spec.pipeline import TRAINING
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.checkpoints import newest_step
from nanochat.storage.manifest import Manifest
from nanochat.tracking.registry import Registry

log = logging.getLogger(__name__)

TOLD_OF_MODELS = ("evaluation", "report", "release")  # kinds of artifacts that tell of models, and are made in no time


class Outputs:
    """The outputs of one graph as they were seen last. All methods that look raise StorageError while it is away."""

    def __init__(self, artifacts: Artifacts, graph: Graph) -> None:
        self.artifacts, self.graph = artifacts, graph
        self.present: set[str] = set()  # keys
        self.makers: dict[str, str] = {}  # key of what an attempt makes, and is there -> the launch that made it
        self.explanations: dict[str, str] = {}  # stage -> why its outputs have to be made
        self.release: ReleaseRecord | None = None
        self.scores: dict[str, Mapping[str, float]] = {}  # trained stage -> metrics of its evaluation

    def refresh(self, outputs: Iterable[Output] | None = None, *, since: float = 0.0) -> bool:
        """Look for those of `outputs` that were not there; whether any is there now. By default all are looked for,
        as a store that is shared knows them from not before `since` (of time.monotonic())."""
        if outputs is None:
            every = [(out.kind, out.key) for node in self.graph.nodes for out in node.outputs]
            found = self.artifacts.survey((pair for pair in every if pair[1] not in self.present), since=since)
        else:
            found = self.artifacts.find_all((out.kind, out.key) for out in outputs if out.key not in self.present)
        for (kind, key), manifest in found.items():
            self._take(kind, key, manifest.metadata)
        return bool(found)

    def _take(self, kind: str, key: str, metadata: Mapping[str, Any]) -> None:
        self.present.add(key)
        if kind == "evaluation":
            stage = str(metadata.get("stage", "")).removeprefix("eval-")
            self.scores[stage] = _numbers(metadata.get("metrics"))
        elif kind == "release":
            self.release = ReleaseRecord.of(metadata)

    def forget(self) -> None:
        """Take nothing for granted that was seen before: the next look is at all outputs."""
        self.present.clear()
        self.makers.clear()
        self.explanations.clear()

    def look(self, keys: Collection[str]) -> None:
        """Look for what an attempt makes, and who made it: by one request where it is not all there."""
        for out in (out for node in self.graph.nodes for out in node.outputs if out.key in keys):
            if out.key in self.makers:
                continue
            manifest = self.artifacts.find(out.kind, out.key)
            if manifest is None:
                return
            self.makers[out.key] = manifest.launch
            self._take(out.kind, out.key, manifest.metadata)

    def others_made(self, keys: Collection[str], launches: Collection[str]) -> bool:
        """Whether all of these were seen by `look`, and some were made by other launches than these."""
        return self.makers.keys() >= set(keys) and any(self.makers[key] not in launches for key in keys)

    def recheck_inputs(self, stage: str) -> None:
        """Look again at what a stage reads: what it found damaged is set aside, and its maker has to run again."""
        needs = {(ref.kind, key) for ref, key in self.graph.node(stage).needs.items()}
        found = self.artifacts.find_all(needs)
        self.present -= {key for _, key in needs - found.keys()}

    def set_damaged_aside(self) -> None:
        """Set aside models that are damaged, so that they are made again: what was written after their manifests is
        read too."""
        for out in self._models():
            self.artifacts.find(out.kind, out.key, mend=True)

    def forget_outdated(self, *, since: float = 0.0) -> None:
        """Forget evaluations, report and release of models that were made anew since, with other weights: they tell of
        what is no more. `since` is as of `refresh`; nothing is removed without a look at what is there now."""
        if self._outdated(since):
            for out in self._outdated(time.monotonic()):
                log.warning("%s is made anew: its model was", out.ref)
                self.artifacts.remove(out.kind, out.key)
                self.present.discard(out.key)
                if out.kind == "release":
                    self.release = None

    def _outdated(self, since: float) -> list[Output]:
        """The outputs that tell of models that are no more, or of others that do."""
        every = [out for node in self.graph.nodes for out in node.outputs]
        telling = [out for out in every if out.kind in TOLD_OF_MODELS and out.key in self.present]
        models = {ref: key for out in telling for ref, key in out.inputs.items() if ref.kind == KIND}
        wanted = [*((out.kind, out.key) for out in telling), *((KIND, key) for key in models.values())]
        seen, gone = self.artifacts.survey(wanted, since=since), list[Output]()
        for out in telling:
            told = seen.get((out.kind, out.key))
            of = {ref: seen[KIND, key] for ref, key in models.items() if ref in out.inputs and (KIND, key) in seen}
            of_gone = {item.key for item in gone}.intersection(out.inputs.values())
            if told is not None and (of_gone or _is_outdated(told, of)):
                gone.append(out)
        return gone

    def _models(self) -> list[Output]:
        return [out for node in self.graph.nodes for out in node.outputs if out.kind == KIND]

    def check_release(self, registry: Registry) -> None:
        """Forget a release whose version the registry has no more, so that it is made anew. Where the registry cannot
        be asked the release counts as made, and a warning says so."""
        node = self.graph.node("release") if "release" in self.graph.stages else None
        record = self.release
        if node is None or record is None or not record.version or node.outputs[0].key not in self.present:
            return
        try:
            if registry.holds(record.model, record.version):
                return
        except NanochatError as error:
            log.warning("it is not known whether version %s is still there: %s", record.version, error.message)
            return
        log.warning("version %s of %s is gone from the registry: it is released anew", record.version, record.model)
        self.artifacts.remove("release", node.outputs[0].key)
        self.present.discard(node.outputs[0].key)
        self.release = None

    def explain(self) -> None:
        """Say of each stage that misses outputs why, once."""
        recent = cache(self.artifacts.recent)  # several stages make artifacts of one kind
        for node in self.graph.nodes:
            missing = self.missing(node.stage)
            if missing and node.stage not in self.explanations:
                why = explain_miss(self.artifacts, missing, total=len(node.outputs), recent=recent)
                self.explanations[node.stage] = why

    def remarked(self, status: Status) -> Status:
        """The status with a message of what the release came to, which its stage's success does not tell."""
        if self.release is None:
            return status
        message, made = self.release.sentence, (Phase.SUCCEEDED, Phase.CACHED)
        stages = (
            replace(item, message=message) if item.stage == "release" and item.phase in made else item
            for item in status.stages
        )
        return replace(status, stages=tuple(stages))

    def missing(self, stage: str) -> list[Output]:
        """The outputs of a stage that are not there."""
        return [out for out in self.graph.node(stage).outputs if out.key not in self.present]

    @property
    def has_model(self) -> bool:
        """Whether the model of any stage is there."""
        return any(out.key in self.present for out in self._models())

    def reached(self, stage: str, keys: Collection[str], *, before: int) -> int:
        """How far a stage got, at least `before`: outputs made or, without any, the newest checkpoint's step."""
        made = sum(key in self.present for key in keys)
        if made or stage not in TRAINING or not keys:
            return max(before, made)
        return max(before, newest_step(self.artifacts.store, stage, next(iter(keys))))


def _is_outdated(told: Manifest, models: Mapping[ArtifactRef, Manifest]) -> bool:
    """Whether what tells of models was made of others; a version before 0.2 did not note of which."""
    noted = told.metadata.get(MADE_OF)
    if not isinstance(noted, Mapping):
        return any(model.created > told.created for model in models.values())
    return any(noted.get(ref) != fingerprint(model) for ref, model in models.items())


def _numbers(values: Any) -> dict[str, float]:
    """The finite numbers among an artifact's metadata."""
    found = values.items() if isinstance(values, Mapping) else ()
    return {str(name): value for name, value in found if type(value) in (int, float) and math.isfinite(value)}
