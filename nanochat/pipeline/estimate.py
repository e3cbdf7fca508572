"""Seconds that a stage's work takes on a machine: assumed figures, and what the runs in the store took beside them.

    machine = Machine("AMD EPYC x 2", cores=2)
    seconds = assumed_seconds("base", work, settings, model, machine)
    seconds *= rates.of(machine.name, "base").ratio          # `nanochat.pipeline.rates`, from the store

The assumed figures are of one machine each. A ratio takes in all by which another one, or the estimate itself, differs.
"""

from __future__ import annotations

from dataclasses import dataclass

from nanochat.model.sizes import ModelConfig, flops_per_token
from nanochat.pipeline.work import Work
from nanochat.runtime.accelerators import find_accelerator
from nanochat.spec.pipeline import TRAINING, PipelineSpec
from nanochat.spec.stages import Stage
from nanochat.spec.training import TrainingStage
from nanochat.training.compiling import COST, saved_seconds

# Two cores of an AMD EPYC with AVX512-BF16: seconds of a core.
CPU_FLOPS = 400e9  # a second, in matrix products
CPU_ELEMENT = 30e-9  # for each token, layer and unit of width: all between the products, by own code
CPU_LOGIT = 1.7e-9  # for each token and word of the vocabulary
CPU_STEP = 0.07  # for each step of the optimizer
CPU_CALL = 0.4e-3  # for each layer of a pass that draws one token of each row
CPU_CHARACTERS = {"dataset": 4e6, "tokenizer": 3e6, "tokens": 3.5e6}  # a second: generated, learned, encoded
# A GPU: seconds.
GPU_STEP, GPU_CALL, GPU_START = 0.5, 0.015, 60.0  # of a step at least, of a pass that draws, until the first step
UNKNOWN_FLOPS = 100e12  # of a GPU that is not known
DOWNLOAD = 50e6  # bytes a second
START = {"dataset": 0.8, "tokenizer": 0.7, "tokens": 1.0, "report": 1.0, "release": 1.7}  # seconds
START_COMPUTE, START_FORK = 2.7, 0.9  # of a stage that imports torch, or is a fork of a process that has
EACH_SHARD = 0.05  # seconds of an output of a stage that makes many


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine of one stage. `name` is a device's own name, with the number of cores where there is no GPU."""

    name: str
    cores: int
    gpus: int = 0  # of all nodes


def kind_of(stage: str, spec: PipelineSpec) -> str:
    """The stages whose speed is learned together."""
    if stage == "dataset":  # text is fetched, or generated
        return f"dataset-{spec.sources.text.kind}"
    return "eval-chat" if stage.startswith("eval-") and stage != "eval-base" else stage


def assumed_seconds(stage: str, work: Work, settings: Stage, model: ModelConfig, machine: Machine) -> float:
    """The time of a stage from its start to its end, by the assumed figures."""
    if stage in START:
        rate = CPU_CHARACTERS.get(stage, 1e6) * (machine.cores if stage == "tokens" else 1)
        busy = work.characters / rate + work.download / DOWNLOAD + EACH_SHARD * work.shards
        return START[stage] + busy
    compiled = isinstance(settings, TrainingStage) and settings.compile
    tokens = work.trained + (work.read + work.drawn) / 3  # forward alone is a third of the work
    if machine.gpus:
        found = find_accelerator(machine.name)
        flops = machine.gpus * (found.peak * found.use if found else UNKNOWN_FLOPS)
        start = START_COMPUTE + (GPU_START if compiled and compiled != "never" else 0.0)
        return start + max(flops_per_token(model) * tokens / flops, GPU_STEP * work.steps) + GPU_CALL * work.calls
    seconds = CPU_STEP * work.steps + _core_seconds(tokens, model)
    saved = saved_seconds(model, work.trained, fused=True)
    pays = stage in ("base", "mid") and saved / machine.cores > COST
    if stage in TRAINING and (compiled == "always" or (compiled == "auto" and pays)):
        seconds += COST * machine.cores - saved  # one of them compiles
    return START_FORK + seconds / machine.cores + CPU_CALL * model.depth * work.calls


def _core_seconds(tokens: float, model: ModelConfig) -> float:
    """Seconds of a core for so many tokens, forward and backward."""
    each = flops_per_token(model) / CPU_FLOPS + CPU_ELEMENT * model.depth * model.width + CPU_LOGIT * model.vocab_size
    return each * tokens
