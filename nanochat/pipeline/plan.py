"""The contract between whoever starts a stage and the stage: one immutable JSON file.

The runner (or, on a cluster, the controller) writes it, the launcher and every rank read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nanochat.pipeline.graph import Output
from nanochat.pipeline.ref import ArtifactRef
from nanochat.spec.errors import UserError

CONTRACT = 1


@dataclass(frozen=True, slots=True)
class StagePlan:
    """All that one launch of a stage needs to know."""

    stage: str  # "base", "eval-mid", ...
    name: str  # the pipeline's name
    namespace: str
    run: str  # the run's folder under the store's root: runs/<namespace>.<name>/<uid>
    attempt: int
    launch: str  # and `work` are '' on a cluster: there the launcher fills them in
    outputs: tuple[Output, ...]  # what is missing and has to be made
    inputs: Mapping[ArtifactRef, str]  # reference -> key
    spec: Mapping[str, Any]  # PipelineSpec with YAML's names; the device batch size of this attempt is in it
    horizon: Mapping[str, Any]  # model, steps, tokens, shards, validationShard
    profile: Mapping[str, Any]  # the store profile: root, endpoint, region, anonymous
    cache: str  # local folder of fetched files
    work: str  # local folder of this launch: logs, outcomes, process ids
    processes: int = 1  # of each node
    nodes: int = 1
    threads: int = 1  # compute threads of each process
    tracking: str | None = None  # MLflow's tracking URI
    contract: int = CONTRACT

    def write(self, path: Path) -> None:
        """Write the plan; the file is whole or absent."""
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=1))
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> StagePlan:
        """Read a plan; UserError where it was written for another version."""
        data = json.loads(path.read_text())
        if data.get("contract") != CONTRACT:
            raise UserError(
                f"this plan has contract version {data.get('contract')}, the installed nanochat speaks {CONTRACT}: "
                "use the image or package that the controller names"
            )
        data["outputs"] = tuple(Output(**output | {"inputs": _refs(output["inputs"])}) for output in data["outputs"])
        data["inputs"] = _refs(data["inputs"])
        return cls(**{f.name: data[f.name] for f in fields(cls) if f.name in data})


def _refs(keys: Mapping[str, str]) -> dict[ArtifactRef, str]:
    return {ArtifactRef.parse(ref): key for ref, key in keys.items()}
