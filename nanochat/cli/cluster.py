"""The commands on a cluster: submit, suspend, resume; and what status, logs, cancel, retry and report do there."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nanochat.cli import kube
from nanochat.cli.display import quantity
from nanochat.cli.kube import ClusterFailure, ClusterPipeline, NoCluster
from nanochat.cli.logs import Launch, Stage, Unanswered
from nanochat.pipeline.preflight import check_inputs, local_file
from nanochat.spec.chatpipeline import RETRY
from nanochat.spec.errors import UserError
from nanochat.spec.load import load_pipeline
from nanochat.spec.pipeline import Pipeline
from nanochat.storage.store import check_path
from nanochat.tracking.quantities import duration

Name = Annotated[str, typer.Argument(help="Name of the pipeline.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Change a setting: path=value, e.g. model.depth=6.")]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace on a cluster.")]
Context = Annotated[str | None, typer.Option("--context", help="The kubeconfig's context of a cluster.")]
LISTED = 5  # attempts that status tells of


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
    made = kube.apply(cluster, cluster.path(name), body, what=f"pipeline {name}")
    found = ClusterPipeline(cluster, name, made)
    print(f"{name} is submitted to namespace {cluster.namespace}.")
    if made["spec"].get("cancel"):
        print(f"It is cancelled; let it go on with: {found.command('retry')}")
    elif made["spec"].get("suspend"):
        print(f"It is suspended; let it go on with: {found.command('resume')}")
    print(f"Where it stands: {found.command('status')}")
    print(f"Its logs:        {found.command('logs')} --follow")


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
    pipeline = kube.find(name, namespace=namespace, context=context)
    if not pipeline.is_live:
        raise UserError(f"'{pipeline.name}' is not running: it is {pipeline.phase}")
    pipeline.change(spec={"suspend": True})
    print(f"{pipeline.name} saves its checkpoints and waits; let it go on with: {pipeline.command('resume')}")


def resume(name: Name, namespace: Namespace = None, context: Context = None) -> None:
    """Let a suspended pipeline on a cluster go on."""
    pipeline = kube.find(name, namespace=namespace, context=context)
    if not pipeline.found["spec"].get("suspend"):
        raise UserError(f"'{pipeline.name}' is not suspended: it is {pipeline.phase}")
    pipeline.change(spec={"suspend": False})
    print(f"{pipeline.name} goes on; see: {pipeline.command('status')}")


def cancel(pipeline: ClusterPipeline) -> None:
    """End a pipeline."""
    if not pipeline.is_live:
        raise UserError(f"'{pipeline.name}' is not running: it is {pipeline.phase}")
    pipeline.change(spec={"cancel": True})
    print(f"{pipeline.name} saves its checkpoints and stops; let it go on with: {pipeline.command('retry')}")


def retry(pipeline: ClusterPipeline) -> None:
    """Let a pipeline that failed or was cancelled go on."""
    if pipeline.phase == "Succeeded":
        raise UserError(f"'{pipeline.name}' has succeeded: there is nothing to try again")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    pipeline.change(spec={"cancel": False}, annotations={RETRY: now})
    if pipeline.found["spec"].get("suspend"):
        print(f"{pipeline.name} is tried again once it is not suspended any more: {pipeline.command('resume')}")
    else:
        print(f"{pipeline.name} is tried again; see: {pipeline.command('status')}")


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
    message = told.get("message", "")
    more = f", {message}" if message and message != pipeline.phase.lower() else ""
    console.print(f"{place}: {pipeline.phase}{more}", markup=False, soft_wrap=True)
    if told.get("stages"):
        table = Table(box=None, pad_edge=False)
        for heading in ("STAGE", "PHASE", "ATTEMPTS", "TIME", "PROGRESS"):
            table.add_column(heading, overflow="fold")
        for item in told["stages"]:
            table.add_row(item["name"], item["phase"], str(item.get("attempts") or ""), _took(item), _note(item))
        console.print(table)
    for line in _remarks(told):
        console.print(line, markup=False, soft_wrap=True)


def _remarks(told: dict[str, Any]) -> Iterator[str]:
    """What the table does not say: attempts that did not succeed, the queue, the cost, what is wrong."""
    ended = [item for item in told.get("attempts", ()) if item.get("reason") not in ("Succeeded", "Running")]
    for item in ended[-LISTED:]:
        where = f" (on {', '.join(item['nodes'])})" if item.get("nodes") else ""
        yield f"{item['stage']}, attempt {item['number']}: {item['reason']}, {item.get('message', '')}{where}"
    if told.get("queue"):
        queue = told["queue"]
        yield ", ".join(filter(None, [f"queue {queue['name']}: {queue.get('state', '')}", queue.get("message", "")]))
    if told.get("gpuHours"):
        yield f"{told['gpuHours']:.1f} GPU hours" + (f", {told['cost']:.2f} USD" if told.get("cost") else "")
    for item in told.get("conditions", ()):
        if item["status"] == "False" and item.get("message") and item["message"] not in told.get("message", ""):
            yield f"{item['type']}: {item['message']}"


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
    ended = _seconds(item["ended"]) if item.get("ended") else time.time()
    return duration(ended - _seconds(item["started"]))


def _seconds(text: str) -> float:
    """A time of the status in seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()


@dataclass(slots=True)
class Logs:
    """A pipeline's stored logs, from the controller's endpoint."""

    pipeline: ClusterPipeline
    looked: bool = False

    @property
    def name(self) -> str:
        return self.pipeline.name

    def look(self) -> tuple[bool, list[Stage]]:
        if self.looked:
            with _passing():
                self.pipeline.refresh()
        self.looked = True
        stages = [
            Stage(
                name=item["name"],
                phase=item["phase"],
                message=item.get("message", ""),
                attempts=item.get("attempts", 0),
                started=_seconds(item["started"]) if item.get("started") else None,
            )
            for item in self.pipeline.status.get("stages", ())
        ]
        return self.pipeline.is_live, stages

    def launches(self, stage: str) -> list[Launch]:
        with _passing():
            found = json.loads(self.pipeline.stored(f"logs/{stage}"))
        return [Launch(item["launch"], {file["name"]: file["bytes"] for file in item["files"]}) for item in found]

    def read(self, stage: str, launch: str, file: str, offset: int) -> bytes:
        with _passing():
            return self.pipeline.stored(f"logs/{stage}/{launch}/{file}", offset=offset)


@contextmanager
def _passing() -> Iterator[None]:
    try:
        yield
    except ClusterFailure as failure:
        if failure.passing:
            raise Unanswered(failure.message) from None
        raise


def report(pipeline: ClusterPipeline, *, markdown: bool, home: Path) -> None:
    """Copy a pipeline's report to this machine and print it: all of it, or what stands before its second section."""
    folder = home / "reports" / pipeline.name
    for file in json.loads(pipeline.stored("report")):
        try:
            path = folder / check_path(file)
        except ValueError:
            raise UserError(f"the report has a file '{file}', which would lie outside its folder") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pipeline.stored(f"report/{file}"))
    text = (folder / "report.md").read_text(encoding="utf-8")
    print(text if markdown else "\n## ".join(text.split("\n## ")[:2]).rstrip())
    print(f"\nThe whole report: {folder / 'report.html'}")


def found_on(name: str | None, namespace: str | None, context: str | None) -> ClusterPipeline | None:
    """The pipeline on the cluster that the options name; None where they name none."""
    if namespace is None and context is None:
        return None
    if name is None:
        raise UserError("name the pipeline: on a cluster there is no last one")
    return kube.find(name, namespace=namespace, context=context)


def instead(name: str | None, error: UserError) -> ClusterPipeline:
    """The pipeline of a name that no local run has; the error of the local search where no cluster has it either."""
    if name is None:
        raise error
    try:
        return kube.find(name, namespace=None, context=None)
    except NoCluster:
        raise error from None
    except (ClusterFailure, UserError) as failure:
        raise UserError(f"{error.message}; on the cluster: {failure.message}") from None
