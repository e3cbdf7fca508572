"""Everything that the controller asks of the API server, in plain dictionaries.

    cluster = Cluster(api_client)
    for job in cluster.jobs(namespace, uid): ...

What is missing is None, what is there already is said by False; everything else that goes wrong is a ClusterError.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import urllib3
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from nanochat.spec.chatpipeline import GROUP, PIPELINE, PLURAL, UID, VERSION
from nanochat.spec.errors import NanochatError
from operators import metrics

JOBS = ("kubeflow.org", "v1", "pytorchjobs")
WORKLOADS = ("kueue.x-k8s.io", "v1beta1", "workloads")
FIELD_MANAGER = "nanochat-controller"
TIMEOUT = (5, 30)  # seconds to connect, and between bytes
WATCH_SECONDS = 240  # a watch is renewed after so long, so that one that fell silent is not trusted for ever

Object = dict[str, Any]


class ClusterError(NanochatError):
    """The API server could not be reached or refused."""

    reason = "Infrastructure"

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Cluster:
    """The API server's calls; safe to use from several threads."""

    def __init__(self, api: client.ApiClient) -> None:
        self.api = api
        self.custom = client.CustomObjectsApi(api)
        self.core = client.CoreV1Api(api)

    # ---- pipelines ------------------------------------------------------------------------------------------

    def pipelines(self, namespace: str = "") -> list[Object]:
        """The ChatPipelines of a namespace, or of all."""
        return self._list(GROUP, VERSION, PLURAL, namespace)

    def pipeline(self, namespace: str, name: str) -> Object | None:
        return self._ask(
            "get",
            f"ChatPipeline {namespace}/{name}",
            lambda: self.custom.get_namespaced_custom_object(
                GROUP, VERSION, namespace, PLURAL, name, _request_timeout=TIMEOUT
            ),
        )

    def patch_status(self, namespace: str, name: str, status: Object, *, uid: str) -> None:
        """Replace the fields of the status; a pipeline that is gone, or another one of its name, is left alone."""
        body = {"metadata": {"uid": uid}, "status": status}
        try:
            self._ask(
                "patch",
                f"the status of ChatPipeline {namespace}/{name}",
                lambda: self.custom.patch_namespaced_custom_object_status(
                    GROUP, VERSION, namespace, PLURAL, name, body, _request_timeout=TIMEOUT
                ),
            )
        except ClusterError as error:
            if error.status != 409:
                raise

    # ---- what belongs to a pipeline -------------------------------------------------------------------------

    def jobs(self, namespace: str, uid: str) -> list[Object]:
        return self._list(*JOBS, namespace, label_selector=f"{UID}={uid}")

    def pods(self, namespace: str, uid: str) -> list[Object]:
        found = self._ask(
            "list",
            f"pods in {namespace}",
            lambda: self.core.list_namespaced_pod(namespace, label_selector=f"{UID}={uid}", _request_timeout=TIMEOUT),
        )
        plain: Any = self.api.sanitize_for_serialization(found)
        return plain["items"]

    def workloads(self, namespace: str) -> list[Object]:
        """Kueue's Workloads of a namespace; none where Kueue is not installed."""
        return self._list(*WORKLOADS, namespace)

    def config_value(self, namespace: str, name: str, key: str) -> bytes | None:
        """The bytes of one key of a ConfigMap; None where it is missing."""
        found = self._ask(
            "get",
            f"ConfigMap {namespace}/{name}",
            lambda: self.core.read_namespaced_config_map(name, namespace, _request_timeout=TIMEOUT),
        )
        text = (found.data or {}).get(key) if found else None
        return None if text is None else text.encode()

    def create_config_map(self, body: Object) -> bool:
        meta = body["metadata"]
        return self._create(
            f"ConfigMap {meta['namespace']}/{meta['name']}",
            lambda: self.core.create_namespaced_config_map(meta["namespace"], body, _request_timeout=TIMEOUT),
        )

    def create_job(self, body: Object) -> bool:
        meta = body["metadata"]
        return self._create(
            f"PyTorchJob {meta['namespace']}/{meta['name']}",
            lambda: self.custom.create_namespaced_custom_object(
                *JOBS[:2], meta["namespace"], JOBS[2], body, _request_timeout=TIMEOUT
            ),
        )

    def delete_job(self, namespace: str, name: str) -> None:
        self._ask(
            "delete",
            f"PyTorchJob {namespace}/{name}",
            lambda: self.custom.delete_namespaced_custom_object(
                *JOBS[:2], namespace, JOBS[2], name, propagation_policy="Background", _request_timeout=TIMEOUT
            ),
        )

    def delete_pod(self, namespace: str, name: str, *, uid: str, grace: int | None = None) -> None:
        """Delete one very pod; `grace` seconds instead of its own."""
        options = client.V1DeleteOptions(
            grace_period_seconds=grace, preconditions=client.V1Preconditions(uid=uid), api_version="v1"
        )
        try:
            self._ask(
                "delete",
                f"pod {namespace}/{name}",
                lambda: self.core.delete_namespaced_pod(name, namespace, body=options, _request_timeout=TIMEOUT),
            )
        except ClusterError as error:
            if error.status != 409:
                raise

    def delete_config_map(self, namespace: str, name: str) -> None:
        self._ask(
            "delete",
            f"ConfigMap {namespace}/{name}",
            lambda: self.core.delete_namespaced_config_map(name, namespace, _request_timeout=TIMEOUT),
        )

    # ---- the inference server -------------------------------------------------------------------------------

    def deployment(self, namespace: str, name: str) -> Object | None:
        return self._ask(
            "get",
            f"Deployment {namespace}/{name}",
            lambda: self.custom.get_namespaced_custom_object(
                "apps", "v1", namespace, "deployments", name, _request_timeout=TIMEOUT
            ),
        )

    def apply_deployment(self, body: Object) -> None:
        """Server-side apply: these fields are the controller's, all others stay as they are."""
        meta = body["metadata"]
        path = f"/apis/apps/v1/namespaces/{meta['namespace']}/deployments/{meta['name']}"
        self._ask(
            "patch",
            f"Deployment {meta['namespace']}/{meta['name']}",
            lambda: self.api.call_api(
                path,
                "PATCH",
                query_params=[("fieldManager", FIELD_MANAGER), ("force", "true")],
                header_params={"Accept": "application/json", "Content-Type": "application/apply-patch+yaml"},
                body=body,
                auth_settings=["BearerToken"],
                response_type="object",
                _return_http_data_only=True,
                _request_timeout=TIMEOUT,
            ),
        )

    # ---- watching -------------------------------------------------------------------------------------------

    def changes(self, kind: str, namespace: str = "") -> Iterator[tuple[str, str]]:
        """(namespace, pipeline) of every change of its "pods" or "jobs", for some minutes; it may miss some."""
        path = f"/apis/{JOBS[0]}/{JOBS[1]}" if kind == "jobs" else "/api/v1"
        place = f"/namespaces/{namespace}" if namespace else ""
        plural = JOBS[2] if kind == "jobs" else "pods"
        with self._stream(f"{path}{place}/{plural}") as response:
            for line in _lines(response):
                meta = json.loads(line).get("object", {}).get("metadata", {})
                name = meta.get("labels", {}).get(PIPELINE)
                if name:
                    yield meta["namespace"], name

    def _stream(self, path: str) -> Any:
        query = [("watch", "true"), ("labelSelector", UID), ("timeoutSeconds", str(WATCH_SECONDS))]
        try:
            return self.api.call_api(
                path,
                "GET",
                query_params=query,
                auth_settings=["BearerToken"],
                response_type="object",
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=(5, WATCH_SECONDS + 10),
            )
        except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
            raise _failure("watch", path, error) from error

    # ---- calls ----------------------------------------------------------------------------------------------

    def _list(self, group: str, version: str, plural: str, namespace: str, **options: Any) -> list[Object]:
        def ask() -> Any:
            if namespace:
                return self.custom.list_namespaced_custom_object(
                    group, version, namespace, plural, _request_timeout=TIMEOUT, **options
                )
            return self.custom.list_cluster_custom_object(group, version, plural, _request_timeout=TIMEOUT, **options)

        found = self._ask("list", f"{plural} in {namespace or 'all namespaces'}", ask)
        return found["items"] if found else []

    def _create(self, what: str, call: Callable[[], Any]) -> bool:
        try:
            self._ask("create", what, call)
        except ClusterError as error:
            if error.status != 409:
                raise
            return False
        return True

    def _ask(self, verb: str, what: str, call: Callable[[], Any]) -> Any:
        """Make a call; None where the object does not exist."""
        began = time.monotonic()
        try:
            return call()
        except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
            if isinstance(error, ApiException) and error.status == 404 and verb != "create":
                return None
            raise _failure(verb, what, error) from error
        finally:
            metrics.api_seconds.labels(verb=verb).observe(time.monotonic() - began)


def _failure(verb: str, what: str, error: Exception) -> ClusterError:
    if isinstance(error, ApiException):
        try:
            said = json.loads(error.body or "")["message"]
        except (ValueError, KeyError, TypeError):
            said = error.reason
        return ClusterError(f"cannot {verb} {what}: {said}", status=error.status or 0)
    return ClusterError(f"cannot {verb} {what}: the API server cannot be reached ({type(error).__name__})")


def _lines(response: Any) -> Iterator[str]:
    rest = b""
    try:
        for piece in response.stream(amt=None):
            *lines, rest = (rest + piece).split(b"\n")
            yield from (line.decode() for line in lines if line)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _failure("watch", "changes", error) from error
