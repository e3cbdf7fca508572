"""This machine's offer to stages: cores, accelerators, and how many stages run side by side. Imports no torch."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property

from nanochat.runtime.threads import cores
from nanochat.spec.cost import Prices
from nanochat.spec.pipeline import PipelineSpec
from nanochat.spec.stages import ComputeStage
from nanochat.spec.training import TrainingStage


@dataclass(frozen=True)
class Devices:
    """Cores and NVIDIA GPUs of this machine."""

    cores: int
    gpus: int
    gpu_name: str = ""

    @classmethod
    def detect(cls) -> Devices:
        names = _nvidia_gpus()
        return cls(cores=cores(), gpus=len(names), gpu_name=names[0] if names else "")

    @cached_property
    def slots(self) -> dict[str, int]:
        """Stages of each pool that run side by side: the accelerator is not shared, CPUs carry two."""
        return {"cpu": 2, "gpu": 1 if self.gpus else min(2, self.cores)}

    def processes(self, spec: PipelineSpec, stage: str) -> int:
        """Processes of a stage here: those asked for on all nodes, at most one a GPU where there are any."""
        settings = spec.of_stage(stage)
        if not isinstance(settings, ComputeStage):
            return 1
        nodes = settings.nodes if isinstance(settings, TrainingStage) else 1
        asked = nodes * settings.processes
        if settings.gpus_per_node:
            return max(1, min(asked, self.gpus))
        return asked

    def gpus_of(self, spec: PipelineSpec, stage: str) -> int:
        """GPUs that a stage takes here: one for each process, where there are any."""
        processes = self.processes(spec, stage) if isinstance(spec.of_stage(stage), ComputeStage) else 0
        return processes if processes <= self.gpus else 0

    def hourly(self, spec: PipelineSpec, stage: str, prices: Prices) -> float:
        """The price of a stage for one hour in USD: of its GPUs, or else of all cores."""
        gpus = self.gpus_of(spec, stage)
        return gpus * prices.gpu_hour if gpus else self.cores * prices.cpu_hour

    def threads(self, processes: int) -> int:
        """Compute threads of each process. It depends on nothing that changes between attempts: sums are split
        by thread, and a resumed run has to add in the same order."""
        return max(1, self.cores // processes)


def _nvidia_gpus() -> list[str]:
    """The names of the GPUs."""
    if shutil.which("nvidia-smi") is None:
        return []
    found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    lines = (line for line in found.stdout.splitlines() if line.startswith("GPU "))
    return [line.partition(":")[2].partition("(UUID")[0].strip() for line in lines]
