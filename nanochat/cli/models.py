"""The model that a word on the command line means: a folder, an address, a version in the registry, or a run.

    folder = find_model("champion", stage=None, store="default")      # says on standard error which one it took

`champion` and `former` are those of the model `nanochat`, NAME:champion and NAME:VERSION those of any registered model,
or of the one that the pipeline NAME releases. A run of the name `champion` is meant by its file's name, champion.yaml.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from nanochat.cli.local_run import NoRun, find_run
from nanochat.model.artifact import KIND, WEIGHTS, ModelAddress, read_manifest
from nanochat.pipeline.profiles import ResolvedProfile, resolve_profile
from nanochat.pipeline.ref import ArtifactRef
from nanochat.spec.errors import UserError
from nanochat.spec.fields import nearest
from nanochat.spec.stages import ReleaseStage
from nanochat.storage.artifacts import ROOT, Artifacts
from nanochat.storage.failures import Damaged
from nanochat.storage.manifest import Manifest
from nanochat.storage.opening import open_store
from nanochat.storage.store import Profile, Store
from nanochat.tracking.registry import ALIAS, FOLDER_TAG, FORMER, Registry


@dataclass(frozen=True, slots=True)
class Found:
    """A model in a store; `what` says which one it is."""

    what: str
    artifacts: Artifacts
    manifest: Manifest

    @property
    def store(self) -> Store:
        return self.artifacts.store

    @property
    def base(self) -> str:
        """The folder of its files in the store."""
        return f"{self.artifacts.folder(self.manifest.kind, self.manifest.key)}/{self.manifest.launch}"


def find_model(model: str | None, *, stage: str | None, store: str) -> Path:
    """The local folder of a model; UserError where there is none, or its weights are gone."""
    if model and Path(model, WEIGHTS).exists():
        _say(f"the folder {model}")
        return Path(model)
    found = locate(model, stage=stage, store=store)
    return found.artifacts.fetch(found.manifest)


def locate(model: str | None, *, stage: str | None, store: str) -> Found:
    """The model of a store that a word means, which is said; UserError where there is none, or it is gone."""
    found = _locate(model, stage=stage, store=store)
    _say(found.what)
    return found


def _locate(model: str | None, *, stage: str | None, store: str) -> Found:
    resolved = resolve_profile(store)
    if model and ("://" in model or f"/{ROOT}/{KIND}/" in model):
        return _stored(model, resolved, what=model)
    if model in (ALIAS, FORMER):
        return _registered(ReleaseStage().model, model, resolved)
    if model and ":" in model:
        name, _, version = model.rpartition(":")
        return _registered(name, version, resolved)
    return _of_run(model, stage=stage, store=store)


def _say(what: str) -> None:
    print(f"Model: {what}", file=sys.stderr)


def _registered(name: str, version: str, resolved: ResolvedProfile) -> Found:
    """A version, or the one that an alias names, of a registered model or of a pipeline's."""
    registry = Registry(resolved.tracking)
    if not registry.has(name):
        try:
            run = find_run(name, store=resolved.name)
        except NoRun:
            raise UserError(f"the registry has no model '{name}', and this store no run of that name") from None
        name = run.spec.get("stages", {}).get("release", {}).get("model") or ReleaseStage().model
    found = registry.find(name, version)
    released = found.tags.get(FOLDER_TAG, "")
    by = f", released by {released.removeprefix('runs/')}" if released else ""
    alias = f" ({version})" if version != found.version else ""
    try:
        return _stored(found.source, resolved, what=f"version {found.version} of {name}{alias}{by}")
    except UserError as error:
        raise UserError(f"version {found.version} of {name} cannot be used: {error.message}") from error


def _stored(uri: str, resolved: ResolvedProfile, *, what: str) -> Found:
    """A model artifact by its address: a folder or s3://.../artifacts/model/<key>[/<launch>]."""
    address = ModelAddress.parse(uri)
    own = resolved.profile.root == address.root
    profile = resolved.profile if own else Profile(root=address.root, endpoint=resolved.profile.endpoint)
    artifacts = Artifacts(open_store(profile), resolved.cache)
    try:
        return Found(what, artifacts, read_manifest(artifacts.store, address))
    except Damaged as damage:
        raise UserError(damage.message) from damage


def _of_run(name: str | None, *, stage: str | None, store: str) -> Found:
    """The last model that a run made, or that of a stage."""
    run = find_run(name, store=store)
    artifacts = Artifacts(run.store, run.resolved.cache)
    wanted = [stage] if stage else ["rl", "sft", "mid", "base"]
    keys = run.status.keys()
    trained = [ref.name for ref in keys if ref.kind == "model"]
    if stage and stage not in trained:
        raise UserError(f"{run.name} has no stage '{stage}' that trains a model.{nearest(stage, trained)}")
    for made in wanted:
        key = keys.get(ArtifactRef.of("model", made))
        found = artifacts.find("model", key) if key else None
        if found is not None:
            return Found(f"{made} of the run {run.paths.root.removeprefix('runs/')}", artifacts, found)
    raise UserError(
        f"{run.name} has made no model{f' of {stage}' if stage else ''} yet: see 'nanochat status {run.name}'"
    )
