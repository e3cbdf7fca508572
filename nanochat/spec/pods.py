"""Settings of a stage's pods on a cluster; on a laptop they mean nothing.

The fields are Kubernetes' own, by their own names where they have one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from nanochat.spec.comments import Form
from nanochat.spec.fields import LabelKey, LabelValue, Section, Text, setting
from nanochat.spec.quantity import LEAST, Amounts, Quantity, amount, faults

HIDDEN = "(hidden)"  # in place of a variable's value, which may be a password
# The controller sets these for the launcher, which cannot do with others.
OWN_VARIABLES = ("NANOCHAT_MASTER", "NANOCHAT_MASTER_PORT", "NANOCHAT_NODE_RANK", "NANOCHAT_POD_UID", "NANOCHAT_WORK")
_PART = "[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_HOST = "[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]{1,5})?"
REGISTRY = rf"^(?:{_HOST}(?:/{_PART})*)?$"  # of the chart's values; the empty one is the container runtime's own
Image = Annotated[
    str,
    StringConstraints(
        min_length=1,
        max_length=512,
        pattern=rf"^(?:{_HOST}/)?{_PART}(?:/{_PART})*"
        r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?$",
    ),
    Form("be an image such as registry.example.org/team/trainer:1, without a scheme"),
]
ObjectName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"),
    Form("consist of lower-case letters, digits, inner '-' and inner '.'"),
]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=64)]
Annotations = Annotated[dict[LabelKey, Text], Field(max_length=64)]


class Toleration(Section):
    """A taint of nodes that the pods may run on all the same."""

    key: LabelKey | None = setting(
        None, "key is the key of the tolerated taint. By default taints of all keys are tolerated.", key=False
    )
    operator: Literal["Equal", "Exists"] = setting(
        "Equal",
        "operator says how the taint is matched: Equal compares the value too, Exists takes any value.",
        key=False,
    )
    value: Text | None = setting(
        None, "value is the value of the tolerated taint, for the operator Equal. Defaults to the empty one.", key=False
    )
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = setting(
        None, "effect is the effect of the tolerated taint. By default all effects are tolerated.", key=False
    )
    toleration_seconds: int | None = setting(
        None,
        "tolerationSeconds is the time in seconds that a taint with the effect NoExecute is tolerated. By default it "
        "is tolerated for ever.",
        unit="seconds",
        ge=0,
        key=False,
    )

    @model_validator(mode="after")
    def _matches(self) -> Toleration:
        if self.operator == "Exists" and self.value:
            raise PydanticCustomError("toleration", "a toleration with the operator Exists takes no value")
        if self.operator == "Equal" and self.key is None:
            raise PydanticCustomError("toleration", "a toleration without a key needs the operator Exists")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise PydanticCustomError("toleration", "tolerationSeconds needs the effect NoExecute")
        return self


class Resources(Section):
    """Amounts that the container asks for, of extended resources such as rdma/hca too; GPUs come from gpusPerNode."""

    requests: Amounts = setting(
        dict,
        "requests are the amounts by resource (cpu, memory, ephemeral-storage, ...) that are reserved for a pod. Those "
        "of cpu and memory follow from the model's size where they are not named.",
        key=False,
    )
    limits: Amounts = setting(
        dict,
        "limits are the amounts by resource that a pod must not exceed. Memory is limited to its request where it is "
        "not named.",
        key=False,
    )

    @model_validator(mode="after")
    def _possible(self) -> Resources:
        for fault in faults(self.requests, self.limits):
            raise PydanticCustomError("resources", "{fault}", {"fault": fault})
        return self


class KeyRef(Section):
    """One key of a Secret or ConfigMap."""

    name: ObjectName = setting(
        help="name is the name of the Secret or ConfigMap in the pipeline's namespace.", key=False
    )
    key: Text = setting(help="key is the key in the object whose value is taken.", key=False)


class EnvSource(Section):
    """The source of a variable's value: a Secret or a ConfigMap."""

    secret_key_ref: KeyRef | None = setting(
        None, "secretKeyRef selects a key of a Secret. By default configMapKeyRef has the value.", key=False
    )
    config_map_key_ref: KeyRef | None = setting(
        None, "configMapKeyRef selects a key of a ConfigMap. By default secretKeyRef has the value.", key=False
    )

    @model_validator(mode="after")
    def _one(self) -> EnvSource:
        if (self.secret_key_ref is None) == (self.config_map_key_ref is None):
            raise ValueError("valueFrom needs exactly one of secretKeyRef and configMapKeyRef")
        return self


class EnvVar(Section):
    """An environment variable."""

    name: Annotated[
        str,
        StringConstraints(min_length=1, max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"),
        Form("consist of letters, digits and '_', without a digit in front"),
    ] = setting(help="name is the name of the environment variable.", key=False)
    value: Text | None = setting(None, "value is the variable's value. By default valueFrom has it.", key=False)
    value_from: EnvSource | None = setting(
        None, "valueFrom is the Secret or ConfigMap that has the variable's value. By default value has it.", key=False
    )

    @model_validator(mode="after")
    def _one(self) -> EnvVar:
        if (self.value is None) == (self.value_from is None):
            raise ValueError(f"env {self.name} needs exactly one of value and valueFrom")
        if self.name in OWN_VARIABLES:
            raise ValueError(f"env {self.name} is set by the controller: leave it out")
        return self


class ObjectRef(Section):
    """A Secret or ConfigMap."""

    name: ObjectName = setting(
        help="name is the name of the Secret or ConfigMap in the pipeline's namespace.", key=False
    )


class EnvFrom(Section):
    """All keys of a Secret or ConfigMap as variables."""

    secret_ref: ObjectRef | None = setting(
        None, "secretRef selects a Secret, whose keys become variables. By default configMapRef is meant.", key=False
    )
    config_map_ref: ObjectRef | None = setting(
        None, "configMapRef selects a ConfigMap, whose keys become variables. By default secretRef is meant.", key=False
    )

    @model_validator(mode="after")
    def _one(self) -> EnvFrom:
        if (self.secret_ref is None) == (self.config_map_ref is None):
            raise ValueError("envFrom needs exactly one of secretRef and configMapRef")
        return self


class PodSettings(Section):
    """Settings of pods: a stage's go over the pipeline's, and the pipeline's over the node pool's."""

    image: Image | None = setting(
        None, "image is the trainer's container image. Defaults to the controller's setting.", key=False
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = setting(
        None, "imagePullPolicy says when the image is pulled. Defaults to IfNotPresent.", key=False
    )
    image_pull_secrets: Annotated[tuple[ObjectName, ...], Field(max_length=8)] = setting(
        (), "imagePullSecrets are the names of the Secrets with the registry's credentials.", key=False
    )
    service_account: ObjectName | None = setting(
        None,
        "serviceAccount is the name of the pods' service account, which cloud identities are bound to. Defaults to "
        "that of the store profile.",
        key=False,
    )
    node_selector: Labels = setting(
        dict, "nodeSelector holds the labels that a node must have for the pods to run there.", key=False
    )
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = setting(
        (), "tolerations are the taints of nodes that the pods may run on all the same.", key=False
    )
    resources: Resources = setting(
        Resources, "resources holds the requests and limits of a pod, GPUs excepted: these are gpusPerNode.", key=False
    )
    priority_class: ObjectName | None = setting(
        None,
        "priorityClass is the name of the pods' PriorityClass. Defaults to the cluster's default one.",
        key=False,
    )
    shared_memory: Quantity | None = setting(
        None,
        "sharedMemory is the size of /dev/shm in bytes, which counts as memory of the pod. Defaults to 1Gi for each "
        "process with a GPU, and 64Mi for each without.",
        unit="bytes",
        key=False,
    )
    annotations: Annotations = setting(dict, "annotations are added to the annotations of the pods.", key=False)
    labels: Labels = setting(dict, "labels are added to the labels of the pods.", key=False)
    network: Literal["tcp", "rdma", "rdma-host", "efa"] | None = setting(
        None,
        "network is how the nodes of one attempt talk: tcp (sockets), rdma (the device rdma/hca), rdma-host (the "
        "node's own network) or efa (AWS). By default NCCL chooses.",
        key=False,
    )
    topology_key: LabelKey | None = setting(
        None,
        "topologyKey is the node label over whose values the pods of one attempt are spread. Defaults to "
        "kubernetes.io/hostname.",
        key=False,
    )
    env: Annotated[tuple[EnvVar, ...], Field(max_length=64)] = setting(
        (), "env is the list of environment variables that the container gets.", key=False
    )
    env_from: Annotated[tuple[EnvFrom, ...], Field(max_length=16)] = setting(
        (), "envFrom is the list of Secrets and ConfigMaps whose keys become environment variables.", key=False
    )
    run_as_user: int | None = setting(
        None,
        "runAsUser is the id of the user and group that the container runs as. Defaults to 1000.",
        ge=1,
        le=2**31 - 1,
        key=False,
    )

    @field_validator("shared_memory")
    @classmethod
    def _has_a_unit(cls, value: Quantity | None) -> Quantity | None:
        if value is not None and amount(value) < amount(LEAST):
            raise PydanticCustomError("bytes", "{least} are the least: write its unit", {"least": LEAST})
        return value

    def over(self, base: PodSettings) -> PodSettings:
        """The settings over others: what is set here wins, maps are merged, lists joined (variables by name)."""
        found = {}
        for name in type(self).model_fields:
            ours, theirs = getattr(self, name), getattr(base, name)
            if name == "env":
                found[name] = tuple({item.name: item for item in (*theirs, *ours)}.values())
            elif name == "resources":
                found[name] = Resources.model_construct(
                    requests={**theirs.requests, **ours.requests}, limits={**theirs.limits, **ours.limits}
                )
            elif isinstance(ours, dict):
                found[name] = {**theirs, **ours}
            elif isinstance(ours, tuple):
                found[name] = tuple(dict.fromkeys((*theirs, *ours)))
            else:
                found[name] = theirs if ours is None else ours
        return PodSettings.model_construct(**found)  # what comes of all is checked where the stage is known


def hide_values(data: Any) -> Any:
    """A declaration as plain data with the values of its variables hidden, as it is stored, tracked and reported."""
    if isinstance(data, (list, tuple)):
        return [hide_values(item) for item in data]
    if not isinstance(data, dict):
        return data
    if data.get("value") is not None and "valueFrom" in data:  # an EnvVar, and nothing else has both
        return data | {"value": HIDDEN}
    return {name: hide_values(value) for name, value in data.items()}
