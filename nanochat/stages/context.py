"""A stage's surroundings: its plan, its settings, its inputs, where to put its outputs, and how to report.

def run(context: StageContext) -> None:
    folder = context.fetch("tokenizer/bpe")
    with context.writer(context.output("model/base")) as writer:
        ...                                   # write files into writer.folder
        context.commit(writer, output, metadata={...})
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from nanochat.model.artifact import MADE_OF, fingerprint
from nanochat.pipeline.graph import Output
from nanochat.pipeline.initial_model import find_initial_model
from nanochat.pipeline.plan import StagePlan
from nanochat.pipeline.ref import ArtifactRef
from nanochat.pipeline.resolve import Horizon
from nanochat.pipeline.runs import RunPaths
from nanochat.spec.environment import integer
from nanochat.spec.errors import StorageError
from nanochat.spec.pipeline import PipelineSpec
from nanochat.storage.artifacts import Artifacts, Writer
from nanochat.storage.checkpoints import Checkpoints
from nanochat.storage.manifest import Manifest
from nanochat.storage.opening import open_store
from nanochat.storage.store import Profile, Store
from nanochat.tracking.journal import Journal
from nanochat.tracking.progress import Progress


class StopFlag:
    """Set by SIGTERM; training asks it at every step, long loops of other stages between two pieces of work."""

    def __init__(self) -> None:
        self.is_set = False

    def set(self) -> None:
        self.is_set = True

    def __bool__(self) -> bool:
        return self.is_set


class StageContext:
    """One rank's view of one launch of a stage."""

    def __init__(self, plan: StagePlan, *, stop: StopFlag | None = None) -> None:
        self.plan = plan
        self.spec = PipelineSpec.model_validate(plan.spec)
        self.stage = plan.stage
        self.launch = plan.launch
        self.outputs = plan.outputs
        self.stop = StopFlag() if stop is None else stop  # an unset flag is falsy
        self.rank = integer("RANK", 0)
        self.world = integer("WORLD_SIZE", 1, low=1)
        self.store: Store = open_store(Profile(**plan.profile))
        self.artifacts = Artifacts(self.store, Path(plan.cache))
        self._manifests: dict[str, Manifest] = {}

    @property
    def settings(self) -> Any:
        """This stage's section of `spec.stages`."""
        return self.spec.of_stage(self.stage)

    @cached_property
    def horizon(self) -> Horizon:
        """How long base trains and on what, as the planner computed it."""
        return Horizon.from_dict(self.plan.horizon)

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that reports and commits."""
        return self.rank == 0

    @cached_property
    def journal(self) -> Journal:
        """Metrics and events; only rank 0's are written."""
        return Journal(self.store, self.plan.run, stage=self.stage, launch=self.launch, enabled=self.is_main)

    @cached_property
    def progress(self) -> Progress:
        """Where the stage stands; only rank 0's is written."""
        folder = RunPaths(self.plan.run).progress(self.stage)
        return Progress(self.store, folder, stage=self.stage, launch=self.launch, enabled=self.is_main)

    @cached_property
    def initial_model(self) -> Manifest | None:
        """The model that training starts from where the pipeline names one, as it describes it; else UserError."""
        return find_initial_model(self.spec, self.artifacts)

    def has(self, ref: str) -> bool:
        """Whether 'kind/name' is among the inputs."""
        return ref in self.plan.inputs

    def refs(self, kind: str) -> list[ArtifactRef]:
        """All inputs of a kind, by name."""
        return sorted(ref for ref in self.plan.inputs if ref.kind == kind)

    def manifest(self, ref: str) -> Manifest:
        """The manifest of an input; StorageError where it is gone since the planner saw it."""
        if ref not in self._manifests:
            known = ArtifactRef.parse(ref)
            key = self.plan.inputs[known]
            found = self.artifacts.find(known.kind, key)
            if found is None:
                raise StorageError(f"the input {ref} ({key}) is gone; the stage that makes it runs again")
            self._manifests[ref] = found
        return self._manifests[ref]

    def fetch(self, ref: str, names: list[str] | None = None) -> Path:
        """A local folder with the input's verified files."""
        return self.artifacts.fetch(self.manifest(ref), names)

    def release(self, ref: str) -> None:
        """Let the cache drop a fetched input when it needs room."""
        self.artifacts.release(self.manifest(ref))

    def output(self, ref: str) -> Output:
        """The output 'kind/name' that this launch has to make."""
        return next(output for output in self.outputs if output.ref == ref)

    def writer(self, output: Output) -> Writer:
        """A context manager whose `folder` takes the output's files."""
        return self.artifacts.writer(output.kind, output.key, self.launch)

    def commit(self, writer: Writer, output: Output, metadata: Mapping[str, Any]) -> Manifest:
        """Commit what was written: the manifest comes last, and says of which models it was made. Returns the winner's
        manifest."""
        models = {str(ref): fingerprint(self.manifest(ref)) for ref in self.refs("model")}
        return writer.commit(
            recipe=dict(output.recipe) | {"name": output.name},
            inputs=output.input_keys(),
            metadata={"run": self.plan.run, "stage": self.stage, MADE_OF: models}
            | dict(metadata),  # where its journal is
        )

    def checkpoints(self) -> Checkpoints:
        """The checkpoints of this stage's (single) output."""
        return Checkpoints(self.store, self.stage, self.outputs[0].key, Path(self.plan.cache))

    def close(self) -> None:
        """Write what was reported and stop the reporters."""
        for name in ("journal", "progress"):
            if name in self.__dict__:
                self.__dict__[name].close()
