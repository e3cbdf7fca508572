"""Default requests of a stage's pods: CPU and memory from the model's size.

Memory of a pod in bytes, with N parameters, P processes, r rows of T tokens at a time, width W, depth L, vocabulary V:

- training on CPUs: (P x (0.8 GiB + 16 N + 4 r T (34 W L + 3 V)) + 12 N) x 1.2. 16 N is weights, gradients and optimizer
  in fp32; 34 W values are kept of each token and block for the backward pass (arXiv 2205.05198, eq. 1, without
  attention's square); the logits, their softmax and their gradient would be 3 V, of which the loss holds a chunk of
  rows at a time, so that this asks for more than is taken; 12 N is the copy of weights and optimizer that a checkpoint
  is written from.
  Where torch.compile may be at work, 12 r T V is 0.5 GiB at least: itself, and the C++ compiler, which takes 0.35 GiB.
- training on GPUs: P x 4 GiB + 16 N, of which that copy is 12 N.
- evaluation: the same with 8 N.
- the stages before training and after it: 1 GiB, 4 bytes for each character that the tokenizer trains on, and 256 MiB
  for each worker that makes tokens, of which there is one a core.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from nanochat.model.sizes import flops_per_token, parameters
from nanochat.pipeline.graph import Graph
from nanochat.pipeline.resolve import WORKER_MEMORY
from nanochat.pipeline.work import text_cores
from nanochat.spec.cost import CPU_HOUR, GPU_HOUR
from nanochat.spec.errors import UserError
from nanochat.spec.fields import YEAR
from nanochat.spec.pipeline import TRAINING, PipelineSpec
from nanochat.spec.pods import PodSettings
from nanochat.spec.quantity import amount, faults
from nanochat.spec.stages import ComputeStage
from nanochat.spec.training import TrainingStage
from operators.config import Config, Pool

GIB = 1 << 30
SMALL = 50_000_000  # parameters up to which a model trains in a share of a core
FLOPS_A_CORE = 1e11  # a second, which few cores reach
SPOT = {
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("cloud.google.com/gke-spot", "true"),
    ("cloud.google.com/gke-preemptible", "true"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
    ("karpenter.sh/capacity-type", "spot"),
}  # labels of nodes that may be taken away


def gpus(spec: PipelineSpec, stage: str) -> int:
    """GPUs of one node."""
    settings = spec.of_stage(stage)
    return settings.gpus_per_node if isinstance(settings, ComputeStage) else 0


def nodes(spec: PipelineSpec, stage: str) -> int:
    """Pods of an attempt."""
    settings = spec.of_stage(stage)
    return settings.nodes if isinstance(settings, TrainingStage) else 1


def processes(spec: PipelineSpec, stage: str) -> int:
    """Processes of one pod."""
    settings = spec.of_stage(stage)
    return settings.processes if isinstance(settings, ComputeStage) else 1


def pool(config: Config, spec: PipelineSpec, stage: str) -> Pool:
    """The node pool of a stage: that with GPUs where it asks for any."""
    return config.pools.gpu if gpus(spec, stage) else config.pools.cpu


def pod_settings(config: Config, spec: PipelineSpec, stage: str) -> PodSettings:
    """The settings of a stage's pods: the stage's over the pipeline's over the pool's."""
    return spec.of_stage(stage).pod.over(spec.pods).over(pool(config, spec, stage).pods)


def cpu(settings: PodSettings, spec: PipelineSpec, stage: str, graph: Graph) -> float:
    """Cores that a pod asks for: those of its request, or what suits the stage, up to its limit."""
    asked = settings.resources
    if "cpu" in asked.requests:
        return amount(asked.requests["cpu"])
    return min(_cores(spec, stage, graph), amount(asked.limits["cpu"]) if "cpu" in asked.limits else math.inf)


def hourly(config: Config, spec: PipelineSpec, stage: str, graph: Graph) -> float:
    """The price of one pod for one hour in USD, without `spec.cost.gpuHour`: of its GPUs, or else of its cores."""
    settings, count = pod_settings(config, spec, stage), gpus(spec, stage)
    price = pool(config, spec, stage).price
    each = price.hour if price.hour is not None else GPU_HOUR if count else CPU_HOUR
    if price.spot_hour is not None and settings.node_selector.items() & SPOT:
        each = price.spot_hour
    return each * (count or cpu(settings, spec, stage, graph))


def _cores(spec: PipelineSpec, stage: str, graph: Graph) -> float:
    if isinstance(spec.of_stage(stage), ComputeStage):
        if gpus(spec, stage):
            return 4.0 * processes(spec, stage)
        return processes(spec, stage) * (0.5 if parameters(graph.horizon.model) <= SMALL else 1.0)
    if stage in ("tokenizer", "tokens"):
        return float(text_cores(spec, len(graph.horizon.shards)))
    return 0.5


def memory(settings: PodSettings, spec: PipelineSpec, stage: str, graph: Graph, *, factor: float = 1.0) -> int:
    """Bytes that a pod asks for, times the factor that attempts before asked for in vain."""
    if "memory" in settings.resources.requests:
        return round(amount(settings.resources.requests["memory"]) * factor)
    workers = cpu(settings, spec, stage, graph) if stage == "tokens" else 0.0
    return round((_memory(spec, stage, graph) + workers * WORKER_MEMORY) * factor)


def _memory(spec: PipelineSpec, stage: str, graph: Graph) -> float:
    compute, model = spec.of_stage(stage), graph.horizon.model
    if not isinstance(compute, ComputeStage):
        characters = 4 * spec.stages.tokenizer.max_chars if stage == "tokenizer" else 0
        whole = spec.sources.text.characters_per_shard * len(graph.horizon.shards)
        return 1 * GIB + min(characters, 4 * whole)
    state = (16 if stage in TRAINING else 8) * parameters(model)
    if compute.gpus_per_node:
        return compute.processes * 4 * GIB + state
    tokens = compute.device_batch_size * model.sequence_length
    loss = max(12 * tokens * model.vocab_size, 0.5 * GIB if _compiles(spec, stage) else 0)
    activations = 4 * tokens * 34 * model.width * model.depth + loss
    copy = 12 * parameters(model) if stage in TRAINING else 0
    return 1.2 * (compute.processes * (0.8 * GIB + state + activations) + copy)


def _compiles(spec: PipelineSpec, stage: str) -> bool:
    """Whether a stage may be compiled: by itself only one whose batches have one shape."""
    settings = spec.of_stage(stage)
    unasked = ("never",) if stage in ("base", "mid") else ("never", "auto")
    return isinstance(settings, TrainingStage) and settings.compile not in unasked


def memory_limits(config: Config, spec: PipelineSpec, graph: Graph) -> Mapping[str, float]:
    """The largest factor on each stage's memory request that its pool allows."""
    limits = {}
    for stage in graph.stages:
        limit = pool(config, spec, stage).memory_limit
        if limit is not None:
            settings = pod_settings(config, spec, stage)
            limits[stage] = max(1.0, amount(limit) / memory(settings, spec, stage, graph))
    return limits


def check(config: Config, spec: PipelineSpec, graph: Graph) -> None:
    """UserError where the API server would refuse a stage's pods, by what chart, pipeline and stage set together, or
    where CPUs alone would train the base model for more than a year."""
    for stage in graph.stages:
        settings = pod_settings(config, spec, stage)
        needed = math.ceil(memory(settings, spec, stage, graph) / (1 << 20))
        requests = {"memory": f"{needed}Mi", "cpu": f"{round(1000 * cpu(settings, spec, stage, graph))}m"}
        for fault in faults(requests | settings.resources.requests, settings.resources.limits):
            raise UserError(
                f"no pod of stage {stage} can be made: {fault} (resources of spec.pods, of the stage's pod, and of the "
                "chart's pools; what none of them requests follows from the model's size)"
            )
    if not gpus(spec, "base") and not spec.suspend:
        cores = nodes(spec, "base") * cpu(pod_settings(config, spec, "base"), spec, "base", graph)
        years = flops_per_token(graph.horizon.model) * graph.horizon.tokens / (max(cores, 0.1) * FLOPS_A_CORE) / YEAR
        if years > 1:
            raise UserError(
                f"stages.base would train {parameters(graph.horizon.model):,} parameters on CPUs alone "
                f"({cores:g} in all) for about {years:.0f} years: set stages.base.gpusPerNode, or a smaller model.depth"
            )
