"""The registry of released models: versions by artifact address, and the alias `champion`.

    registry = Registry(uri)
    champion = registry.champion("nanochat")
    version = registry.register("nanochat", Candidate(...))     # the same candidate is registered once
    registry.promote("nanochat", version)

Large files stay where they are; a version is an address, with the results as tags `metric.<name>` and the model card
as description. StorageError where MLflow cannot be reached, which may be tried again; UserError where it refuses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nanochat.spec.errors import StorageError, UserError
from nanochat.tracking.client import connect, experiment_id, shown
from nanochat.tracking.mlflow import EXPERIMENT, find_run

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

ALIAS = "champion"
KEY_TAG, METRIC_TAG = "nanochat.key", "metric."
_TAG_LENGTH = 5000


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is to be released."""

    source: str  # address of the model artifact's launch folder
    key: str  # the release's key: a second registration with it gives the same version
    run_uid: str
    metrics: Mapping[str, float]
    tags: Mapping[str, str] = field(default_factory=dict)  # lineage
    card: str = ""  # the model card, Markdown


@dataclass(frozen=True, slots=True)
class Version:
    """A registered version."""

    version: str
    source: str
    key: str
    metrics: Mapping[str, float]


class Registry:
    """One tracking server's registry."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client: MlflowClient | None = None

    def champion(self, model: str) -> Version | None:
        """The version that has the alias; None where none has."""
        with self._talking() as client:
            if not self._exists(client, model):
                return None
            version = client.get_registered_model(model).aliases.get(ALIAS)
            return None if version is None else _version(client.get_model_version(model, str(version)))

    def register(self, model: str, candidate: Candidate) -> Version:
        """Register a version, or find the one that this candidate has already; results and lineage become tags."""
        with self._talking() as client:
            if not self._exists(client, model):
                client.create_registered_model(model, description="Chat models that nanochat pipelines released.")
            wanted = [v for v in client.search_model_versions(f"name='{model}'") if v.source == candidate.source]
            found = next((v for v in wanted if v.tags.get(KEY_TAG) == candidate.key), None)
            tags = {
                KEY_TAG: candidate.key,
                **{f"{METRIC_TAG}{name}": repr(value) for name, value in candidate.metrics.items()},
                **{name: value[:_TAG_LENGTH] for name, value in candidate.tags.items() if value},
            }
            if found is None:
                run = find_run(client, experiment_id(client, self._uri, EXPERIMENT), candidate.run_uid)
                found = client.create_model_version(
                    model,
                    candidate.source,
                    run.info.run_id if run else None,
                    tags=tags,
                    description=candidate.card[:_TAG_LENGTH],
                )
            return Version(str(found.version), candidate.source, candidate.key, dict(candidate.metrics))

    def promote(self, model: str, version: str) -> None:
        """Give the alias to a version."""
        with self._talking() as client:
            client.set_registered_model_alias(model, ALIAS, version)

    @staticmethod
    def _exists(client: MlflowClient, model: str) -> bool:
        return bool(client.search_registered_models(f"name='{model}'", max_results=1))

    @contextmanager
    def _talking(self) -> Iterator[MlflowClient]:
        """A client; what goes wrong with it is StorageError."""
        try:
            self._client = self._client or connect(self._uri)
            yield self._client
        except StorageError:
            raise
        except Exception as error:  # MLflow, its database and its HTTP client raise families of their own
            if getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
                raise UserError(
                    f"the model registry {shown(self._uri)} refuses this release ({error}): a tracking server takes "
                    "models in a shared store (s3://...), those in a folder need the tracking database in SQLite"
                ) from error
            raise StorageError(
                f"the model registry {shown(self._uri)} did not take the request: {error}", detail=repr(error)
            ) from error


def _version(found: object) -> Version:
    tags: dict[str, str] = getattr(found, "tags", {})
    metrics = {}
    for name, value in tags.items():
        if name.startswith(METRIC_TAG):
            try:
                metrics[name.removeprefix(METRIC_TAG)] = float(value)
            except ValueError:
                continue  # somebody's own tag
    return Version(
        version=str(getattr(found, "version", "")),
        source=getattr(found, "source", None) or "",
        key=tags.get(KEY_TAG, ""),
        metrics=metrics,
    )
