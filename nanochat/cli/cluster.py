"""The commands on a cluster: submit, suspend, resume; and what status, logs, cancel, retry and report do there."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nanochat.cli import kube
from nanochat.cli.display import duration, quantity
from nanochat.cli.kube import ClusterFailure, ClusterPipeline
from nanochat.pipeline.preflight import check_inputs, local_file
from nanochat.spec.errors import UserError
from nanochat.spec.fields import nearest
from nanochat.spec.load import load_pipeline
from nanochat.spec.pipeline import Pipeline

Name = Annotated[str, typer.Argument(help="Name of the pipeline.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Change a setting: path=value, e.g. model.depth=6.")]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace on a cluster.")]
Context = Annotated[str | None, typer.Option("--context", help="The kubeconfig's context of a cluster.")]
FOLLOW_SECONDS = 2.0


def submit(
    file: Annotated[Path, typer.Argument(help="Pipeline file (YAML).")],
    set_: Set = None,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Run a pipeline on a cluster, or change the one of its name that is there."""
    pipeline = load_pipeline(file, set_)
    spec = pipeline.spec
    check_inputs(spec)
    for setting, uri in _local_sources(pipeline):
        raise UserError(f"{setting} is {uri}, on this machine: a cluster needs an https:// or s3:// address")
    named = pipeline.metadata.namespace if "namespace" in pipeline.metadata.model_fields_set else None
    cluster = kube.Kube.connect(namespace or named, context)
    body = pipeline.to_yaml_dict()
    # What is not set is left to the API server's defaults, so that `kubectl get` shows what was meant.
    body["spec"] = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    body["metadata"] = {name: value for name, value in body["metadata"].items() if value and name != "namespace"}
    identity = spec.stages.mid.identity
    path = local_file(identity) if identity and not identity.startswith("configmap://") else None
    if path is not None:
        body["spec"]["stages"]["mid"]["identity"] = kube.upload_identity(cluster, pipeline, path)
    name = pipeline.metadata.name
    kube.apply(cluster, cluster.path(name), body, what=f"pipeline {name}")
    where = "".join([f" -n {namespace}" if namespace else "", f" --context {context}" if context else ""])
    print(f"{name} is submitted to namespace {cluster.namespace}.")
    print(f"Where it stands: nanochat status {name}{where}")
    print(f"Its logs:        nanochat logs {name} --follow{where}")


def _local_sources(pipeline: Pipeline) -> list[tuple[str, str]]:
    """Sources that lie on this machine: (setting, address)."""
    found: list[tuple[str, str]] = []

    def look(data: Any, path: str) -> None:
        for name, value in data.items():
            if isinstance(value, dict):
                look(value, f"{path}.{name}")
            elif name in ("mirror", "hub", "base", "url", "gpt2", "gpt4") and value and local_file(value):
                found.append((f"{path}.{name}", value))

    look(pipeline.spec.sources.to_yaml_dict(), "sources")
    return found


def suspend(name: Name, namespace: Namespace = None, context: Context = None) -> None:
    """Let a pipeline on a cluster save its checkpoints and wait."""
    kube.find(name, namespace=namespace, context=context).change(spec={"suspend": True})
    print(f"{name} saves its checkpoints and waits; go on with: nanochat resume {name}")


def resume(name: Name, namespace: Namespace = None, context: Context = None) -> None:
    """Let a suspended pipeline on a cluster go on."""
    kube.find(name, namespace=namespace, context=context).change(spec={"suspend": False})
    print(f"{name} goes on")


def cancel(pipeline: ClusterPipeline) -> None:
    """End a pipeline."""
    if not pipeline.is_live:
        raise UserError(f"'{pipeline.name}' is not running: it is {pipeline.status.get('phase')}")
    pipeline.change(spec={"cancel": True})
    print(f"{pipeline.name} saves its checkpoints and stops")


def retry(pipeline: ClusterPipeline) -> None:
    """Let a pipeline that failed or was cancelled go on."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    pipeline.change(spec={"cancel": False}, annotations={"nanochat.dev/retry": now})
    print(f"{pipeline.name} is tried again")


def status(pipeline: ClusterPipeline, *, as_json: bool) -> None:
    """Where a pipeline stands."""
    told = pipeline.status
    if as_json:
        print(json.dumps(told, indent=1))
        return
    console = Console(highlight=False)
    place = f"{pipeline.kube.namespace}/{pipeline.name}"
    if not told:
        console.print(f"{place}: the controller has not looked at it yet. Is it installed and running?", markup=False)
        return
    console.print(f"{place}: {told.get('phase', '')} {told.get('message', '')}".rstrip(), markup=False)
    table = Table(box=None, pad_edge=False)
    for heading in ("STAGE", "PHASE", "ATTEMPTS", "TIME", "PROGRESS"):
        table.add_column(heading, overflow="fold")
    for item in told.get("stages", ()):
        table.add_row(item["name"], item["phase"], str(item.get("attempts") or ""), _took(item), _note(item))
    console.print(table)
    if told.get("queue"):
        queue = told["queue"]
        console.print(f"queue {queue['name']}: {queue['state']}, {queue['message']}", markup=False)
    if told.get("gpuHours"):
        console.print(f"{told['gpuHours']:.1f} GPU hours, {told['cost']:.2f} USD", markup=False)
    for item in told.get("conditions", ()):
        if item["status"] == "False" and item["type"] != "Succeeded":
            console.print(f"{item['type']}: {item['message']}", markup=False, soft_wrap=True)


def _note(item: dict[str, Any]) -> str:
    if item.get("step") is None:
        return item.get("message") or (item.get("why", "") if item["phase"] in ("Running", "Succeeded") else "")
    total = f"/{quantity(item['total'])}" if item.get("total") else ""
    parts = [f"{quantity(item['step'])}{total}"]
    parts += [f"loss {item['loss']:.3f}"] if item.get("loss") is not None else []
    parts += [item["rate"]] if item.get("rate") else []
    parts += [f"{duration(item['eta'])} left"] if item.get("eta") is not None else []
    return ", ".join(parts)


def _took(item: dict[str, Any]) -> str:
    if not item.get("started"):
        return ""
    ended = datetime.fromisoformat(item["ended"]).timestamp() if item.get("ended") else time.time()
    return duration(ended - datetime.fromisoformat(item["started"]).timestamp())


def logs(pipeline: ClusterPipeline, *, stage: str | None, attempt: int | None, rank: int, follow: bool) -> None:
    """The logs of a stage; followed, across its attempts, and without a stage across the stages."""
    known = [item["name"] for item in pipeline.status.get("stages", ())]
    if stage and known and stage not in known:
        raise UserError(f"there is no stage '{stage}'.{nearest(stage, known)}")
    reader = _Reader(pipeline, attempt=attempt, rank=rank, every=follow)
    while True:
        live = pipeline.is_live
        stages = [stage] if stage else _stages(pipeline, all_of_them=follow)
        for name in stages:
            reader.read(name)
        if not follow or not live or (stage and _ended(pipeline, stage)):
            if not reader.found:
                raise UserError(f"there is no log of {stage or pipeline.name} yet")
            return
        time.sleep(FOLLOW_SECONDS)
        pipeline.refresh()


def _stages(pipeline: ClusterPipeline, *, all_of_them: bool) -> list[str]:
    started = [item for item in pipeline.status.get("stages", ()) if item.get("started")]
    if not started and not pipeline.is_live:
        raise UserError(f"no stage of {pipeline.name} has run")
    started.sort(key=lambda item: item["started"])
    return [item["name"] for item in (started if all_of_them else started[-1:])]


def _ended(pipeline: ClusterPipeline, stage: str) -> bool:
    known = {item["name"]: item["phase"] for item in pipeline.status.get("stages", ())}
    return known.get(stage) in ("Succeeded", "Cached", "Failed", "Cancelled", "Unneeded")


class _Reader:
    """Prints stored logs, each byte once."""

    def __init__(self, pipeline: ClusterPipeline, *, attempt: int | None, rank: int, every: bool) -> None:
        self._pipeline, self._attempt, self._every = pipeline, attempt, every
        self._file = "launch" if rank < 0 else f"rank{rank}"
        self._offsets: dict[tuple[str, str], int] = {}
        self._last: tuple[str, str] = ("", "")
        self.found = False

    def read(self, stage: str) -> None:
        """Print what is new of a stage: of the chosen attempt, of all when followed, else of the last."""
        launches = json.loads(self._pipeline.stored(f"logs/{stage}")[0])
        # Each node has its own launch: the one with this rank's file is that of its node.
        own = [item["launch"] for item in launches if any(file["name"] == self._file for file in item["files"])]
        if self._attempt is not None:
            own = [launch for launch in own if launch.startswith(f"{self._attempt:02d}-")]
        for launch in own if self._every else own[-1:]:
            self._print(stage, launch)

    def _print(self, stage: str, launch: str) -> None:
        self.found = True
        key = (stage, launch)
        while True:
            offset = self._offsets.get(key, 0)
            data, headers = self._pipeline.stored(f"logs/{stage}/{launch}/{self._file}", offset=offset)
            if not data:
                return
            if self._every and self._last != key:
                print(f"==> {stage}, attempt {int(launch.split('-')[0])} <==", flush=True)
            self._last = key
            self._offsets[key] = int(headers[kube.NEXT])
            sys.stdout.write(data.decode("utf-8", "replace"))
            sys.stdout.flush()


def report(pipeline: ClusterPipeline, *, markdown: bool, home: Path) -> None:
    """Copy a pipeline's report to this machine and print its summary."""
    folder = home / "reports" / pipeline.name
    files: list[str] = json.loads(pipeline.stored("report")[0])
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pipeline.stored(f"report/{file}")[0])
    text = (folder / "report.md").read_text(encoding="utf-8")
    # What stands before the second section is the summary.
    print(text if markdown else "\n## ".join(text.split("\n## ")[:2]))
    print(f"\nThe whole report: {folder / 'report.html'}")


def found_on(name: str | None, namespace: str | None, context: str | None) -> ClusterPipeline | None:
    """The pipeline on the cluster that the options name; None where they name none."""
    if namespace is None and context is None:
        return None
    if name is None:
        raise UserError("name the pipeline: nanochat status NAME -n NAMESPACE")
    return kube.find(name, namespace=namespace, context=context)


def instead(name: str | None, error: UserError) -> ClusterPipeline:
    """The pipeline of a name that no local run has; the error of the local search where no cluster has it either."""
    if name is None:
        raise error
    try:
        return kube.find(name, namespace=None, context=None)
    except (ClusterFailure, UserError) as failure:
        raise UserError(f"{error.message}; on the cluster: {failure.message}") from None
