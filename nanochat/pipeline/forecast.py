"""Forecasts of what a pipeline will take: each stage's work, time and price, and whether it is in the store already.

    target = Target.of(Devices.detect(), gpu="A100", here=False, prices=resolved.prices)
    forecast = Forecast.of(admitted, outputs, rates=learn(store, artifacts), target=target, known=Known(artifacts))
    forecast.cost, forecast.gpu_hours, forecast.seconds

Nothing is started, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from nanochat.pipeline.admission import Admitted
from nanochat.pipeline.devices import Devices
from nanochat.pipeline.estimate import Machine, assumed_seconds, kind_of
from nanochat.pipeline.outputs import Outputs
from nanochat.pipeline.planner import Observed, required_outputs
from nanochat.pipeline.rates import Rates, machine_of
from nanochat.pipeline.work import Known, Sizing, Work, text_cores
from nanochat.runtime.accelerators import ACCELERATORS, find_accelerator, short_name
from nanochat.spec.cost import GPU_HOUR, Prices
from nanochat.spec.pipeline import PipelineSpec
from nanochat.spec.stages import ComputeStage
from nanochat.spec.training import TrainingStage
from nanochat.tracking.environment import environment

DEVICE = "H100"  # where GPUs are asked for, and this machine has none


@dataclass(frozen=True, slots=True)
class Target:
    """Where a pipeline is to run: as it declares, on GPUs of this name, or all of it on this machine."""

    cpu: Machine  # this machine's cores
    devices: Devices
    gpu: str  # name of the GPUs
    here: bool = False
    prices: Prices = field(default_factory=Prices)

    @classmethod
    def of(cls, devices: Devices, *, gpu: str | None, here: bool, prices: Prices) -> Self:
        """The target by what this machine is."""
        return cls(machine_of(environment(), 0), devices, short_name(gpu or devices.gpu_name or DEVICE), here, prices)

    def machine(self, spec: PipelineSpec, stage: str, shards: int) -> Machine:
        """The machine of a stage."""
        settings = spec.of_stage(stage)
        gpus = 0
        if isinstance(settings, ComputeStage):
            nodes = settings.nodes if isinstance(settings, TrainingStage) else 1
            declared = 0 if self.here else nodes * settings.gpus_per_node
            gpus = declared or self.devices.gpus_of(spec, stage)
        if gpus:
            return Machine(self.gpu, self.cpu.cores, gpus)
        if not self.here and stage in ("tokenizer", "tokens") and declares_gpus(spec):
            return replace(self.cpu, cores=text_cores(spec, shards))  # a pod of the cluster that has those GPUs
        return self.cpu

    def hourly(self, spec: PipelineSpec, machine: Machine) -> float:
        """USD for an hour of a machine: by `spec.cost.gpuHour`, the profile, or what the device is known to cost."""
        if not machine.gpus:
            return machine.cores * self.prices.cpu_hour
        known = find_accelerator(machine.name)
        assumed = known.hour if known and known.hour is not None else GPU_HOUR
        own = self.prices.gpu_hour if "gpu_hour" in self.prices.model_fields_set else assumed
        return machine.gpus * (own if spec.cost.gpu_hour is None else spec.cost.gpu_hour)


@dataclass(frozen=True, slots=True)
class StageForecast:
    """One stage. Of one that is cached nothing is to be done."""

    stage: str
    cached: bool
    why: str  # it has to run; '' where it is cached
    work: Work
    device: str
    gpus: int
    seconds: float
    measured: int  # runs in this store that the time was learned from
    cost: float  # USD
    before: tuple[str, ...] = ()

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.seconds / 3600


@dataclass(frozen=True, slots=True)
class Forecast:
    """All stages of a pipeline."""

    name: str
    horizon: Mapping[str, Any]  # parameters, steps, tokens, shards, flops of base
    stages: tuple[StageForecast, ...]
    checkpoints: int  # bytes of those that are kept while a stage trains
    shared: bool  # all stages are on one machine, and none is the sooner done for running beside another
    budget: Mapping[str, float | None]

    @classmethod
    def of(cls, admitted: Admitted, outputs: Outputs, *, rates: Rates, target: Target, known: Known) -> Self:
        """The forecast; `outputs` are those that were looked for and explained."""
        spec, graph = admitted.spec, admitted.graph
        sizing = Sizing(spec, graph, known)
        wanted = required_outputs(graph, Observed(present=frozenset(outputs.present)))
        stages = []
        for node in graph.nodes:
            missing, machine = wanted.get(node.stage, ()), target.machine(spec, node.stage, len(graph.horizon.shards))
            work = sizing.work(node.stage, missing) if missing else Work()
            rate = rates.of(machine.name, kind_of(node.stage, spec))
            settings, model = spec.of_stage(node.stage), graph.horizon.model
            seconds = assumed_seconds(node.stage, work, settings, model, machine) * rate.ratio if missing else 0.0
            stages.append(
                StageForecast(
                    stage=node.stage,
                    cached=not missing,
                    why=outputs.explanations.get(node.stage, "") if missing else "",
                    work=work,
                    device=machine.name,
                    gpus=machine.gpus,
                    seconds=seconds,
                    measured=rate.runs,
                    cost=target.hourly(spec, machine) * seconds / 3600,
                    before=graph.before(node.stage),
                )
            )
        trains = [spec.of_stage(s.stage) for s in stages if s.work.steps]
        kept = max((t.keep_checkpoints for t in trains if isinstance(t, TrainingStage)), default=0)
        return cls(
            name=admitted.pipeline.metadata.name,
            horizon=graph.horizon.summary(),
            stages=tuple(stages),
            checkpoints=kept * sizing.checkpoint_bytes,
            shared=target.here or not declares_gpus(spec),
            budget={"money": spec.budget.money, "gpuHours": spec.budget.gpu_hours},
        )

    @property
    def gpu_hours(self) -> float:
        return sum(stage.gpu_hours for stage in self.stages)

    @property
    def cost(self) -> float:
        """USD."""
        return sum(stage.cost for stage in self.stages)

    @property
    def seconds(self) -> float:
        """From the start to the end: on this machine stages share it, on a cluster each has machines of its own."""
        if self.shared:
            return sum(stage.seconds for stage in self.stages)
        ends: dict[str, float] = {}
        for stage in self.stages:
            ends[stage.stage] = stage.seconds + max((ends.get(name, 0.0) for name in stage.before), default=0.0)
        return max(ends.values(), default=0.0)

    @property
    def download(self) -> int:
        """Bytes."""
        return sum(stage.work.download for stage in self.stages)

    @property
    def stored(self) -> int:
        """Bytes of artifacts."""
        return sum(stage.work.stored for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with all sums."""
        stages = [asdict(stage) | {"gpu_hours": stage.gpu_hours} for stage in self.stages]
        sums = {name: getattr(self, name) for name in ("seconds", "gpu_hours", "cost", "download", "stored")}
        return {"name": self.name, "horizon": dict(self.horizon), **sums, "checkpoints": self.checkpoints,
                "budget": dict(self.budget), "stages": stages}  # fmt: skip


def declares_gpus(spec: PipelineSpec) -> bool:
    """Whether a pipeline asks for GPUs."""
    return any(getattr(spec.stages, stage).gpus_per_node for stage in spec.stages.trained())


def devices_of(target: Target) -> list[Target]:
    """The same target with GPUs of each kind that is known."""
    return [replace(target, gpu=item.name) for item in ACCELERATORS]
