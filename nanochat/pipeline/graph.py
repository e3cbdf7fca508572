"""The stage graph of a pipeline: what each stage makes, from what, and under which keys.

`build_graph(spec, ...)` is pure. A key is the SHA-256 of an output's kind, schema version, recipe (the settings
that change it) and the keys of its inputs; keys are computed here, once, and handed to the stages.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanochat.pipeline.ref import ArtifactRef
from nanochat.pipeline.resolve import Horizon, horizon, shard_name, tokenizer_shards
from nanochat.pipeline.task_selection import (
    choice_tasks,
    find_task,
    known_metrics,
    metrics_of,
    mixture_parts,
    task_recipe,
    unmeasured,
    used_tasks,
)
from nanochat.spec.errors import UserError
from nanochat.spec.gates import parse as parse_gate
from nanochat.spec.pipeline import PipelineSpec
from tasks.world.text import VERSION as WORLD_VERSION

# A stage's schema version: raised when its output changes for the same settings.
VERSIONS = {
    "text": 1,
    "task-data": 1,
    "eval-bundle": 1,
    "encodings": 1,
    "tokenizer": 1,
    "text-tokens": 1,
    "chat-tokens": 1,
    "model": 1,
    "evaluation": 1,
    "report": 1,
    "release": 1,
}

_ref = ArtifactRef.of
TOKENIZER = _ref("tokenizer", "bpe")


@dataclass(frozen=True, slots=True)
class Output:
    """One artifact that a stage makes. `inputs` maps a reference to the key of what it was made from."""

    kind: str
    name: str
    key: str
    recipe: Mapping[str, Any]
    inputs: Mapping[ArtifactRef, str]

    @property
    def ref(self) -> ArtifactRef:
        """How other outputs and plans refer to it."""
        return ArtifactRef.of(self.kind, self.name)

    def input_keys(self) -> dict[str, str]:
        """The keys of what it was made from, as manifests have them."""
        return {str(ref): key for ref, key in self.inputs.items()}

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "key": self.key,
            "recipe": dict(self.recipe),
            "inputs": self.input_keys(),
        }


@dataclass(frozen=True, slots=True)
class Node:
    """One stage: its outputs, and everything it reads (also what does not change its outputs)."""

    stage: str
    pool: str  # "cpu" or "gpu"
    outputs: tuple[Output, ...]
    needs: Mapping[ArtifactRef, str]  # reference -> key


@dataclass(frozen=True, slots=True)
class Graph:
    """All stages in their order."""

    nodes: tuple[Node, ...]
    horizon: Horizon
    by_ref: Mapping[ArtifactRef, Output] = field(default_factory=dict)
    makers: Mapping[ArtifactRef, str] = field(default_factory=dict)  # reference -> the stage that makes it

    def node(self, stage: str) -> Node:
        for node in self.nodes:
            if node.stage == stage:
                return node
        raise KeyError(stage)

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(node.stage for node in self.nodes)

    def maker(self, ref: ArtifactRef) -> str:
        """The stage that makes an artifact."""
        return self.makers[ref]

    def before(self, stage: str) -> tuple[str, ...]:
        """The stages whose outputs a stage reads, in order."""
        makers = {self.makers.get(ref) for ref in self.node(stage).needs}
        return tuple(node.stage for node in self.nodes if node.stage in makers)

    def digest(self) -> str:
        """One name for everything the pipeline makes."""
        keys = sorted(out.key for node in self.nodes for out in node.outputs)
        return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def make_key(kind: str, recipe: Mapping[str, Any], inputs: Mapping[ArtifactRef, str]) -> str:
    """The key of an artifact: 32 hexadecimal digits of the SHA-256 of its canonical JSON."""
    text = json.dumps(
        {"kind": kind, "version": VERSIONS[kind], "recipe": dict(recipe), "inputs": dict(inputs)},
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
        allow_nan=False,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class _Builder:
    """Collects nodes; outputs of earlier nodes are found by their ref."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.by_ref: dict[ArtifactRef, Output] = {}
        self.makers: dict[ArtifactRef, str] = {}

    def output(self, kind: str, name: str, recipe: Mapping[str, Any], inputs: Sequence[ArtifactRef] = ()) -> Output:
        keys = {ref: self.by_ref[ref].key for ref in inputs}
        return Output(kind=kind, name=name, key=make_key(kind, recipe, keys), recipe=recipe, inputs=keys)

    def task_data(self, tasks: Sequence[str]) -> list[ArtifactRef]:
        """The data of those tasks that have any."""
        return [ref for task in tasks if (ref := _ref("task-data", task)) in self.by_ref]

    def add(self, stage: str, pool: str, outputs: list[Output], also: list[ArtifactRef] | None = None) -> None:
        needs: dict[ArtifactRef, str] = {}
        for out in outputs:
            needs.update(out.inputs)
        needs.update({ref: self.by_ref[ref].key for ref in also or [] if ref in self.by_ref})
        self.nodes.append(Node(stage=stage, pool=pool, outputs=tuple(outputs), needs=needs))
        self.by_ref.update({out.ref: out for out in outputs})
        self.makers.update(dict.fromkeys((out.ref for out in outputs), stage))


def build_graph(spec: PipelineSpec, *, contents: Mapping[str, str] | None = None) -> Graph:
    """The graph of a pipeline.

    `contents` gives the SHA-256 of local files that the pipeline names (URI -> digest), because the content of a
    local file is part of the key. Raises UserError for tasks that are not known.
    """
    builder, plan = _Builder(), horizon(spec)
    _dataset(builder, spec, plan, contents or {})
    _tokenizer(builder, spec, plan)
    _tokens(builder, spec, plan)
    last = _training(builder, spec, plan)
    _closing(builder, spec, last)
    return Graph(nodes=tuple(builder.nodes), horizon=plan, by_ref=builder.by_ref, makers=builder.makers)


def _dataset(builder: _Builder, spec: PipelineSpec, plan: Horizon, contents: Mapping[str, str]) -> None:
    text = spec.sources.text
    outputs = []
    for index in plan.text_shards:
        recipe: dict[str, Any] = {"index": index, "kind": text.kind}
        if text.kind == "hub":
            recipe |= {"path": text.path, "revision": text.revision}
        elif text.kind == "files":
            recipe |= {"files": text.files, "column": text.column, "revision": text.revision}
            recipe |= {} if index == plan.validation_shard else {"shards": len(plan.shards)}
        else:
            recipe |= {"characters": text.characters_per_shard, "world": WORLD_VERSION}
        outputs.append(builder.output("text", shard_name(index), recipe))
    for name in used_tasks(spec):
        if find_task(name).files:
            outputs.append(builder.output("task-data", name, task_recipe(name) | _revisions(spec, name, contents)))
    if "base" in spec.stages.trained() and spec.stages.eval_base.enabled and spec.stages.eval_base.core:
        outputs.append(builder.output("eval-bundle", "core", {"revision": spec.sources.eval_bundle.revision}))
    if text.kind == "hub" and plan.shards:
        outputs.append(builder.output("encodings", "gpt", {}))
    if outputs:
        builder.add("dataset", "cpu", outputs)


def _revisions(spec: PipelineSpec, name: str, contents: Mapping[str, str]) -> dict[str, Any]:
    """Revision or content of each source that a task's files come from."""
    found: dict[str, Any] = {}
    for files in find_task(name).files.values():
        for file in files:
            if file.source == "hub":
                found["hub"] = spec.sources.hub_revision
            elif file.source == "words":
                found["words"] = spec.sources.words.revision
            elif file.source == "identity":
                uri = spec.stages.mid.identity
                found["identity"] = (contents.get(uri) or uri) if uri else spec.sources.identity.revision
            else:
                raise UserError(f"task {name} names the source '{file.source}': it must be hub, words or identity")
    return found


def _tokenizer(builder: _Builder, spec: PipelineSpec, plan: Horizon) -> None:
    shards = [_ref("text", shard_name(i)) for i in tokenizer_shards(spec, plan.shards)]
    initial = spec.stages.initial_model
    recipe = {"initialModel": initial} if initial else spec.stages.tokenizer.recipe()
    output = builder.output("tokenizer", "bpe", recipe, shards)
    builder.add(
        "tokenizer", "cpu", [output], also=[_ref("encodings", "gpt"), _ref("text", shard_name(plan.validation_shard))]
    )


def _tokens(builder: _Builder, spec: PipelineSpec, plan: Horizon) -> None:
    outputs = [
        builder.output("text-tokens", shard_name(i), {}, [_ref("text", shard_name(i)), TOKENIZER])
        for i in plan.text_shards
    ]
    for part in mixture_parts(spec):
        recipe = task_recipe(part.task) | {"split": part.split, "rows": part.rows, "seed": spec.seed}
        inputs = [TOKENIZER]
        inputs += builder.task_data([part.task])
        outputs.append(builder.output("chat-tokens", f"{part.task}-{part.split}", recipe, inputs))
    builder.add("tokens", "cpu", outputs)


def _training(builder: _Builder, spec: PipelineSpec, plan: Horizon) -> str:
    """Adds base, mid, sft, rl and their evaluations; returns the last training stage."""
    stages, last = spec.stages, ""
    validation = _ref("text-tokens", shard_name(plan.validation_shard))
    for name in stages.trained():
        settings = getattr(stages, name)
        recipe = {"stage": name, "seed": spec.seed} | settings.recipe()
        also: list[ArtifactRef] = [TOKENIZER]
        if name == "base":
            recipe |= {"model": plan.model.to_dict(), "steps": plan.steps}
            inputs = [_ref("text-tokens", shard_name(i)) for i in plan.shards]
            also.append(validation)
            if 0 < settings.core_every < plan.steps:
                also.append(_ref("eval-bundle", "core"))
        elif name == "rl":
            used = sorted({part.task for part in settings.tasks})
            recipe |= {"versions": [task_recipe(task) for task in used]}
            inputs = [_ref("model", last)] + [
                _ref("task-data", t) for t in used if _ref("task-data", t) in builder.by_ref
            ]
        else:
            refs = {_ref("chat-tokens", f"{part.task}-{part.split}") for part in settings.mixture}
            inputs = [*([_ref("model", last)] if last else []), *sorted(refs)]
            also += sorted({_ref("chat-tokens", f"{part.task}-{part.split}") for part in settings.validation})
            recipe.pop("validation")
            if name == "sft" and settings.tasks_every:
                also += builder.task_data(choice_tasks(spec))
        output = builder.output("model", name, recipe, inputs)
        builder.add(name, "gpu", [output], also=also)
        last = name
        _evaluation(builder, spec, name, plan)
    return last


def _evaluation(builder: _Builder, spec: PipelineSpec, name: str, plan: Horizon) -> None:
    settings = spec.stages.eval_base if name == "base" else spec.stages.eval_chat
    if not settings.enabled:
        return
    inputs = [_ref("model", name)]
    recipe: dict[str, Any] = {"stage": name, "seed": spec.seed} | settings.recipe()
    if name == "base":
        inputs += [_ref("text-tokens", shard_name(i)) for i in (plan.shards[0], plan.validation_shard)]
        if spec.stages.eval_base.core:
            inputs.append(_ref("eval-bundle", "core"))
        if spec.stages.base.sample_prompts and spec.stages.eval_base.sample_tokens:
            recipe["samplePrompts"] = list(spec.stages.base.sample_prompts)
    else:
        used = sorted({part.task for part in spec.stages.eval_chat.tasks})
        recipe |= {"versions": [task_recipe(task) for task in used]}
        inputs += builder.task_data(used)
    output = builder.output("evaluation", name, recipe, inputs)
    builder.add(f"eval-{name}", "gpu", [output])


def _closing(builder: _Builder, spec: PipelineSpec, last: str) -> None:
    made = [ref for ref in builder.by_ref if ref.kind in ("model", "evaluation")]
    if spec.stages.report.enabled:
        builder.add("report", "cpu", [builder.output("report", "report", {}, [*made, TOKENIZER])])
    if spec.stages.release.enabled:
        _check_gates(spec, [ref.name for ref in made if ref.kind == "model"])
        inputs = [_ref("model", last)] + [ref for ref in made if ref.kind == "evaluation"]
        if spec.stages.report.enabled:
            inputs.append(_ref("report", "report"))
        builder.add("release", "cpu", [builder.output("release", "release", spec.stages.release.recipe(), inputs)])


def _check_gates(spec: PipelineSpec, trained: Sequence[str]) -> None:
    """UserError where a gate is mistyped, or can never hold: now, and not after the training."""
    evaluated = spec.stages.eval_base.enabled or (spec.stages.eval_chat.enabled and len(trained) > 1)
    metrics = {stage: metrics_of(spec, stage) for stage in trained} if evaluated else {}
    absent = {f"{stage}.{name}": why for stage in metrics for name, why in unmeasured(spec, stage).items()}
    measured = {name for stage, names in metrics.items() for name in names if f"{stage}.{name}" not in absent}
    absent |= {name: why for place, why in absent.items() if (name := place.partition(".")[2]) not in measured}
    for gate in spec.stages.release.gates:
        parsed = parse_gate(gate)
        parsed.check_names(metrics, of_champion=known_metrics())
        parsed.check_possible(absent)
