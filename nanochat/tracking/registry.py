"""The registry of released models: versions by artifact address, and the aliases `champion` and `former`.

    registry = Registry(uri)
    champion = registry.champion("nanochat")
    version = registry.register("nanochat", Candidate(...))     # the same candidate is registered once
    registry.promote("nanochat", version)       # the version that was champion becomes `former`
    before, now = registry.rollback("nanochat")  # and back

Large files stay where they are; a version is an address, with the results as tags `metric.<name>` and the model card
as description. StorageError where MLflow cannot be reached, which may be tried again; UserError where it refuses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nanochat.parse.address import shown
from nanochat.spec.errors import NanochatError, StorageError, UserError
from nanochat.tracking.client import connect

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

ALIAS, FORMER = "champion", "former"  # what is served, and what was before it
KEY_TAG, METRIC_TAG = "nanochat.key", "metric."
PIPELINE_TAG, FOLDER_TAG = "nanochat.pipeline", "nanochat.run"  # who released it: <namespace>.<name>, the run's folder
FINGERPRINT_TAG = "nanochat.fingerprint"  # of weights, configuration and tokenizer: what the version is
PROMOTED_TAG = "nanochat.promoted"  # when it was made champion last: a version that failed is tried again after that
_TAG_LENGTH = 5000


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model to be released."""

    source: str  # address of the model artifact's launch folder
    key: str  # the release's key: a second registration of the same model with it gives the same version
    metrics: Mapping[str, float]
    tags: Mapping[str, str] = field(default_factory=dict)  # lineage
    fingerprint: str = ""  # of the model
    card: str = ""  # the model card, Markdown
    run_id: str = ""  # of the MLflow run that made it


@dataclass(frozen=True, slots=True)
class Version:
    """A registered version."""

    version: str
    source: str
    key: str
    metrics: Mapping[str, float]
    tags: Mapping[str, str] = field(default_factory=dict)
    ready: bool = True  # whether its registration came to its end

    @property
    def fingerprint(self) -> str:
        """The model's; '' where a release before 0.2 registered it."""
        return self.tags.get(FINGERPRINT_TAG, "")

    def is_of(self, candidate: Candidate) -> bool:
        """Whether it is this candidate's: the same release of the same model, whichever launch made the files."""
        same = self.fingerprint == candidate.fingerprint if self.fingerprint else self.source == candidate.source
        return same and self.key == candidate.key and self.ready


class Registry:
    """One tracking server's registry."""

    def __init__(self, uri: str, connect: Callable[[str], Any] = connect) -> None:
        """`connect` makes the client of a URI: MLflow's own, or `nanochat.tracking.rest`'s over another transport."""
        self._uri, self._connect = uri, connect
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
            known = ((version, _version(version)) for version in pages(client.search_model_versions, f"name='{model}'"))
            found = next((found for found, version in known if version.is_of(candidate)), None)
            tags = {
                KEY_TAG: candidate.key,
                **({FINGERPRINT_TAG: candidate.fingerprint} if candidate.fingerprint else {}),
                **{f"{METRIC_TAG}{name}": repr(value) for name, value in candidate.metrics.items()},
                **{name: value[:_TAG_LENGTH] for name, value in candidate.tags.items() if value},
            }
            if found is None:
                found = client.create_model_version(
                    model,
                    candidate.source,
                    candidate.run_id or None,
                    tags=tags,
                    description=candidate.card[:_TAG_LENGTH],
                )
            return Version(str(found.version), candidate.source, candidate.key, dict(candidate.metrics))

    def needed(self, *, promoted: bool) -> list[Version]:
        """The versions of all models that an alias names and, with `promoted`, those that were champion before."""
        with self._talking() as client:
            found: list[Version] = []
            for model in pages(client.search_registered_models):
                named = {str(version) for version in model.aliases.values()}
                versions = [_version(item) for item in pages(client.search_model_versions, f"name='{model.name}'")]
                found += [v for v in versions if v.version in named or (promoted and PROMOTED_TAG in v.tags)]
            return found

    def promote(self, model: str, version: str) -> None:
        """Make a version the champion, and the one that was it until now the former one."""
        with self._talking() as client:
            self._promote(client, model, version, client.get_registered_model(model).aliases.get(ALIAS))

    def has(self, model: str) -> bool:
        """Whether a model of this name is registered."""
        with self._talking() as client:
            return self._exists(client, model)

    def find(self, model: str, which: str) -> Version:
        """A version that is ready, by its number or an alias; UserError where there is none."""
        with self._talking() as client:
            aliases, known = self._look(client, model)
            if which in (ALIAS, FORMER) and which not in aliases:
                raise UserError(f"{model} has no {which}: name a version: {', '.join(known)}")
            return _ready(model, aliases.get(which, which), known)

    def holds(self, model: str, version: str) -> bool:
        """Whether a version is there; deleted ones are not."""
        with self._talking() as client:
            return self._exists(client, model) and version in self._look(client, model)[1]

    def rollback(
        self, model: str, to: str = "", *, check: Callable[[Version], None] = lambda version: None
    ) -> tuple[str, Version]:
        """Make the former champion, or version `to`, the champion: the version that was it ('': none), and the new one.

        Twice is there and back again. UserError where there is no such version, it is not ready, or `check` raises it:
        then nothing has changed.
        """
        with self._talking() as client:
            aliases, known = self._look(client, model)
            before, former = aliases.get(ALIAS, ""), aliases.get(FORMER, "")
            if not to and former in ("", before):
                raise UserError(f"{model} has no former champion: choose a version with --to: {', '.join(known)}")
            version = _ready(model, to or former, known)
            check(version)
            self._promote(client, model, version.version, before)
            return before, version

    def _look(self, client: MlflowClient, model: str) -> tuple[dict[str, str], dict[str, Version]]:
        """The aliases of a model, and its versions by number; UserError where there is no such model."""
        if not self._exists(client, model):
            raise UserError(f"the model registry {shown(self._uri)} has no model '{model}': none was released yet")
        aliases = {name: str(version) for name, version in client.get_registered_model(model).aliases.items()}
        found = [_version(item) for item in pages(client.search_model_versions, f"name='{model}'")]
        return aliases, {item.version: item for item in sorted(found, key=lambda item: int(item.version))}

    @staticmethod
    def _promote(client: MlflowClient, model: str, version: str, before: str | None) -> None:
        # The champion comes last: cut short before that, nothing has changed for those who follow it.
        if before and str(before) != version:
            client.set_registered_model_alias(model, FORMER, str(before))
        client.set_model_version_tag(model, version, PROMOTED_TAG, f"{time.time():.3f}")
        client.set_registered_model_alias(model, ALIAS, version)

    @staticmethod
    def _exists(client: MlflowClient, model: str) -> bool:
        return bool(client.search_registered_models(f"name='{model}'", max_results=1))

    @contextmanager
    def _talking(self) -> Iterator[MlflowClient]:
        """A client; what goes wrong with it is StorageError."""
        try:
            self._client = client = self._client or self._connect(self._uri)
            yield client
        except NanochatError:
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


def _ready(model: str, version: str, known: Mapping[str, Version]) -> Version:
    if version not in known:
        there_are = f"there are {', '.join(known)}" if known else "all were deleted"
        raise UserError(f"{model} has no version {version}: {there_are}")
    if not known[version].ready:
        raise UserError(f"version {version} of {model} is not ready: its registration has not come to its end")
    return known[version]


def pages(search: Callable[..., Any], *arguments: str) -> Iterator[Any]:
    """All that a search of MLflow's finds, page by page."""
    token: str | None = None
    while True:
        page = search(*arguments, **({"page_token": token} if token else {}))
        yield from page
        token = getattr(page, "token", None)
        if not token:
            return


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
        tags=dict(tags),
        ready=getattr(found, "status", "READY") == "READY",
    )
