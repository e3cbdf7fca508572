"""`nanochat gc`: which runs and artifacts of a store are needed, and the removal of all others.

    collected = collect_garbage(store, tracking=uri, keep_runs=3)

Needed are, of each pipeline and home, the latest runs; whatever is under way, suspended or waiting, wherever it runs;
and the models that the registry's aliases name or that a controller serves. What lives is read from the store's leases
and statuses, what is released from the registry: where one of them cannot be asked nothing is removed.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat.model.artifact import IMPORTED, KIND, ModelAddress
from nanochat.parse.address import shown
from nanochat.pipeline.leases import Collecting
from nanochat.pipeline.planner import Phase
from nanochat.pipeline.release_record import ReleaseRecord
from nanochat.pipeline.run_status import RunStatus, read_status
from nanochat.pipeline.runs import RunPaths
from nanochat.spec.errors import NanochatError, StorageError, UserError
from nanochat.storage import garbage
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.failures import Damaged
from nanochat.storage.records import read_object
from nanochat.storage.store import Store
from nanochat.tracking.registry import FOLDER_TAG, Registry

log = logging.getLogger(__name__)

ENDED = (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED)
YOUNG_SECONDS = 3600.0  # what was written since stays: somebody may have begun with it
BEGINNING_SECONDS = 15.0  # from a run's lease to its first status


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run's folder with its status; `modified` is when that was written, by the store's time."""

    paths: RunPaths
    status: RunStatus
    modified: float

    @property
    def group(self) -> tuple[str, str, str]:
        """The pipeline, and the home that runs it: the latest runs of each are kept."""
        return self.status.namespace, self.status.name, self.status.home


@dataclass(frozen=True, slots=True)
class Needed:
    """Runs, by folder, and models, by key, that must stay whatever their age."""

    runs: frozenset[str]
    models: frozenset[str]


def stored_runs(store: Store, *, skip_senseless: bool = False) -> list[StoredRun]:
    """All runs of a store, the latest first. StorageError where a status makes no sense, or a warning.

    Those of one pipeline are in the order in which they were begun, though the clock may have been set back since.
    """
    entries = [entry for entry in store.list("runs") if entry.path.endswith("/status.json")]
    entries.sort(key=lambda entry: entry.modified, reverse=True)
    found = []
    for entry in entries:
        paths = RunPaths(entry.path.removesuffix("/status.json"))
        try:
            status = read_status(store, paths)
        except Damaged as error:
            if not skip_senseless:
                raise
            log.warning("a run is passed over: %s", error.message)
            continue
        if status is not None:
            found.append(StoredRun(paths, status, entry.modified))
    dates: dict[tuple[str, str, str], float] = {}
    at: dict[RunPaths, float] = {}
    for run in sorted(found, key=lambda run: run.status.turn):
        dates[run.group] = at[run.paths] = max(dates.get(run.group, 0.0), run.modified)
    return sorted(found, key=lambda run: (at[run.paths], run.status.turn), reverse=True)


def collect_garbage(
    artifacts: Artifacts,
    *,
    tracking: str,
    keep_runs: int,
    champions: bool = False,
    unfinished: bool = False,
    imported: bool = False,
    ask_registry: bool = True,
    dry_run: bool = False,
) -> garbage.Collected:
    """Remove what is not needed. StorageError or UserError where it cannot be told what is: then nothing is removed.

    `champions` gives away models that were champion and have no alias any more, `unfinished` runs that were stopped and
    that nobody works on, `imported` those that were imported. Without `ask_registry` all that was ever released is
    kept.
    """
    store = artifacts.store
    with Collecting(store) as collecting:
        leases = collecting.leases()
        live = {root for lease in leases for root in lease.runs}
        runs = _all_runs(store, live)
        needed = _released(artifacts, tracking, promoted=not champions) if ask_registry else _ever_released(artifacts)
        served = {key for lease in leases for uri in lease.models if (key := _model_key(uri))}
        going = {
            run.paths.root: f"not among the latest {keep_runs}"
            for run in _older(runs, keep_runs)
            if run.paths.root not in live | needed.runs
            and (unfinished or run.status.phase in ENDED)
            and (champions or not _was_champion(store, run.paths))
        }
        staying = [run for run in runs if run.paths.root not in going]
        keep = {(ref.kind, key) for run in staying for ref, key in run.status.keys().items()}
        keep |= {(KIND, key) for key in needed.models | served}
        if not imported:
            keep |= {(KIND, m.key) for m in artifacts.list(KIND) if m.recipe.get("stage") == IMPORTED}
        keep |= _checkpoints(staying)
        return garbage.collect(
            store,
            keep=keep,
            spare=_spared(run for run in staying if run.paths.root in live or run.status.phase not in ENDED),
            folders=going,
            older_than_s=YOUNG_SECONDS,
            now=collecting.date(),
            dry_run=dry_run,
            check=collecting.check,
        )


# ---- what lives -----------------------------------------------------------------------------------------------------


def _all_runs(store: Store, live: Collection[str]) -> list[StoredRun]:
    """All runs, with those that have just begun: what these need is known once they have a status."""
    deadline = time.monotonic() + BEGINNING_SECONDS
    while True:
        try:
            runs = stored_runs(store)
        except Damaged as error:
            raise UserError(
                f"it cannot be told what one of the runs needs, so nothing is removed: {error.message}"
            ) from error
        beginning = sorted(set(live) - {run.paths.root for run in runs})
        if not beginning:
            return runs
        if time.monotonic() > deadline:
            raise UserError(
                f"{store.uri(beginning[0])} has only just begun, so nothing is removed: try again in a minute"
            )
        time.sleep(1.0)


def _older(runs: Sequence[StoredRun], keep: int) -> list[StoredRun]:
    """The runs beyond the latest `keep` of each pipeline and home."""
    groups: dict[tuple[str, str, str], list[StoredRun]] = defaultdict(list)
    for run in runs:
        groups[run.group].append(run)
    return [run for group in groups.values() for run in group[keep:]]


def _checkpoints(runs: Sequence[StoredRun]) -> set[tuple[str, str]]:
    """Checkpoints of stages that did not end: (stage, key)."""
    made = (Phase.SUCCEEDED, Phase.CACHED)
    stages = [item for run in runs for item in run.status.stages if item.phase not in made]
    return {(item.stage, key) for item in stages for key in item.keys.values()}


def _spared(runs: Iterable[StoredRun]) -> set[tuple[str, str]]:
    """Artifacts and checkpoints that may be written at the moment."""
    working = list(runs)
    stages = [item for run in working for item in run.status.stages]
    made = {(ref.kind, key) for item in stages for ref, key in item.keys.items()}
    made |= {(item.stage, key) for item in stages for key in item.keys.values()}
    return made | {("runs", run.paths.root) for run in working}


# ---- what is released -----------------------------------------------------------------------------------------------


def _released(artifacts: Artifacts, tracking: str, *, promoted: bool) -> Needed:
    """The models that the registries name: that of the profile, and those that releases in the store tell of."""
    told = {record.registry: record for m in artifacts.list("release") if (record := ReleaseRecord.of(m.metadata))}
    told.pop("", None)
    own = told.pop(shown(tracking), None)
    versions = []
    for uri, record in {tracking: own, **told}.items():
        try:
            file = uri.removeprefix("sqlite:///")
            if file != uri and not Path(file).exists():
                if record is not None:
                    raise StorageError(f"there is no {file} here")
                continue  # nothing was released yet
            versions += Registry(uri).needed(promoted=promoted)
        except NanochatError as error:
            what = f", which has version {record.version} of {record.model}," if record and record.version else ""
            raise StorageError(
                f"the model registry {shown(uri)}{what} cannot be asked which models are needed, so nothing is removed "
                f"({error.message}): try again when it answers, or keep all that was ever released: --keep-releases"
            ) from error
    runs = frozenset(version.tags.get(FOLDER_TAG, "") for version in versions)
    return Needed(runs, frozenset(key for version in versions if (key := _model_key(version.source))))


def _ever_released(artifacts: Artifacts) -> Needed:
    """All that was ever released, by the releases' own artifacts."""
    manifests = list(artifacts.list("release"))
    runs = frozenset(str(manifest.metadata.get("run", "")) for manifest in manifests)
    return Needed(
        runs, frozenset(key for m in manifests for ref, key in m.inputs.items() if ref.startswith(f"{KIND}/"))
    )


def _model_key(uri: str) -> str:
    """The key of a model by its address, in whichever store: one store may be known by several names."""
    try:
        return ModelAddress.parse(uri).key
    except UserError:
        return ""


def _was_champion(store: Store, paths: RunPaths) -> bool:
    """Whether a run's own record says that its model became champion; versions before told it there alone."""
    try:
        release = read_object(store, paths.release) or {}
    except Damaged:
        return True
    alias = release.get("alias")
    return isinstance(alias, dict) and bool(alias.get("moved"))
