"""A small pipeline whose stages run as processes on a GPU or on the CPU. Without CUDA every test is skipped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from nanochat.pipeline.graph import build_graph
from nanochat.pipeline.plan import StagePlan
from nanochat.runtime.device import choose_device
from nanochat.spec.load import check_pipeline
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.manifest import Manifest
from nanochat.storage.opening import open_store
from nanochat.storage.store import Profile
from nanochat.tracking.journal import JournalReader
from tests.cli.small_pipeline import PIPELINE
from tests.inference.conftest import model, tokenizer

__all__ = ["model", "tokenizer"]

RUN = "runs/default.small/1"
CPU = {"CUDA_VISIBLE_DEVICES": ""}
STOPPED = 143
SHAPE = {"depth": 2, "width": 128, "headDim": 64, "sequenceLength": 256}


@pytest.fixture(autouse=True, scope="session")
def gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU, or a PyTorch without CUDA")


@pytest.fixture(params=["fp32", "bf16"])
def device(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The GPU, in both number formats; what is set for the whole process is set back."""
    before = torch.get_float32_matmul_precision()
    yield choose_device(request.param)
    torch.set_float32_matmul_precision(before)


@dataclass
class Site:
    """A store and the small pipeline, with sections of its stages changed; each stage is run by name."""

    folder: Path
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    launches: int = 0

    def run(self, stage: str, *, steps: int | None = None, code: int = 0, **environment: str) -> str:
        """Run a stage to its end, or stop it after so many steps -> its log. Compiled code is kept for this launch."""
        self.launches += 1
        work = self.folder / f"work-{self.launches}"
        work.mkdir()
        self.plan(stage, work).write(work / "plan.json")
        command = [sys.executable, str(Path(__file__).with_name("run_stage.py")), str(work / "plan.json")]
        caches = {name: str(work / name) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
        root = Path(__file__).parents[2]
        done = subprocess.run(
            command + ([] if steps is None else [str(steps)]),
            cwd=root,
            env={**os.environ, **caches, "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}", **environment},
            check=False,
        )
        log = (work / "rank0.log").read_text()
        assert done.returncode == code, log
        return log

    def plan(self, stage: str, work: Path) -> StagePlan:
        data = yaml.safe_load(PIPELINE)
        data["spec"]["model"] = SHAPE
        for name, values in self.stages.items():
            data["spec"]["stages"][name] |= values
        spec = check_pipeline(data, where="test").spec
        graph = build_graph(spec)
        node = graph.node(stage)
        return StagePlan(
            stage=stage, name="small", namespace="default", run=RUN, attempt=self.launches,
            launch=f"{self.launches:02}", outputs=node.outputs, inputs=node.needs, spec=spec.to_yaml_dict(),
            horizon=graph.horizon.to_dict(), profile={"root": str(self.folder / "store")},
            cache=str(self.folder / "cache"), work=str(work),
        )  # fmt: skip

    def copy(self, folder: Path, **stages: Mapping[str, Any]) -> Site:
        """Another site with the same artifacts, and sections of its stages changed."""
        shutil.copytree(self.folder / "store", folder / "store")
        return Site(folder, {name: {**self.stages.get(name, {}), **stages[name]} for name in stages})

    def output(self, stage: str) -> tuple[Manifest, Path]:
        """The manifest and folder of what a stage made."""
        (output,) = self.plan(stage, self.folder).outputs
        artifacts = Artifacts(open_store(Profile(str(self.folder / "store"))), self.folder / "cache")
        manifest = artifacts.find(output.kind, output.key)
        assert manifest is not None
        return manifest, artifacts.fetch(manifest)

    def weights(self, stage: str) -> dict[str, Tensor]:
        return load_file(self.output(stage)[1] / "model.safetensors")

    def results(self, stage: str) -> dict[str, Any]:
        return json.loads((self.output(stage)[1] / "results.json").read_text())

    def losses(self, stage: str) -> list[float]:
        history = JournalReader(open_store(Profile(str(self.folder / "store"))), RUN).history(stage)
        return [point.value for point in history.metrics["train/loss"]]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site with the text, the tokenizer and all tokens."""
    site = Site(tmp_path_factory.mktemp("data"))
    for stage in ("dataset", "tokenizer", "tokens"):
        site.run(stage, **CPU)
    return site
