"""The commands for a cluster alone: submit, suspend, resume."""

from __future__ import annotations

from pathlib import Path

from nanochat.cli.cluster_errors import translate_errors
from nanochat.cli.cluster_run import FIELD_MANAGER, ClusterRun
from nanochat.cli.options import Context, File, Name, Namespace, Set
from nanochat.parse.address import local_path
from nanochat.pipeline.graph import build_graph
from nanochat.pipeline.planner import Phase
from nanochat.pipeline.preflight import check_inputs
from nanochat.spec.chatpipeline import PIPELINE, USER
from nanochat.spec.errors import UserError
from nanochat.spec.load import load_pipeline
from nanochat.spec.pipeline import Pipeline
from nanochat.tracking.environment import user
from operators.kube_client import CONFIG_MAPS, PIPELINES, KubeClient
from operators.kube_error import Object

CONTROLLER_SECONDS = 5.0  # that its word on a declaration is waited for: it knows profiles and pools
IDENTITY_BYTES = 900_000  # a ConfigMap holds 1 MiB


def submit(
    file: File,
    set_: Set = None,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Run a pipeline on a cluster, or change the one of its name."""
    pipeline = load_pipeline(file, set_)
    spec = pipeline.spec
    check_inputs(spec)
    build_graph(spec)  # gates, sizes and the horizon, which the controller would refuse a moment later
    for setting, uri in spec.sources.local():
        raise UserError(f"{setting} is {uri}, on this machine: a cluster needs an address like https:// or s3://")
    named = pipeline.metadata.namespace if "namespace" in pipeline.metadata.model_fields_set else None
    kube = KubeClient.connect(context)
    namespace = namespace or named or kube.namespace
    body = declared(pipeline, namespace)
    if (submitter := user()) is not None:
        body["metadata"]["annotations"] = {USER: submitter, **pipeline.metadata.annotations}
    identity = spec.stages.mid.identity
    path = local_path(identity) if identity else None
    if path is not None:
        body["spec"]["stages"]["mid"]["identity"] = _upload_identity(kube, namespace, pipeline, path)
    name = pipeline.metadata.name
    with translate_errors(f"pipeline {namespace}/{name}"):
        run = ClusterRun(kube, namespace, context, kube.apply(PIPELINES, body, manager=FIELD_MANAGER))
    if refused := run.refusal(within=CONTROLLER_SECONDS):
        raise UserError(f"{name} is in namespace {namespace}, and the controller refuses it: {refused}")
    print(f"{name} is submitted to namespace {namespace}.")
    if run.spec.get("cancel"):
        print(f"It is cancelled; go on with it: {run.command('retry')}")
    elif run.spec.get("suspend"):
        print(f"It is suspended; go on with it: {run.command('resume')}")
    run.warn_if_away()
    print(f"Status: {run.command('status')}")
    print(f"Logs:   {run.command('logs')} --follow")


def declared(pipeline: Pipeline, namespace: str) -> Object:
    """The object that declares a pipeline in a namespace."""
    body = pipeline.to_yaml_dict()
    # What is not set is left to the API server's defaults, so that `kubectl get` shows what was meant.
    body["spec"] = pipeline.spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    body["metadata"] = {name: value for name, value in body["metadata"].items() if value} | {"namespace": namespace}
    return body


def identity_address(pipeline: Pipeline) -> str:
    """Where a local identity file is on a cluster."""
    return f"configmap://{pipeline.metadata.name}-identity/identity.jsonl"


def _upload_identity(kube: KubeClient, namespace: str, pipeline: Pipeline, path: Path) -> str:
    """Put a local identity file into a ConfigMap; returns its address."""
    data = path.read_bytes()
    if len(data) > IDENTITY_BYTES:
        raise UserError(
            f"stages.mid.identity: {path} has {len(data):,} bytes and a ConfigMap takes {IDENTITY_BYTES:,}: "
            "put it into S3 and name s3://..."
        )
    name = f"{pipeline.metadata.name}-identity"
    meta = {"name": name, "namespace": namespace, "labels": {PIPELINE: pipeline.metadata.name}}
    with translate_errors(f"ConfigMap {namespace}/{name}"):
        kube.apply(
            CONFIG_MAPS, {"metadata": meta, "data": {"identity.jsonl": data.decode("utf-8")}}, manager=FIELD_MANAGER
        )
    return identity_address(pipeline)


def suspend(name: Name, namespace: Namespace = None, context: Context = None) -> None:
    """Pause a pipeline on a cluster once it has saved its checkpoints."""
    run = ClusterRun.find(name, namespace=namespace, context=context)
    if not run.is_live:
        raise UserError(f"'{run.name}' is not running: it is {run.phase}")
    run.change(spec={"suspend": True})
    print(f"{run.name} saves its checkpoints and waits; go on with it: {run.command('resume')}")


def resume(name: Name, namespace: Namespace = None, context: Context = None) -> None:
    """Resume a suspended pipeline on a cluster."""
    run = ClusterRun.find(name, namespace=namespace, context=context)
    if not run.spec.get("suspend"):
        if run.phase == Phase.SUSPENDED:
            raise UserError(f"'{run.name}' goes on by itself: {run.status.get('message', '')}")
        raise UserError(f"'{run.name}' is not suspended: it is {run.phase}")
    run.change(spec={"suspend": False})
    print(f"{run.name} goes on; see: {run.command('status')}")
