"""Checks of a pipeline's pods in their namespace: would the API server take them, and what is theirs there?

yield from looked(view, "pods", lambda: pod_checks(view))

Each stage's pod is built as the controller builds it, and sent to the API server as a dry run, which stores nothing: it
answers for Pod Security, quotas, priority classes, service accounts, LimitRanges and webhooks as it would in earnest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal

from nanochat.cli.checks import Check
from nanochat.cli.cluster_view import NAMESPACES, ClusterView, names
from nanochat.cli.node_fit import quantity, requests_of
from nanochat.pipeline.planner import Start
from nanochat.spec.chatpipeline import PIPELINE
from operators import resources
from operators.job_backend import JobRequest
from operators.kube_client import CONFIG_MAPS, PODS, Resource
from operators.kube_error import KubeError, Object
from operators.kube_models import to_json
from operators.pod_template import Placement, build_template
from operators.pytorchjob import INDEX_LABEL, JOB_LABEL, PYTORCHJOBS, PyTorchJobs

SECRETS = Resource("v1", "Secret", "secrets")
QUOTAS = Resource("v1", "ResourceQuota", "resourcequotas")
ENFORCE = "pod-security.kubernetes.io/enforce"
# What a store takes of a Secret: one of these sets of keys.
KEYS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "s3": (("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),),
    "gs": (("GOOGLE_CREDENTIALS",),),
    "abfs": (("AZURE_STORAGE_ACCOUNT_KEY",), ("AZURE_STORAGE_SAS_TOKEN",)),
}


def request_of(view: ClusterView, stage: str) -> JobRequest:
    """All that the first attempt of a stage would be built from."""
    assert view.config is not None
    node = view.accepted.graph.node(stage)
    launch = Start(stage, 1, node.outputs, device_batch_size=1)
    return JobRequest("doctor", view.accepted, launch, run="runs/doctor", config=view.config, started=0.0)


def pod_of(view: ClusterView, stage: str) -> Object:
    """The pod of a stage as its job would make it."""
    request = request_of(view, stage)
    body = to_json(build_template(request, Placement("", JOB_LABEL, INDEX_LABEL)))
    labels = {
        name: text for name, text in body["metadata"]["labels"].items() if name.partition("/")[0] != "nanochat.dev"
    }
    meta = {
        "name": f"{request.name}-worker-0",
        "namespace": view.namespace,
        "annotations": body["metadata"].get("annotations"),
    }
    body["metadata"] = meta | {"labels": labels | {PIPELINE: request.accepted.pipeline.metadata.name}}
    return {"apiVersion": PODS.api_version, "kind": PODS.kind, **body}


def stages_of(view: ClusterView) -> Sequence[str]:
    """The stages that are looked at: all of the file's, or one that stands for any pipeline's."""
    return tuple(view.accepted.graph.stages) if view.pipeline else ("dataset",)


def secret_checks(view: ClusterView) -> Iterator[Check]:
    """The Secret with the store's credentials."""
    profile = view.accepted.profile
    if profile.secret is None:
        account = profile.service_account or "the namespace's default one"
        yield Check("secret", "ok", f"the profile names none: pods have the rights of their service account, {account}")
        return
    name = f"{view.namespace}/{profile.secret}"
    scheme = profile.root.partition("://")[0]
    wanted = KEYS.get(scheme, ())
    listed = " or ".join(" and ".join(keys) for keys in wanted)
    found = view.kube.get(SECRETS, view.namespace, profile.secret)
    if found is None:
        literals = " ".join(f"--from-literal={key}=..." for key in next(iter(wanted), ()))
        advice = f"kubectl create secret generic {profile.secret} -n {view.namespace} {literals}".rstrip()
        yield Check("secret", "fail", f"there is no Secret {name}, which the store profile's pods need", advice)
        return
    has = sorted(found.get("data") or {})
    if profile.anonymous or not wanted or any(set(keys) <= set(has) for keys in wanted):
        yield Check("secret", "ok", f"Secret {name} has {names(has)}")
        return
    text = f"Secret {name} has {names(has)}, and not {listed}, which {scheme}:// takes"
    yield Check("secret", "warn", text, "right where pods have an identity of the cloud; else give it those keys")


def variable_checks(view: ClusterView) -> Iterator[Check]:
    """The other Secrets and ConfigMaps that the stages' variables are read from, and their keys."""
    asked = dict.fromkeys(item for stage in view.stages for item in _sources(pod_of(view, stage)))
    for resource, name, key in asked:
        if resource is SECRETS and name == view.accepted.profile.secret and (not key or "secret" in view.broken):
            continue
        found = view.kube.get(resource, view.namespace, name)
        if found is None:
            text = f"there is no {resource.kind} {view.namespace}/{name}, which variables of pods are read from"
            yield Check("secret", "fail", text, "create it, or correct env and envFrom of spec.pods or of the stage")
        elif key and key not in (found.get("data") or {}):
            text = f"{resource.kind} {view.namespace}/{name} has no key {key}, which a variable of pods is read from"
            yield Check("secret", "fail", text, f"add the key; there are: {names(sorted(found.get('data') or {}))}")


def _sources(pod: Object) -> Iterator[tuple[Resource, str, str]]:
    """(kind, name, key) of what a pod's variables are read from; '' where all keys are."""
    kinds = {"secret": SECRETS, "configMap": CONFIG_MAPS}
    for container in pod["spec"]["containers"]:
        wholes = container.get("envFrom") or ()
        single = [item.get("valueFrom") or {} for item in container.get("env") or ()]
        for name, kind in kinds.items():
            yield from ((kind, item[f"{name}Ref"]["name"], "") for item in wholes if f"{name}Ref" in item)
            refs = (item[f"{name}KeyRef"] for item in single if f"{name}KeyRef" in item)
            yield from ((kind, ref["name"], ref["key"]) for ref in refs)


def pod_checks(view: ClusterView) -> Iterator[Check]:
    """Quotas, Pod Security, and the API server's own word on the pods."""
    pods = {stage: pod_of(view, stage) for stage in view.stages}
    view.pods.update(pods)
    yield from _quota_checks(view, pods)
    yield from _security_checks(view, pods)
    if not view.may("create", PODS):
        advice = "ask for the role edit in it, or have this run by who has it"
        yield Check(
            "pods", "skip", f"you may not create pods in {view.namespace}: the API server cannot be asked", advice
        )
        return
    refused: dict[str, str] = {}
    for stage, pod in pods.items():
        try:
            view.pods[stage] = dry_run(view, PODS, pod)
        except KubeError as error:
            if error.is_passing:
                raise
            refused.setdefault(error.said.replace(pod["metadata"]["name"], "the pod"), stage)
    if view.broken & {"quota", "podsecurity"}:
        return  # which says why
    for why, stage in refused.items():
        yield Check("pods", "fail", f"the API server refuses the pods of {stage}: {why}", "change what it names")
    if not refused:
        yield Check("pods", "ok", f"the API server takes those of {view.listed(view.stages)}")


def dry_run(view: ClusterView, resource: Resource, body: Object) -> Object:
    """The object as the API server would store it."""
    meta = body["metadata"]
    what = f"{resource.kind} {meta['namespace']}/{meta['name']}"
    return view.kube.json("create", resource.path(view.namespace), what=what, body=body, query={"dryRun": "All"})


def job_checks(view: ClusterView) -> Iterator[Check]:
    """Whether the API server takes a job, which the webhooks of its operators judge."""
    if "operator" in view.broken or not view.may("create", PYTORCHJOBS):
        return
    job = to_json(PyTorchJobs(view.kube).build(request_of(view, view.stages[0])))
    job["metadata"]["namespace"] = view.namespace
    del job["metadata"]["ownerReferences"]
    try:
        dry_run(view, PYTORCHJOBS, job)
    except KubeError as error:
        if error.status == 400:  # a webhook that takes no dry run
            return
        if error.is_passing and error.status < 500:
            raise
        yield Check("jobs", "fail", f"the API server takes no PyTorchJob: {error.said}", "mend what it names")


# ---- Pod Security and quotas ------------------------------------------------------------------------------------


def _security_checks(view: ClusterView, pods: Mapping[str, Object]) -> Iterator[Check]:
    found = view.kube.get(NAMESPACES, "", view.namespace) or {"metadata": {}}
    level = (found["metadata"].get("labels") or {}).get(ENFORCE, "")
    hosts = [stage for stage, pod in pods.items() if pod["spec"].get("hostNetwork")]
    if hosts and level in ("baseline", "restricted"):
        text = f"{view.namespace} enforces {level}, and the network rdma-host of {view.listed(hosts)} needs privileged"
        advice = f"kubectl label namespace {view.namespace} {ENFORCE}=privileged --overwrite; or take another network"
        yield Check("podsecurity", "fail", text, advice)
    else:
        yield Check("podsecurity", "ok", f"{view.namespace} enforces {level or 'no level'}")


def _quota_checks(view: ClusterView, pods: Mapping[str, Object]) -> Iterator[Check]:
    """Each stage against each quota, with what the pipeline's own pods hold of it given back."""
    quotas = [quota for quota in view.kube.listing(QUOTAS, view.namespace).items if not _is_scoped(quota)]
    own = _held_by(view) if quotas else {}
    failed = False
    for quota in quotas:
        status = quota.get("status") or {}
        hard, used = status.get("hard") or quota["spec"].get("hard") or {}, status.get("used") or {}
        for key, limit in hard.items():
            demand = {stage: _demand(view, stage, pod).get(key, Decimal(0)) for stage, pod in pods.items()}
            stage = max(demand, key=lambda name: demand[name])
            left = quantity(limit) - quantity(used.get(key, 0)) + own.get(key, Decimal(0))
            if demand[stage] <= left:
                continue
            failed, never = True, demand[stage] > quantity(limit)
            held = f"{used.get(key, 0)} of {limit} {key} {'is' if quantity(used.get(key, 0)) == 1 else 'are'} used"
            text = f"ResourceQuota {quota['metadata']['name']}: {held}, and {stage} asks for {_plain(demand[stage])}"
            advice = (
                "raise the quota, or lower the stage's requests" if never else "free some of it, or raise the quota"
            )
            yield Check("quota", "fail", text, advice)
    if not failed:
        yield Check("quota", "ok", f"{len(quotas)} quotas leave room" if quotas else "no quota bounds the namespace")


def _is_scoped(quota: Object) -> bool:
    """Whether a quota bounds some pods alone; of those the dry run tells."""
    return bool(quota["spec"].get("scopes") or quota["spec"].get("scopeSelector"))


def _demand(view: ClusterView, stage: str, pod: Object) -> dict[str, Decimal]:
    """The amounts that an attempt of a stage takes of a quota, by the names that quotas have."""
    nodes = resources.nodes(view.accepted.spec, stage)
    objects = {"configmaps": 1, "count/configmaps": 1, f"count/{PYTORCHJOBS.plural}.kubeflow.org": 1}
    return {name: amount * nodes for name, amount in _usage(pod["spec"]).items()} | {
        name: Decimal(count) for name, count in objects.items()
    }


def _usage(pod: Object) -> dict[str, Decimal]:
    requests = requests_of(pod)
    limits = defaultdict[str, Decimal](Decimal)
    for container in pod.get("containers") or ():
        for name, amount in ((container.get("resources") or {}).get("limits") or {}).items():
            limits[name] += quantity(amount)
    plain = {name: amount for name, amount in requests.items() if "/" not in name}
    return {
        "pods": Decimal(1),
        "count/pods": Decimal(1),
        **plain,
        **{f"requests.{name}": amount for name, amount in requests.items()},
        **{f"limits.{name}": amount for name, amount in limits.items() if "/" not in name},
    }


def _held_by(view: ClusterView) -> dict[str, Decimal]:
    """The amounts that the pipeline's own pods hold of quotas; they end before its next stage begins."""
    name = view.accepted.pipeline.metadata.name
    held = defaultdict[str, Decimal](Decimal)
    for pod in view.kube.listing(PODS, view.namespace, labelSelector=f"{PIPELINE}={name}").items:
        if (pod.get("status") or {}).get("phase") in ("Pending", "Running"):
            for key, amount in _usage(pod["spec"]).items():
                held[key] += amount
    return held


def _plain(amount: Decimal) -> str:
    """An amount as people write it: bytes in Gi."""
    return f"{float(amount) / 2**30:.4g}Gi" if amount >= 1 << 26 else f"{float(amount):g}"
