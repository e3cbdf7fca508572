"""The CEL rules of the CustomResourceDefinition, by section: what concerns several fields.

    RULES[PipelineSpec]      # [{"rule": ..., "message": ...}, ...]

The API server refuses by them what `nanochat.spec` refuses, in the same words.
"""

from __future__ import annotations

from typing import Any

from nanochat.spec.fields import Section
from nanochat.spec.pipeline import PipelineSpec, Stages
from nanochat.spec.pods import OWN_VARIABLES, EnvFrom, EnvSource, EnvVar, PodSettings, Resources, Toleration
from nanochat.spec.quantity import BYTES, GPU, LEAST, MOST_CORES, NATIVE
from nanochat.spec.sources import TextSource
from nanochat.spec.stages import ChatEvaluation

Schema = dict[str, Any]


def rule(expression: str, message: str) -> Schema:
    """A rule and the sentence that says what to change."""
    return {"rule": expression, "message": message}


# What `nanochat.spec.quantity.faults` refuses, of each amount `of[name]`, and of two for one resource. What is no
# amount is refused by its own rule.
VALID = "!isQuantity(string(of[name])) || quantity(string(of[name]))"
AMOUNTS = [
    (f"name != '{GPU}'", f"GPUs are asked for by gpusPerNode, not by {GPU}"),
    (
        f"name.matches('/|^({'|'.join(NATIVE)}|hugepages-.+)$')",
        f"a resource is {', '.join(NATIVE)}, hugepages-SIZE, or has a domain as rdma/hca has",
    ),
    (
        f"!name.matches('^({'|'.join(BYTES)})$') || {VALID}.compareTo(quantity('{LEAST}')) >= 0",
        f"{' and '.join(BYTES)} are at least {LEAST}: write the unit",
    ),
    (
        f"name != 'cpu' || {VALID}.compareTo(quantity('{MOST_CORES}')) <= 0",
        f"cpu is at most {MOST_CORES}: correct the unit",
    ),
    (f"!name.contains('/') || {VALID}.isInteger()", "devices are counted in whole numbers"),
]
PAIRS = (
    "self.requests.all(name, !(name in self.limits) || !isQuantity(string(self.requests[name])) || "
    "!isQuantity(string(self.limits[name])) || "
    "[quantity(string(self.requests[name])).compareTo(quantity(string(self.limits[name])))]"
    ".all(order, order == 0 || (order < 0 && !name.matches('/|^hugepages-'))))"
)
PROCESSES = rule(
    "!has(self.processesPerNode) || self.gpusPerNode == 0 || self.processesPerNode <= self.gpusPerNode",
    "processesPerNode is above gpusPerNode: each process takes a GPU",
)
NODES = rule(
    "!has(self.minNodes) || !has(self.nodes) || self.minNodes <= self.nodes",
    "minNodes is above nodes: a stage does with fewer nodes, never with more",
)
RULES: dict[type[Section], list[Schema]] = {
    PipelineSpec: [
        *(
            rule(
                f"!has(self.stages) || !has(self.model) || {unless} "
                f"|| self.stages.{stage}.{setting} >= self.model.sequenceLength",
                f"stages.{stage}.{setting} must be at least model.sequenceLength",
            )
            for stage, setting, unless in (
                ("base", "evalTokens", "self.stages.base.evalEvery == 0"),
                ("evalBase", "bitsPerByteTokens", "!self.stages.evalBase.enabled"),
            )
        ),
        *(
            rule(
                "!has(self.stages) || !has(self.model) || "  # `{}`, before its fields get their defaults
                f"self.stages.{stage}.totalBatchTokens % self.model.sequenceLength == 0",
                f"stages.{stage}.totalBatchTokens must be a multiple of model.sequenceLength",
            )
            for stage in ("base", "mid")
        ),
        rule(
            "!has(self.priority) || has(self.queue)",
            "priority is Kueue's and needs queue; that of pods is pods.priorityClass",
        ),
        rule(
            "!has(self.store) || !has(oldSelf.store) || self.store == oldSelf.store",
            "store cannot change: make a pipeline of another name, which finds nothing of this one's artifacts there",
        ),
    ],
    ChatEvaluation: [
        rule(
            "!has(self.samples) || self.samples == 1 || (has(self.temperature) && self.temperature > 0.0)",
            "several samples of temperature 0 are all the same: set a temperature above 0",
        ),
    ],
    Stages: [
        rule(
            f"!has(self.{stage}) || self.{stage}.enabled",
            f"stages.{stage} cannot be disabled: later stages read what it makes",
        )
        for stage in ("dataset", "tokenizer", "tokens", "base")
    ]
    + [
        rule(
            "!has(self.mid) || !has(self.sft) || !has(self.mid.initialModel) || !has(self.sft.initialModel)",
            "stages.mid.initialModel and stages.sft.initialModel are given: one stage starts from it",
        ),
        *(
            rule(
                f"!has(self.{stage}) || !has(self.{stage}.initialModel) || self.{stage}.enabled",
                f"stages.{stage}.initialModel is given and stages.{stage} is not enabled",
            )
            for stage in ("mid", "sft")
        ),
    ],
    TextSource: [
        rule(
            "!has(self.kind) || self.kind != 'hub' || self.path.contains('{index')",
            "path must hold {index}, or all shards would be one file",
        )
    ],
    Toleration: [
        rule(
            "(self.operator == 'Exists' ? !has(self.value) || self.value == '' : has(self.key)) && "
            "(!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute'))",
            "the operator Exists takes no value, Equal needs a key, and tolerationSeconds the effect NoExecute",
        )
    ],
    Resources: [
        rule(f"!has(self.limits) || {test}", text)  # `{}` has neither, before both get their defaults
        for test, text in (
            *((f"[self.requests, self.limits].all(of, of.all(name, {test}))", text) for test, text in AMOUNTS),
            (
                PAIRS,
                "a request is above its limit, or that of a device is not its limit: lower the one, or raise the other",
            ),
        )
    ],
    PodSettings: [
        rule(
            "!has(self.sharedMemory) || !isQuantity(string(self.sharedMemory)) || "
            f"quantity(string(self.sharedMemory)).compareTo(quantity('{LEAST}')) >= 0",
            f"sharedMemory is at least {LEAST}: write the unit",
        )
    ],
    EnvVar: [
        rule("has(self.value) != has(self.valueFrom)", "exactly one of value and valueFrom is needed"),
        rule(f"!(self.name in {[*OWN_VARIABLES]})", "this variable is set by the controller: leave it out"),
    ],
    EnvSource: [
        rule(
            "has(self.secretKeyRef) != has(self.configMapKeyRef)",
            "valueFrom needs exactly one of secretKeyRef and configMapKeyRef",
        )
    ],
    EnvFrom: [
        rule(
            "has(self.secretRef) != has(self.configMapRef)",
            "envFrom needs exactly one of secretRef and configMapRef",
        )
    ],
}
