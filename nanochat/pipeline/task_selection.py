"""Which tasks a pipeline uses, of which splits and rows, their classes, and the metrics of evaluations."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import tasks
from nanochat.spec.errors import UserError
from nanochat.spec.pipeline import PipelineSpec
from nanochat.spec.stages import CHATCORE
from nanochat.spec.training import MixturePart

BASE_METRICS = ("train_bpb", "val_bpb", "core")


def find_task(name: str) -> type[tasks.Task]:
    """The class of a task; UserError with the nearest name where there is none."""
    try:
        return tasks.find(name)
    except (KeyError, tasks.UnusableTask) as error:
        raise UserError(str(error.args[0])) from error


def task_recipe(name: str) -> dict[str, Any]:
    """The part of a key that identifies a task's code."""
    return {"task": name, "version": find_task(name).version}


def mixture_parts(spec: PipelineSpec) -> list[MixturePart]:
    """All conversations that become token files, a part for each task and split with the most rows asked for."""
    parts: dict[tuple[str, str], MixturePart] = {}
    stages = spec.stages
    for stage in (getattr(stages, name) for name in ("mid", "sft") if name in stages.trained()):
        for part in (*stage.mixture, *stage.validation):
            known = parts.get((part.task, part.split))
            rows = part.rows
            if known is not None and (known.rows is None or (rows is not None and known.rows >= rows)):
                continue
            parts[part.task, part.split] = part.model_copy(update={"rows": rows, "epochs": 1})
    return [parts[name] for name in sorted(parts)]


def used_tasks(spec: PipelineSpec) -> list[str]:
    """Names of all tasks that the pipeline trains on, rewards or measures."""
    stages = spec.stages
    names = {part.task for part in mixture_parts(spec)}
    if stages.rl.enabled:
        names |= {part.task for part in stages.rl.tasks}
    if stages.eval_chat.enabled and {"mid", "sft", "rl"} & {*stages.trained()}:
        names |= {part.task for part in stages.eval_chat.tasks}
    return sorted(names)


def choice_tasks(spec: PipelineSpec) -> list[str]:
    """Names of the chat evaluation's tasks that are of multiple choice: quick enough to be measured in training."""
    if not spec.stages.eval_chat.enabled:
        return []
    return [part.task for part in spec.stages.eval_chat.tasks if find_task(part.task).kind == "choice"]


def metrics_of(spec: PipelineSpec, stage: str) -> set[str]:
    """Names of the metrics that the evaluation of a stage's model tells of, also those that it says were not run."""
    if stage == "base":
        return set(BASE_METRICS)
    chat = spec.stages.eval_chat
    return {*CHATCORE, "chatcore", *_metrics([part.task for part in chat.tasks], chat.pass_at)}


def unmeasured(spec: PipelineSpec, stage: str) -> dict[str, str]:
    """Metrics that will not be measured, as the declaration already says, and why not."""
    if not spec.of_stage(f"eval-{stage}").enabled:
        section = "evalBase" if stage == "base" else "evalChat"
        return dict.fromkeys(sorted(metrics_of(spec, stage)), f"stages.{section} is not enabled")
    if stage == "base":
        return {} if spec.stages.eval_base.core else {"core": "it is switched off (stages.evalBase.core)"}
    chosen = [part.task for part in spec.stages.eval_chat.tasks]
    found = {name: why for name in chosen if (why := unmeasurable(name))}
    absent = "it is not among this pipeline's tasks (stages.evalChat.tasks)"
    found |= {name: absent for name in CHATCORE if name not in chosen}
    if missing := [name for name in CHATCORE if name in found]:
        found["chatcore"] = f"it is the mean over six tasks, and lacks {', '.join(missing)}"
    return found


def unmeasurable(name: str) -> str:
    """Why no evaluation can measure a task; '' where one can."""
    task = find_task(name)
    if "test" not in task.splits:
        return f"it has no test split (only {', '.join(task.splits)})"
    return "its answers cannot be graded" if task.kind == "chat" else ""


def known_metrics() -> set[str]:
    """Names of all metrics that a model of another pipeline may have."""
    return {*BASE_METRICS, "chatcore", *_metrics(tasks.names())}


def _metrics(names: Collection[str], pass_at: Collection[int] = ()) -> set[str]:
    """The metrics of tasks: where one has a second, more forgiving verdict, or several samples, those too."""
    lenient = {f"{name}-lenient" for name in names if find_task(name).lenient is not tasks.Task.lenient}
    sampled = [name for name in names if find_task(name).kind in ("generative", "program")]
    return {*names, *lenient, *(pass_metric(name, k) for name in sampled for k in pass_at)}


def pass_metric(name: str, k: int) -> str:
    """The metric of a task's pass@k."""
    return f"{name}-pass{k}"
