"""The controller's configuration: store profiles, node pools, the trainer's image. The chart writes the file.

profiles:
  default: {root: s3://bucket/nanochat, endpoint: http://s3:7070, secret: nanochat-s3, credentials: /etc/nanochat/s3}
pools:
  gpu: {pods: {nodeSelector: {pool: gpu}, tolerations: [...]}, memoryLimit: 1800Gi, price: {hour: 2.2}}
image: registry/nanochat-trainer:0.3.0
serving: {deployment: nanochat-inference, namespace: nanochat, model: nanochat, tracking: http://mlflow.nanochat:5000}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from nanochat.spec.cost import Price
from nanochat.spec.fields import Name, Section, ServerAddress, StoreAddress, Text, TrackingAddress, setting
from nanochat.spec.pods import ObjectName, PodSettings
from nanochat.spec.quantity import Quantity
from nanochat.spec.validation import read_document, validate
from nanochat.storage.store import Profile


class StoreProfile(Section):
    """The place of a pipeline's artifacts, for its pods and for the controller."""

    root: StoreAddress = setting(
        help="root is the place of all artifacts. A folder is one that the pods and the controller mount."
    )
    endpoint: ServerAddress | None = setting(
        None,
        "endpoint is the address of the object storage, of Azure https://ACCOUNT.blob.core.windows.net. Defaults to "
        "that of AWS or Google.",
    )
    region: Text | None = setting(None, "region is the region of the bucket. Defaults to that of the environment.")
    anonymous: bool = setting(False, "anonymous says whether requests are sent without a signature.")
    tracking: TrackingAddress | None = setting(
        None, "tracking is the tracking URI of the MLflow server. By default runs are not sent to any."
    )
    secret: ObjectName | None = setting(
        None,
        "secret is the name of a Secret in the pipeline's namespace whose keys the pods get as variables "
        "(AWS_ACCESS_KEY_ID, GOOGLE_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY, ...). By default there is none.",
    )
    service_account: ObjectName | None = setting(
        None,
        "serviceAccount is the name of the pods' service account, for cloud identities. Defaults to that of the "
        "namespace.",
    )
    credentials: Text | None = setting(
        None,
        "credentials is the folder in the controller with a file for each key of such a Secret. By default its "
        "environment and service account are used.",
    )

    def location(self) -> Profile:
        """The profile as stages and stores take it, without what is the cluster's."""
        return Profile(root=self.root, endpoint=self.endpoint, region=self.region, anonymous=self.anonymous)


class Pool(Section):
    """A node pool."""

    pods: PodSettings = setting(PodSettings, "pods holds the settings of all pods in the pool, as in spec.pods.")
    memory_limit: Quantity | None = setting(
        None,
        "memoryLimit is the largest memory request, in bytes, that a pod gets after it ran out of memory. By default "
        "the request does not grow.",
        unit="bytes",
    )
    price: Price = setting(Price, "price says what a machine of the pool costs.")


class Pools(Section):
    """The pools by kind of stage."""

    cpu: Pool = setting(Pool, "cpu is the node pool of the stages without GPUs.")
    gpu: Pool = setting(Pool, "gpu is the node pool of the stages with GPUs.")


class Serving(Section):
    """The inference server that follows the alias `champion`."""

    deployment: ObjectName = setting(
        help="deployment is the name of the Deployment whose container `server` is updated."
    )
    namespace: Name = setting(help="namespace is the namespace that the Deployment is in.")
    model: Name = setting("nanochat", "model is the name of the registered model that is served.")
    tracking: TrackingAddress | None = setting(
        None, "tracking is the tracking URI of the registry. Defaults to the profile's."
    )
    profile: Name = setting("default", "profile is the store profile by which the model's manifest is read.")
    poll_seconds: float = setting(
        15.0, "pollSeconds is the time in seconds between looks at the alias.", unit="seconds", ge=1, le=3600
    )


class Config(Section):
    """The whole configuration."""

    image: Text = setting(help="image is the trainer's container image, where a pipeline names none.")
    profiles: Annotated[dict[Name, StoreProfile], Field(max_length=100)] = setting(
        help="profiles are the store profiles, by the name that spec.store has."
    )
    pools: Pools = setting(Pools, "pools holds the settings of the node pools.")
    namespaces: Annotated[tuple[Name, ...], Field(max_length=1000)] = setting(
        (), "namespaces are the namespaces whose pipelines are run; all, where none is named."
    )
    store_patience_seconds: int = setting(
        120,
        "storePatienceSeconds is the time in seconds that stages wait for storage that is out of reach before they "
        "fail and are tried again.",
        unit="seconds",
        ge=0,
        le=86_400,
    )
    serving: Serving | None = setting(
        None, "serving is the inference server that follows the registry. By default there is none."
    )

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
        return validate(read_document(path), cls, where=str(path))
