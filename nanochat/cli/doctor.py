"""`nanochat doctor`: what a run needs, checked, with what to do about each failing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil

from nanochat.cli.checks import Check, show
from nanochat.data.hub_access import HubAccess
from nanochat.data.text_files import is_pattern
from nanochat.evaluation.sandbox import Sandbox
from nanochat.model.sizes import parameters
from nanochat.parse import Malformed
from nanochat.parse.address import FILE, resolve, shown
from nanochat.pipeline.admission import admit_local, localize
from nanochat.pipeline.devices import Devices
from nanochat.pipeline.profiles import ResolvedProfile, resolve_profile
from nanochat.pipeline.resolve import Horizon, horizon, shard_name
from nanochat.pipeline.task_selection import find_task, used_tasks
from nanochat.runtime.compiler import cxx_compiler
from nanochat.spec.errors import NO_TORCH, TORCH_ADVICE, NanochatError, UserError, first_line
from nanochat.spec.load import load_pipeline
from nanochat.spec.pipeline import Pipeline, PipelineSpec
from nanochat.storage import open_store
from nanochat.tracking.client import connect, is_deleted
from nanochat.tracking.mlflow import EXPERIMENT

GIB = 1 << 30
# Weights, gradients, Muon's momentum or AdamW's two moments in fp32, and a copy for saving.
BYTES_PER_PARAMETER = 20
CHECKPOINTS = 3  # kept, and one being written
BYTES_PER_CHARACTER = 0.4  # zstd text, as downloaded
BYTES_PER_TOKEN = 2


def doctor(file: Path | None, *, overrides: list[str], as_json: bool = False) -> int:
    """Print all checks; returns 1 where one failed, else 0."""
    pipeline = load_pipeline(file, overrides) if file else None
    return show(checks(pipeline), as_json=as_json)


def checks(pipeline: Pipeline | None) -> Iterator[Check]:
    """All findings; the sizes and sources are those of the pipeline, where one is given."""
    spec = localize(pipeline).spec if pipeline else PipelineSpec()
    resolved = resolve_profile(spec.store)
    plan = horizon(spec) if pipeline else None
    if pipeline:
        yield guarded("pipeline", lambda: pipeline_check(pipeline))
    yield torch_check()
    yield device_check()
    yield compiler_check()
    yield memory_check(plan)
    yield disk_check(resolved, spec, plan)
    yield guarded("storage", lambda: storage_check(resolved))
    yield guarded("tracking", lambda: tracking_check(resolved))
    if plan is not None:
        needed = sources_of(spec, plan)
        if not needed:
            yield Check("sources", "ok", "the demo world is generated; nothing is downloaded")
        with ThreadPoolExecutor(8) as pool:
            yield from pool.map(lambda item: reach(*item), needed.items())
        if spec.stages.eval_chat.enabled and any(part.task == "humaneval" for part in spec.stages.eval_chat.tasks):
            yield guarded("sandbox", sandbox_check)


def guarded(name: str, check: Callable[[], Check]) -> Check:
    """The check, or its error as a failed one."""
    try:
        return check()
    except NanochatError as error:
        return Check(name, "fail", error.message)
    except Exception as error:
        return Check(name, "fail", f"{type(error).__name__}: {error}", "this is a fault of nanochat: please report it")


def pipeline_check(pipeline: Pipeline) -> Check:
    """Whether the declaration holds together, with the local files that it names."""
    graph = admit_local(pipeline).graph
    what = f"{pipeline.metadata.name}: {len(graph.stages)} stages, {graph.horizon.steps:,} steps of base"
    return Check("pipeline", "ok", what)


def torch_check() -> Check:
    """Whether PyTorch is installed; it is not imported."""
    try:
        found = f"torch {importlib.metadata.version('torch')}, Python {platform.python_version()}"
        return Check("torch", "ok", found)
    except importlib.metadata.PackageNotFoundError:
        return Check("torch", "fail", NO_TORCH, TORCH_ADVICE)


def device_check() -> Check:
    """GPUs, or the CPU's cores."""
    devices = Devices.detect()
    if devices.gpus:
        return Check("device", "ok", f"{devices.gpus} NVIDIA GPU(s), {devices.cores} cores")
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return Check("device", "ok", f"Apple silicon (mps), {devices.cores} cores")
    return Check("device", "ok", f"no GPU; {devices.cores} CPU core(s)")


def compiler_check() -> Check:
    """torch.compile on a CPU needs a C++ compiler."""
    found = cxx_compiler()
    if found is None:
        return Check("compiler", "warn", "no C++ compiler: torch.compile is off, training is slower", "install g++")
    return Check("compiler", "ok", Path(found).name)


def memory_check(plan: Horizon | None) -> Check:
    """Free memory against what the model's training state takes."""
    free = psutil.virtual_memory().available
    if plan is None:
        return Check("memory", "ok", f"{free / GIB:.1f} GiB free")
    need = parameters(plan.model) * BYTES_PER_PARAMETER
    found = f"{free / GIB:.1f} GiB free, {need / GIB:.1f} GiB for the training state, and activations on top"
    if need > free:
        return Check("memory", "fail", found, "use a smaller model.depth, or a machine with more memory")
    return Check("memory", "ok", found)


def disk_check(resolved: ResolvedProfile, spec: PipelineSpec, plan: Horizon | None) -> Check:
    """Free disk space where the store or the cache is."""
    folder = Path(resolved.profile.root) if "://" not in resolved.profile.root else resolved.home
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    need = GIB
    if plan is not None:
        shards = len(plan.text_shards)
        text = shards * spec.sources.text.characters_per_shard
        state = parameters(plan.model) * 12 * CHECKPOINTS
        need += int(text * BYTES_PER_CHARACTER + text / 4.8 * BYTES_PER_TOKEN + state)
    found = f"{free / GIB:.1f} GiB free at {folder}, about {need / GIB:.1f} GiB needed"
    if not os.access(folder, os.W_OK):
        advice = "change its owner or mode, or set NANOCHAT_HOME and NANOCHAT_ROOT to folders of yours"
        return Check("disk", "fail", f"{folder} cannot be written", advice)
    if free < need:
        advice = "free space, or set NANOCHAT_ROOT to a larger disk or to s3://bucket/prefix"
        return Check("disk", "fail", found, advice)
    return Check("disk", "ok", found)


def storage_check(resolved: ResolvedProfile) -> Check:
    """Writing, exclusive creation, listing, reading and deleting in the store."""
    open_store(resolved.profile, patient=False).check()
    return Check("storage", "ok", f"{resolved.profile.root} can be written and read")


def tracking_check(resolved: ResolvedProfile) -> Check:
    """Whether MLflow can be reached; training does not depend on it."""
    later = "a run goes on without it and sends later what it missed"
    if not resolved.tracking.startswith(("http://", "https://")):
        file = Path(resolved.tracking.removeprefix("sqlite:///"))
        folder = next(path for path in file.parents if path.is_dir())
        if resolved.tracking.startswith("sqlite:///") and not os.access(folder, os.W_OK):
            return Check("tracking", "warn", f"{file} cannot be written", f"set MLFLOW_TRACKING_URI; {later}")
        return experiment_check(resolved.tracking) if file.exists() else Check("tracking", "ok", resolved.tracking)
    if silent := silence(resolved.tracking):
        return Check("tracking", "warn", silent, f"start it, or set MLFLOW_TRACKING_URI; {later}")
    return experiment_check(resolved.tracking)


def silence(uri: str) -> str:
    """How an MLflow server that is asked for its health fails to answer; '' where it answers."""
    try:
        httpx.get(f"{uri.rstrip('/')}/health", timeout=5.0, follow_redirects=True).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"{shown(uri)} does not answer ({first_line(error)})"
    return ""


def experiment_check(uri: str) -> Check:
    """Whether the experiment that runs are shown in is there, as far as there was one."""
    try:
        deleted = is_deleted(connect(uri), EXPERIMENT)
    except UserError as error:
        return Check("tracking", "warn", error.message)
    except Exception as error:  # MLflow, its database and its HTTP client raise families of their own
        return Check("tracking", "warn", f"{shown(uri)} does not answer as MLflow does ({first_line(error)})")
    if deleted:
        found, advice = f"its experiment '{EXPERIMENT}' was deleted", "the next run restores it, with all its runs"
        return Check("tracking", "warn", f"{shown(uri)}: {found}", advice)
    return Check("tracking", "ok", f"{shown(uri)} answers")


def sources_of(spec: PipelineSpec, plan: Horizon) -> dict[str, str]:
    """The addresses that the dataset stage will read, one of each kind, with what each is and which setting names it.

    One file of a hub stands for all: what is missing beside it is said by the dataset stage.
    """
    sources, stages, needed = HubAccess.of().located(spec.sources), spec.stages, dict[str, str]()
    if sources.text.kind == "hub" and plan.shards:
        path = sources.text.path.format(revision=sources.text.revision, index=plan.validation_shard)
        base = (sources.text.base or sources.hub).rstrip("/")
        name = shard_name(plan.validation_shard)
        needed[f"{base}/{path}"] = f"the validation shard {name}: correct sources.text or sources.mirror"
    if sources.text.files and plan.shards and not is_pattern(sources.text.files):
        needed[sources.text.files] = "your own text: correct sources.text.files"
    if "base" in stages.trained() and stages.eval_base.enabled and stages.eval_base.core:
        address = sources.eval_bundle.url
        needed[address] = "CORE's bundle: correct sources.evalBundle.url, or set stages.evalBase.core=false"
    hub = False
    for task in used_tasks(spec):
        for file in (file for files in find_task(task).files.values() for file in files):
            if file.source == "words":
                needed[sources.words.url] = "the word list: correct sources.words.url or sources.mirror"
            elif file.source == "identity" and stages.mid.identity:
                needed[stages.mid.identity] = "the identity conversations: correct stages.mid.identity"
            elif file.source == "identity":
                address = sources.identity.url
                needed[address] = "the identity conversations: set stages.mid.identity or sources.identity.url"
            elif not hub:
                hub = True
                address = f"{sources.hub.rstrip('/')}/{file.at(sources.hub_revision)}"
                needed[address] = f"a file of the task {task}: correct sources.hub or sources.mirror"
    return needed


def reach(uri: str, what: str) -> Check:
    """Whether an address answers."""
    advice = f"it is {what}"
    try:
        address = resolve(uri, FILE)
    except Malformed as error:
        return Check("sources", "fail", f"{shown(uri)}: {error}", advice)
    if address.path is not None:
        if address.path.exists():
            return Check("sources", "ok", str(address.path))
        return Check("sources", "fail", f"{address.path} does not exist", advice)
    if address.scheme not in ("http", "https"):
        return Check("sources", "ok", f"{uri} (checked when it is read)")
    uri = shown(address.text)
    try:
        access = HubAccess.of()
        headers = access.headers(address.text)
        answer = httpx.head(address.text, timeout=10.0, follow_redirects=True, headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Check(
            "sources", "fail", f"{uri} cannot be reached ({first_line(error)})", f"check the network; {advice}"
        )
    if answer.status_code in (401, 403):
        found = f"{uri} is refused (HTTP {answer.status_code})"
        return Check("sources", "fail", found, f"{access.advice(uri)}; {advice}")
    if answer.status_code >= 400:
        return Check("sources", "fail", f"{uri} answers with HTTP {answer.status_code}", advice)
    return Check("sources", "ok", uri)


def sandbox_check() -> Check:
    """Whether HumanEval's programs can be isolated here."""
    reason = Sandbox().unavailable()
    if reason:
        advice = "HumanEval is not run here and the report says so; a newer kernel or fewer restrictions may help"
        return Check("sandbox", "warn", reason, advice)
    return Check("sandbox", "ok", "programs of HumanEval run isolated")
