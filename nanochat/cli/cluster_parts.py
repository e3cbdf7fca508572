"""Checks of what a whole cluster has: the API server, the training operator, ChatPipelines, their controller, MLflow.

from nanochat.cli.cluster_view import looked
yield from looked(view, "operator", lambda: operator_checks(view))
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator

from nanochat.cli.checks import Check
from nanochat.cli.cluster_errors import to_error
from nanochat.cli.cluster_run import AWAY
from nanochat.cli.cluster_view import NAMESPACES, ClusterView, names, selector_of
from nanochat.cli.mlflow_proxy import named_service
from nanochat.parse import Malformed
from nanochat.parse.yaml_text import read_yaml
from nanochat.spec.chatpipeline import TRAINING_OPERATOR
from nanochat.spec.errors import UserError
from nanochat.spec.validation import validate
from nanochat.tracking.quantities import duration
from operators import lease
from operators.config import Config
from operators.kube_client import CONFIG_MAPS, DEPLOYMENTS, PIPELINES, KubeClient, Resource
from operators.kube_error import KubeError, Object
from operators.pytorchjob import PYTORCHJOBS

OLDEST = (1, 30)  # Kubernetes
OPERATOR = "training-operator"  # part of its Deployment's name, whoever packaged it
INSTALL_OPERATOR = f"install the Kubeflow training operator, version 1: {TRAINING_OPERATOR}"
CONTROLLER = "app.kubernetes.io/part-of=nanochat,app.kubernetes.io/component=controller"
INSTALL = "install the chart: helm upgrade --install nanochat helm/nanochat -n nanochat --create-namespace -f VALUES"
SERVICES = Resource("v1", "Service", "services")
ENDPOINTS = Resource("discovery.k8s.io/v1", "EndpointSlice", "endpointslices")
GOES_ON = "pipelines go on without it, and tell it later what it missed; a release needs it"


def server_checks(view: ClusterView) -> Iterator[Check]:
    """The API server and its version."""
    try:
        version = str(view.kube.json("get", "/version", what="the cluster's version").get("gitVersion", ""))
    except KubeError as error:
        raise to_error(error, "the cluster") from None
    numbers = re.match(r"v(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST:
        yield Check("cluster", "warn", f"Kubernetes {version}", "1.30 is the oldest that is supported: upgrade it")
    else:
        yield Check("cluster", "ok", f"Kubernetes {version}")


def namespace_checks(view: ClusterView) -> Iterator[Check]:
    """The namespace."""
    if view.kube.get(NAMESPACES, "", view.namespace) is None:
        advice = f"create it: kubectl create namespace {view.namespace}; or name another with -n"
        yield Check("namespace", "fail", f"there is no namespace {view.namespace}", advice)


def operator_checks(view: ClusterView) -> Iterator[Check]:
    """The training operator: its kind of job, and whether it runs."""
    if not view.kube.serves(PYTORCHJOBS):
        yield Check("operator", "fail", "the cluster has no PyTorchJobs, which stages run as", INSTALL_OPERATOR)
        return
    found = [item for item in view.kube.listing(DEPLOYMENTS).items if OPERATOR in item["metadata"]["name"]]
    if not found:
        text = "PyTorchJobs are known, and there is no Deployment of the training operator, which runs them"
        yield Check("operator", "fail", text, INSTALL_OPERATOR)
        return
    deployment = found[0]
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    what = f"{_title(deployment)}, {container.get('image', '')}"
    only = next((arg.partition("=")[2] for arg in container.get("args") or () if arg.startswith("--namespace=")), "")
    if trouble := trouble_of(view, deployment):
        yield Check("operator", "fail", f"{what}: {trouble}", _look_at(deployment))
    elif only and only != view.namespace:
        advice = f"take --namespace from its arguments, or run pipelines in {only}"
        yield Check("operator", "fail", f"{what} runs jobs of the namespace {only} alone", advice)
    else:
        yield Check("operator", "ok", what)


def controller_checks(view: ClusterView) -> Iterator[Check]:
    """The definition of ChatPipelines, and the controller that runs those of the namespace, with its configuration."""
    served = view.kube.serves(PIPELINES)
    if served:
        yield Check("definition", "ok", f"ChatPipelines, {PIPELINES.api_version}")
    try:
        found = view.kube.listing(DEPLOYMENTS, labelSelector=CONTROLLER).items
    except KubeError as error:
        if error.status != 403:
            raise
        yield _controller_by_its_lease(view, error)
        return
    if not found:
        text = "no controller of ChatPipelines" if served else "neither ChatPipelines nor their controller"
        yield Check("controller", "fail", f"the cluster has {text}", INSTALL)
        return
    if not served:
        advice = (
            "upgrade the release with crds.install=true, or apply helm/nanochat/files/chatpipelines.nanochat.dev.yaml"
        )
        yield Check("definition", "fail", "the cluster has a controller and no ChatPipelines", advice)
    configs = [(deployment, _config_of(view.kube, deployment)) for deployment in found]
    own = [(d, config) for d, config in configs if config is None or _covers(config, view.namespace)]
    if not own:
        covered = sorted({name for _, config in configs if config for name in config.namespaces})
        advice = f"run it there (-n), or add {view.namespace} to the chart's `namespaces`"
        yield Check("controller", "fail", f"the controller runs pipelines of {names(covered)} alone", advice)
        return
    deployment, view.config = own[0]
    yield _controller_check(view, deployment)
    if "controller" not in view.broken:
        yield from _unreachable_stores(view)


def _controller_by_its_lease(view: ClusterView, refused: KubeError) -> Check:
    """Whether a controller runs, for those who may see no Deployments: pipelines tell of its namespace."""
    told = view.kube.listing(PIPELINES, view.namespace).items
    services = [(item.get("status") or {}).get("access", {}).get("service", "") for item in told]
    release = next((service.partition("/")[0] for service in services if service), "")
    if not release:
        raise refused
    if late := _lateness(view.kube, release):
        return Check("controller", "fail", late, f"ask who runs the release in {release}")
    return Check("controller", "ok", f"a controller runs in {release}, of which you may see no more")


def _unreachable_stores(view: ClusterView) -> Iterator[Check]:
    """The controller's word on its own way to the stores, for its credentials are other ones than those of pods."""
    for item in view.kube.listing(PIPELINES, view.namespace).items:
        conditions = (item.get("status") or {}).get("conditions") or ()
        told = next((c for c in conditions if c["type"] == "StorageReachable" and c["status"] == "False"), None)
        if told is not None:
            text = f"it does not reach the store of {item['metadata']['name']}: {told.get('message', '')}"
            yield Check("controller", "fail", text, "correct the profile, or the keys of its controllerSecret")
            return


def _lateness(kube: KubeClient, namespace: str) -> str:
    """How a controller's Lease says that none runs; '' where one does."""
    age = lease.since_renewal(kube, namespace)
    if age is not None and age <= AWAY:
        return ""
    since = "was never taken" if age is None else f"was renewed {duration(age)} ago"
    return f"no controller runs, for its Lease {namespace}/{lease.NAME} {since}"


def _controller_check(view: ClusterView, deployment: Object) -> Check:
    meta, labels = deployment["metadata"], deployment["metadata"].get("labels") or {}
    what = f"{_title(deployment)}, {labels.get('app.kubernetes.io/version', 'of an unknown version')}"
    if trouble := trouble_of(view, deployment):
        return Check("controller", "fail", f"{what}: {trouble}", _look_at(deployment))
    if late := _lateness(view.kube, meta["namespace"]):
        return Check("controller", "fail", f"{what}: {late}", _look_at(deployment, "logs"))
    here = importlib.metadata.version("nanochat-kubernetes")
    return Check("controller", "ok", f"{what} (this command is of {here})")


def _config_of(kube: KubeClient, deployment: Object) -> Config | None:
    """A controller's configuration; None where it may not be read, or is of a version that this one does not know."""
    volumes = deployment["spec"]["template"]["spec"].get("volumes") or ()
    name = next((item["configMap"]["name"] for item in volumes if item["name"] == "config" and "configMap" in item), "")
    try:
        found = kube.get(CONFIG_MAPS, deployment["metadata"]["namespace"], name) if name else None
        text = ((found or {}).get("data") or {}).get("config.yaml")
        return validate(read_yaml(text), Config, where=f"ConfigMap {name}") if text else None
    except (KubeError, UserError, Malformed):
        return None


def _covers(config: Config, namespace: str) -> bool:
    return not config.namespaces or namespace in config.namespaces


def mlflow_checks(view: ClusterView, tracking: str | None) -> Iterator[Check]:
    """The tracking server of the profile, as far as the API server knows of it; a pod asks it later."""
    if not tracking:
        advice = "set mlflow.enabled, mlflow.external.uri or the profile's tracking for releases and curves"
        yield Check("mlflow", "warn", "the store profile names no tracking server: nothing is released", advice)
        return
    if (service := named_service(tracking)) is None:
        return
    namespace, name = service
    found = view.kube.get(SERVICES, namespace, name)
    if found is None:
        advice = f"install it with the chart (mlflow.enabled), or correct mlflow.external.uri; {GOES_ON}"
        yield Check("mlflow", "fail", f"{tracking}: there is no Service {namespace}/{name}", advice)
        return
    slices = view.kube.listing(ENDPOINTS, namespace, labelSelector=f"kubernetes.io/service-name={name}").items
    ends = [end for item in slices for end in item.get("endpoints") or ()]
    if not any((end.get("conditions") or {}).get("ready", True) for end in ends):
        why = view.holdup(namespace, selector_of(found["spec"].get("selector") or {}))
        text = f"{tracking}: no pod of Service {namespace}/{name} is ready" + (f": {why}" if why else "")
        yield Check("mlflow", "fail", text, f"see kubectl -n {namespace} get deployments,pods; {GOES_ON}")
    else:
        yield Check("mlflow", "ok", f"{tracking}: Service {namespace}/{name} has a pod that is ready")


def trouble_of(view: ClusterView, deployment: Object) -> str:
    """Why a Deployment has no pod that is available; '' where it has one."""
    wanted, status = deployment["spec"].get("replicas", 1), deployment.get("status") or {}
    if not wanted:
        return "it is scaled to no pod"
    if status.get("availableReplicas"):
        return ""
    labels = deployment["spec"]["selector"].get("matchLabels") or {}
    conditions = {item["type"]: item for item in status.get("conditions") or () if item["status"] == "True"}
    refused = conditions.get("ReplicaFailure", {}).get("message", "")
    return (
        view.holdup(deployment["metadata"]["namespace"], selector_of(labels)) or refused or "no pod of it is available"
    )


def _title(deployment: Object) -> str:
    meta = deployment["metadata"]
    return f"Deployment {meta['namespace']}/{meta['name']}"


def _look_at(deployment: Object, verb: str = "describe") -> str:
    meta = deployment["metadata"]
    return f"see kubectl -n {meta['namespace']} {verb} deployment/{meta['name']}"
