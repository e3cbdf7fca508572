"""`nanochat doctor --cluster`: what a pipeline needs of a cluster, checked, with what to do about each failing.

    show(examine(kube, "chat", pipeline, probe=True), as_json=False)

What is broken fails once: checks that depend on it are left out and say on what.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nanochat.cli.checks import Check, show
from nanochat.cli.cluster import declared, identity_address
from nanochat.cli.cluster_errors import translate_errors
from nanochat.cli.cluster_parts import (
    controller_checks,
    mlflow_checks,
    namespace_checks,
    operator_checks,
    server_checks,
)
from nanochat.cli.cluster_pods import job_checks, pod_checks, secret_checks, variable_checks
from nanochat.cli.cluster_probe import probe_checks
from nanochat.cli.cluster_room import queue_checks, stage_checks
from nanochat.cli.cluster_run import FIELD_MANAGER
from nanochat.cli.cluster_view import ClusterView, looked
from nanochat.parse.address import local_path
from nanochat.pipeline.preflight import check_inputs
from nanochat.spec.load import check_pipeline, load_pipeline
from nanochat.spec.pipeline import Pipeline
from operators.admission import admit_object
from operators.cluster import Cluster
from operators.kube_client import PIPELINES, KubeClient

ANY = {  # any pipeline's place, where no file is given; suspended, for its size is of no account
    "apiVersion": "nanochat.dev/v1alpha1", "kind": "ChatPipeline", "metadata": {"name": "doctor"},
    "spec": {"suspend": True},
}  # fmt: skip


def cluster_doctor(
    file: Path | None, *, overrides: list[str], namespace: str | None, context: str | None, probe: bool, as_json: bool
) -> int:
    """Print all checks of a cluster; returns 1 where one failed, else 0."""
    pipeline = load_pipeline(file, overrides) if file else None
    kube = KubeClient.connect(context)
    named = pipeline and "namespace" in pipeline.metadata.model_fields_set and pipeline.metadata.namespace
    return show(examine(kube, namespace or named or kube.namespace, pipeline, probe=probe), as_json=as_json)


def examine(kube: KubeClient, namespace: str, pipeline: Pipeline | None, *, probe: bool) -> Iterator[Check]:
    """All findings, the cluster's before the namespace's, and the pod's, which takes longest, last."""
    view = ClusterView(kube, namespace, pipeline)
    yield from looked(view, "cluster", lambda: server_checks(view))
    yield from looked(view, "namespace", lambda: namespace_checks(view))
    if view.broken:
        return
    yield from looked(view, "operator", lambda: operator_checks(view))
    yield from looked(view, "controller", lambda: controller_checks(view))
    if view.config is None:
        why = "see controller" if "controller" in view.broken else "you may not read it, or it is of another version"
        yield Check("profile", "skip", f"stores, pools and images are in the controller's configuration: {why}")
        return
    yield from looked(view, "pipeline", lambda: pipeline_checks(view))
    if view.passed is None:
        return
    tracking = view.accepted.profile.tracking
    yield from looked(view, "mlflow", lambda: mlflow_checks(view, tracking))
    yield from looked(view, "secret", lambda: secret_checks(view))
    yield from looked(view, "secret", lambda: variable_checks(view))
    yield from looked(view, "pods", lambda: pod_checks(view))
    yield from looked(view, "jobs", lambda: job_checks(view))
    yield from looked(view, "queue", lambda: queue_checks(view))
    yield from looked(view, "stages", lambda: stage_checks(view))
    if probe:
        yield from looked(view, "probe", lambda: probe_checks(view))


def pipeline_checks(view: ClusterView) -> Iterator[Check]:
    """The controller's own checks, and the API server's: all for which a declaration is refused before it runs."""
    assert view.config is not None
    pipeline = view.pipeline or check_pipeline(ANY)
    spec, mid = pipeline.spec, pipeline.spec.stages.mid
    body = declared(pipeline, view.namespace)
    if local := bool(mid.identity and local_path(mid.identity)):  # which `nanochat submit` uploads
        check_inputs(spec)
        body["spec"]["stages"]["mid"]["identity"] = None
    view.passed = admit_object(body, view.config, Cluster(view.kube))
    if view.pipeline is not None and view.may("patch", PIPELINES):
        if local:
            body["spec"]["stages"]["mid"]["identity"] = identity_address(pipeline)
        with translate_errors(f"pipeline {view.namespace}/{pipeline.metadata.name}"):
            view.kube.apply(PIPELINES, body, manager=FIELD_MANAGER, dry_run=True)
    profile, stages = view.accepted.profile, view.accepted.graph.stages
    where = profile.root + (f" at {profile.endpoint}" if profile.endpoint else "")
    what = f"{pipeline.metadata.name}: {len(stages)} stages, " if view.pipeline else ""
    yield Check("pipeline", "ok", f"{what}profile {spec.store}, {where}")
