"""The controller's configuration: store profiles, node pools, the trainer's image. The chart writes the file.

profiles:
  default: {root: s3://bucket/nanochat, endpoint: http://s3:7070, secret: nanochat-s3, credentials: /etc/nanochat/s3}
pools:
  gpu: {pods: {nodeSelector: {pool: gpu}, tolerations: [...]}, memoryLimit: 1800Gi}
image: registry/nanochat-trainer:0.1.0
serving: {deployment: nanochat-inference, namespace: nanochat, model: nanochat, tracking: http://mlflow.nanochat:5000}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError, model_validator

from nanochat.spec.errors import UserError
from nanochat.spec.fields import Name, Section, Text, Uri, setting
from nanochat.spec.pods import ObjectName, PodSettings, Quantity


class StoreProfile(Section):
    """Where a pipeline's artifacts live, for its pods and for the controller."""

    root: Uri = setting(help="s3://bucket/prefix, or a folder that every pod and the controller mount.")
    endpoint: Uri | None = setting(None, "Address of the S3 server; by default AWS.")
    region: Text | None = setting(None, "Region.")
    anonymous: bool = setting(False, "Whether requests are not signed.")
    tracking: Text | None = setting(None, "MLflow's tracking URI.")
    secret: ObjectName | None = setting(
        None, "Secret in the pipeline's namespace whose keys the pods get as variables (AWS_ACCESS_KEY_ID, ...)."
    )
    service_account: ObjectName | None = setting(None, "Service account of the pods, for cloud identities.")
    credentials: Text | None = setting(
        None,
        "Folder in the controller with the files AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; by default its "
        "environment and service account.",
    )


class Pool(Section):
    """A node pool."""

    pods: PodSettings = setting(PodSettings, "Settings of all pods there.")
    memory_limit: Quantity | None = setting(None, "Largest memory request of a pod, when one ran out of memory.")


class Pools(Section):
    """The pools by kind of stage."""

    cpu: Pool = setting(Pool, "Stages without GPUs.")
    gpu: Pool = setting(Pool, "Stages with GPUs.")


class Serving(Section):
    """The inference server that follows the alias `champion`."""

    deployment: ObjectName = setting(help="Deployment whose container `server` gets the model.")
    namespace: Name = setting(help="Its namespace.")
    model: Name = setting("nanochat", "Name of the registered model.")
    tracking: Text | None = setting(None, "MLflow's tracking URI; by default the profile's.")
    profile: Name = setting("default", "Store profile by which the model's manifest is read.")
    poll_seconds: float = setting(15.0, "Seconds between looks at the alias.", ge=1)


class Config(Section):
    """All of it."""

    image: Text = setting(help="Image of the trainer, where a pipeline names none.")
    profiles: Annotated[dict[Name, StoreProfile], Field(max_length=100)] = setting(help="Store profiles by name.")
    pools: Pools = setting(Pools, "Node pools.")
    namespaces: tuple[Name, ...] = setting((), "Namespaces whose pipelines are run; by default all.")
    store_patience_seconds: int = setting(120, "Seconds that stages wait for storage that is out of reach.", ge=0)
    serving: Serving | None = setting(None, "The inference server; by default there is none.")

    @model_validator(mode="after")
    def _serving_has_what_it_needs(self) -> Config:
        if self.serving is not None:
            profile = self.profiles.get(self.serving.profile)
            if profile is None:
                raise ValueError(f"serving.profile is '{self.serving.profile}', which is not among the profiles")
            if not (self.serving.tracking or profile.tracking):
                raise ValueError("serving needs a tracking URI: its own, or its profile's")
        return self

    @classmethod
    def load(cls, path: Path) -> Config:
        """Read the file; UserError with one line for each mistake."""
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
            return cls.model_validate(data, by_alias=True, by_name=False)
        except OSError as error:
            raise UserError(f"cannot read the configuration {path}: {error.strerror}") from None
        except yaml.YAMLError as error:
            raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
        except ValidationError as error:
            lines = [
                f"'{'.'.join(str(part) for part in item['loc'])}': {item['msg']}"
                for item in error.errors(include_url=False)
            ]
            raise UserError(f"{path}: " + "\n".join(lines)) from None
