"""A cluster that is all right, served as an API server serves it, for `nanochat doctor --cluster`; tests break it.

    cluster = DoctoredCluster()
    del cluster.objects["/api/v1/namespaces/chat/secrets/store"]
    found = cluster.examine(pipeline)

Pods start at once: `waits` and `words` say what becomes of their containers, `refuses` what the API server turns away.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from kubernetes.client import ApiClient, Configuration

from nanochat.cli.checks import Check
from nanochat.cli.cluster_doctor import examine
from nanochat.spec.pipeline import Pipeline
from operators.kube_client import KubeClient

Object = dict[str, Any]

SYSTEM, CHAT = "/api/v1/namespaces/nanochat", "/api/v1/namespaces/chat"
DEPLOYMENTS = "/apis/apps/v1/namespaces/{}/deployments/{}"
OPERATOR = DEPLOYMENTS.format("kubeflow", "training-operator")
CONTROLLER = DEPLOYMENTS.format("nanochat", "nanochat-controller")
SECRET = f"{CHAT}/secrets/store"
SLICE = "/apis/discovery.k8s.io/v1/namespaces/nanochat/endpointslices/mlflow-1"
CONFIG = f"{SYSTEM}/configmaps/nanochat-controller"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/nanochat/leases/nanochat-controller"
KUEUE = "/apis/kueue.x-k8s.io/v1beta1"
NANOCHAT = "/apis/nanochat.dev/v1alpha1"
SERVED = {
    NANOCHAT: "chatpipelines",
    "/apis/kubeflow.org/v1": "pytorchjobs",
    KUEUE: "localqueues",
}
FINE = [
    {"name": "storage", "level": "ok", "found": "s3://b can be written and read"},
    {"name": "tracking", "level": "ok", "found": "it answers"},
]
PROFILE = {"root": "s3://b/p", "endpoint": "http://s3.storage:7070", "secret": "store"}
POOLS: Object = {"gpu": {"pods": {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}}, "cpu": {}}


def deployment(namespace: str, name: str, **labels: str) -> Object:
    """A Deployment with one pod that is available."""
    container = {"name": "main", "image": f"registry.example/{name}:1"}
    volumes = [{"name": "config", "configMap": {"name": name}}]
    return {
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": name}},
            "template": {"spec": {"containers": [container], "volumes": volumes}},
        },
        "status": {"availableReplicas": 1},
    }


def node(name: str, *taints: Object) -> Object:
    """A node that is ready."""
    resources = {"cpu": "64", "memory": "256Gi", "ephemeral-storage": "900Gi", "pods": "110"}
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {"taints": list(taints)},
        "status": {"allocatable": resources, "conditions": [{"type": "Ready", "status": "True"}]},
    }


def gpu_node(name: str, count: int = 8, *taints: Object) -> Object:
    found = node(name, *taints)
    found["status"]["allocatable"]["nvidia.com/gpu"] = str(count)
    return found


CONTROL_PLANE = {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}


class DoctoredCluster:
    """The API server. `objects` are by their path, `denied` are what one may not do: `list nodes`."""

    def __init__(self) -> None:
        parts = {"app.kubernetes.io/part-of": "nanochat", "app.kubernetes.io/component": "controller"}
        config = {"image": "registry.example/trainer:1", "pools": POOLS}
        config["profiles"] = {"default": PROFILE | {"tracking": "http://mlflow.nanochat.svc:5000"}}
        self.objects: dict[str, Object] = {
            "/api/v1/namespaces/chat": {
                "metadata": {"name": "chat", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
            },
            OPERATOR: deployment("kubeflow", "training-operator"),
            CONTROLLER: deployment("nanochat", "nanochat-controller", **parts),
            CONFIG: {"data": {"config.yaml": yaml.safe_dump(config)}},
            LEASE: {"spec": {"renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}},
            SECRET: {"data": {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}},
            f"{SYSTEM}/services/mlflow": {"metadata": {"name": "mlflow"}, "spec": {"selector": {"app": "mlflow"}}},
            SLICE: {"metadata": {"name": "mlflow-1"}, "endpoints": [{"conditions": {"ready": True}}]},
            "/api/v1/nodes/control": node("control", CONTROL_PLANE),
            "/api/v1/nodes/worker": node("worker"),
            "/api/v1/nodes/gpus": gpu_node("gpus", 8, {"key": "nvidia.com/gpu", "effect": "NoSchedule"}),
        }
        self.objects[SLICE]["metadata"]["labels"] = {"kubernetes.io/service-name": "mlflow"}
        self.served = dict(SERVED)
        self.denied: set[str] = set()
        self.refuses: Callable[[str, Object], str] = lambda plural, body: ""
        self.waits: Object | None = None
        self.waiting: set[str] | None = None  # the containers that wait; None: all
        self.webhook_fails = False
        self.unplaced = ""
        self.words: Any = FINE
        self.probes: list[Object] = []
        self.asked: list[str] = []
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                code, found = cluster.reply(self.command, self.path, body)
                data = json.dumps(found).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PATCH = do_DELETE = answer

            def log_message(self, *_: Any) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def kube(self) -> KubeClient:
        configuration = Configuration()
        configuration.host = f"http://127.0.0.1:{self.http.server_port}"
        return KubeClient(ApiClient(configuration), namespace="chat", timeout=(2, 10))

    def examine(self, pipeline: Pipeline | None, *, probe: bool = True) -> list[Check]:
        return list(examine(self.kube(), "chat", pipeline, probe=probe))

    # ---- requests ---------------------------------------------------------------------------------------------------

    def reply(self, verb: str, address: str, body: Object | None) -> tuple[int, Object]:
        path, query = urlsplit(address).path, parse_qs(urlsplit(address).query)
        plural, named = _kind(path)
        does = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}.get(verb, "get" if named else "list")
        self.asked.append(f"{does} {plural}")
        if path == "/version":
            return 200, {"gitVersion": "v1.34.4"}
        if path in self.served:
            return 200, {"resources": [{"name": self.served[path]}]}
        if plural == "selfsubjectaccessreviews":
            assert body is not None
            asked = body["spec"]["resourceAttributes"]
            return 201, {"status": {"allowed": f"{asked['verb']} {asked['resource']}" not in self.denied}}
        if f"{does} {plural}" in self.denied:
            return _failure(403, "Forbidden", f'{plural} is forbidden: User "me" cannot {does} resource "{plural}"')
        if plural == "pytorchjobs" and self.webhook_fails:
            return _failure(500, "InternalError", 'failed calling webhook "validator.training-operator.kubeflow.org"')
        if body is not None and verb != "DELETE" and (why := self.refuses(plural, body)):
            return _failure(403, "Forbidden", f"{plural} {body['metadata']['name']!r} is forbidden: {why}")
        if verb in ("POST", "PATCH"):
            assert body is not None
            return 201, body if "dryRun" in query else self._create(path, body)
        if verb == "DELETE":
            self.objects.pop(path, None)
            return 200, {}
        return self._get(path, plural, named, query.get("labelSelector", [""])[0])

    def _get(self, path: str, plural: str, named: bool, selector: str) -> tuple[int, Object]:
        if named:
            found = self.objects.get(path)
            return (200, found) if found else _failure(404, "NotFound", f"{path} not found", kind=plural)
        root = path.partition("/namespaces/")[0] if "/namespaces/" in path else path.rpartition("/")[0]
        if root.startswith("/apis/") and "." in root and root not in self.served and not _has(self.objects, root):
            return _failure(404, "NotFound", "the server could not find the requested resource")
        within = path if "/namespaces/" in path else root
        items = [
            item
            for at, item in self.objects.items()
            if at.startswith(f"{within}/") and _kind(at) == (plural, True) and _selects(selector, item)
        ]
        return 200, {"metadata": {"resourceVersion": "7"}, "items": items}

    def _create(self, path: str, body: Object) -> Object:
        """A pod that is made in earnest: it is placed, and each container does at once what it will."""
        body = body | {"metadata": body["metadata"] | {"uid": "made", "resourceVersion": "9"}}
        self.probes.append(body)
        if self.unplaced:
            reason = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": self.unplaced}
            body["status"] = {"phase": "Pending", "conditions": [reason]}
        else:
            ended = {"terminated": {"exitCode": 0, "message": json.dumps(self.words)}}
            names = [item["name"] for item in body["spec"]["containers"]]
            held = set(names if self.waiting is None else self.waiting) if self.waits else set[str]()
            states = [{"name": n, "state": {"waiting": self.waits} if n in held else ended} for n in names]
            body["spec"] = body["spec"] | {"nodeName": "worker"}
            body["status"] = {"containerStatuses": states}
        self.objects[f"{path}/{body['metadata']['name']}"] = body
        return body


def _kind(path: str) -> tuple[str, bool]:
    """The plural of what a path names, and whether it names one of them."""
    parts = path.strip("/").split("/")
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        rest = rest[2:]
    return (rest[0] if rest else ""), len(rest) > 1


def _has(objects: Mapping[str, Object], root: str) -> bool:
    return any(path.startswith(f"{root}/") for path in objects)


def _selects(selector: str, item: Object) -> bool:
    labels = item["metadata"].get("labels") or {} if "metadata" in item else {}
    wanted = [part.partition("=") for part in selector.split(",") if part]
    return all(name in labels and (not equal or labels[name] == value) for name, equal, value in wanted)


def _failure(code: int, reason: str, message: str, **details: str) -> tuple[int, Object]:
    return code, {"kind": "Status", "status": "Failure", "reason": reason, "message": message, "details": details}
