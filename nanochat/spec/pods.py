"""How the pods of a stage look on a cluster; on a laptop these settings mean nothing.

The fields are Kubernetes' own, by their own names where they have one.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from nanochat.spec.fields import LabelKey, LabelValue, Section, Text, setting

QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$"
Quantity = Annotated[int, Field(ge=0)] | Annotated[str, StringConstraints(max_length=32, pattern=QUANTITY)]
ObjectName = Annotated[
    str, StringConstraints(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")
]
Amounts = Annotated[dict[LabelKey, Quantity], Field(max_length=32)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=64)]
Annotations = Annotated[dict[LabelKey, Text], Field(max_length=64)]


class Toleration(Section):
    """A taint of nodes that the pods may run on all the same."""

    key: LabelKey | None = setting(None, "The taint's key; by default all.", key=False)
    operator: Literal["Equal", "Exists"] = setting("Equal", "Whether the value has to match.", key=False)
    value: Text | None = setting(None, "The taint's value.", key=False)
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = setting(
        None, "The taint's effect; by default all.", key=False
    )
    toleration_seconds: int | None = setting(
        None, "How long NoExecute is tolerated; by default for ever.", unit="seconds", ge=0, key=False
    )


class Resources(Section):
    """What the container asks for, extended resources such as rdma/hca too; GPUs come from gpusPerNode."""

    requests: Amounts = setting(dict, "Amounts that are reserved (cpu, memory, ephemeral-storage, ...).", key=False)
    limits: Amounts = setting(dict, "Amounts that are not exceeded.", key=False)


class KeyRef(Section):
    """One key of a Secret or ConfigMap."""

    name: ObjectName = setting(help="Name of the object.", key=False)
    key: Text = setting(help="Key in it.", key=False)


class EnvSource(Section):
    """Where a variable's value comes from: a Secret or a ConfigMap."""

    secret_key_ref: KeyRef | None = setting(None, "A key of a Secret.", key=False)
    config_map_key_ref: KeyRef | None = setting(None, "A key of a ConfigMap.", key=False)

    @model_validator(mode="after")
    def _one(self) -> EnvSource:
        if (self.secret_key_ref is None) == (self.config_map_key_ref is None):
            raise ValueError("valueFrom needs exactly one of secretKeyRef and configMapKeyRef")
        return self


class EnvVar(Section):
    """An environment variable."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = (
        setting(help="Name of the variable.", key=False)
    )
    value: Text | None = setting(None, "Its value.", key=False)
    value_from: EnvSource | None = setting(None, "Where its value comes from, instead of value.", key=False)

    @model_validator(mode="after")
    def _one(self) -> EnvVar:
        if (self.value is None) == (self.value_from is None):
            raise ValueError(f"env {self.name} needs exactly one of value and valueFrom")
        return self


class ObjectRef(Section):
    """A Secret or ConfigMap."""

    name: ObjectName = setting(help="Name of the object.", key=False)


class EnvFrom(Section):
    """All keys of a Secret or ConfigMap as variables."""

    secret_ref: ObjectRef | None = setting(None, "A Secret.", key=False)
    config_map_ref: ObjectRef | None = setting(None, "A ConfigMap.", key=False)

    @model_validator(mode="after")
    def _one(self) -> EnvFrom:
        if (self.secret_ref is None) == (self.config_map_ref is None):
            raise ValueError("envFrom needs exactly one of secretRef and configMapRef")
        return self


class PodSettings(Section):
    """Settings of pods. Those of a stage go over those of the pipeline, and these over the controller's."""

    image: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = setting(
        None, "Image of the trainer.", key=False
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = setting(
        None, "When the image is pulled.", key=False
    )
    image_pull_secrets: Annotated[tuple[ObjectName, ...], Field(max_length=8)] = setting(
        (), "Secrets with the registry's credentials.", key=False
    )
    service_account: ObjectName | None = setting(None, "Service account, for cloud identities.", key=False)
    node_selector: Labels = setting(dict, "Labels that nodes must have.", key=False)
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = setting((), "Tolerated taints.", key=False)
    resources: Resources = setting(
        Resources, "Requests and limits; by default they follow from the model's size.", key=False
    )
    priority_class: ObjectName | None = setting(None, "PriorityClass of the pods.", key=False)
    shared_memory: Quantity | None = setting(None, "Size of /dev/shm, part of the memory.", unit="bytes", key=False)
    annotations: Annotations = setting(dict, "Annotations of the pods.", key=False)
    labels: Labels = setting(dict, "Labels of the pods.", key=False)
    network: Literal["tcp", "rdma", "rdma-host", "efa"] | None = setting(
        None, "How nodes talk: tcp, rdma (an rdma/hca device), rdma-host (host network), efa (AWS).", key=False
    )
    topology_key: LabelKey | None = setting(
        None, "Node label that the pods of one attempt are spread over; by default the host name.", key=False
    )
    env: Annotated[tuple[EnvVar, ...], Field(max_length=64)] = setting((), "Environment variables.", key=False)
    env_from: Annotated[tuple[EnvFrom, ...], Field(max_length=16)] = setting(
        (), "Secrets and ConfigMaps as environment variables.", key=False
    )
    run_as_user: int | None = setting(None, "User id; by default 1000.", ge=1, key=False)

    def over(self, base: PodSettings) -> PodSettings:
        """These settings over others: what is set here wins, maps are merged, lists joined (variables by name)."""
        found = {}
        for name in type(self).model_fields:
            ours, theirs = getattr(self, name), getattr(base, name)
            if name == "env":
                found[name] = tuple({item.name: item for item in (*theirs, *ours)}.values())
            elif name == "resources":
                found[name] = Resources(
                    requests={**theirs.requests, **ours.requests}, limits={**theirs.limits, **ours.limits}
                )
            elif isinstance(ours, dict):
                found[name] = {**theirs, **ours}
            elif isinstance(ours, tuple):
                found[name] = tuple(dict.fromkeys((*theirs, *ours)))
            else:
                found[name] = theirs if ours is None else ours
        return PodSettings(**found)
