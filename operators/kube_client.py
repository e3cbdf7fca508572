"""A small Kubernetes client, for the controller and the command line: JSON in, JSON out, one type of error.

    kube = KubeClient.connect(context=None)
    found = kube.get(PIPELINES, "team", "demo")     # None where it does not exist
    kube.apply(CONFIG_MAPS, body, manager="nanochat")
    log = kube.request("get", path, what="logs/base", headers={...})

The library `kubernetes` is imported when a connection is made: it takes half a second.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import urllib3
import yaml

from nanochat.spec import chatpipeline
from nanochat.spec.errors import UserError
from operators.kube_error import KubeError, NoCluster, Object

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, Configuration

TIMEOUT = (5, 60)  # seconds to connect, and between bytes
PAGE = "100"  # objects of one answer to a listing: parsed they take ten times their bytes
METHODS = {"get": "GET", "list": "GET", "create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE"}
MERGE, APPLY = "application/merge-patch+json", "application/apply-patch+yaml"  # content types of a patch


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object and where the API server serves it."""

    api_version: str  # GROUP/VERSION, or v1
    kind: str
    plural: str

    @property
    def root(self) -> str:
        """The path of its group and version."""
        return f"/{'apis' if '/' in self.api_version else 'api'}/{self.api_version}"

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The path of one object, of a namespace's objects, or of all of them."""
        scope = f"namespaces/{namespace}" if namespace else ""
        return "/".join(filter(None, (self.root, scope, self.plural, name, subresource)))


PIPELINES = Resource(chatpipeline.API_VERSION, chatpipeline.KIND, chatpipeline.PLURAL)
PODS = Resource("v1", "Pod", "pods")
CONFIG_MAPS = Resource("v1", "ConfigMap", "configmaps")
EVENTS = Resource("v1", "Event", "events")
DEPLOYMENTS = Resource("apps/v1", "Deployment", "deployments")
LEASES = Resource("coordination.k8s.io/v1", "Lease", "leases")


@dataclass(frozen=True, slots=True)
class Listing:
    """Objects as they were when `version` was the API server's newest resourceVersion."""

    items: list[Object]
    version: int


class KubeClient:
    """An API server; safe to use from several threads. Every request raises KubeError where it fails."""

    def __init__(
        self,
        api: ApiClient,
        *,
        namespace: str = "default",
        timeout: tuple[float, float] = TIMEOUT,
        on_request: Callable[[str, float], object] | None = None,
    ) -> None:
        """`namespace` is the configuration's own; `on_request` is told verb and seconds of every request."""
        self.api, self.namespace, self._timeout, self._on_request = api, namespace, timeout, on_request

    def within(self, timeout: tuple[float, float]) -> KubeClient:
        """The same with another timeout: seconds to connect, and between bytes."""
        return KubeClient(self.api, namespace=self.namespace, timeout=timeout, on_request=self._on_request)

    @classmethod
    def connect(
        cls,
        context: str | None = None,
        *,
        connections: int = 4,
        on_request: Callable[[str, float], object] | None = None,
    ) -> KubeClient:
        """By the kubeconfig; NoCluster where there is none, UserError where it lacks the context."""
        from kubernetes import client, config

        configuration = _configuration(connections)
        file = os.environ.get("KUBECONFIG") or "~/.kube/config"  # kubernetes reads the variable on its import alone
        try:
            contexts: Any
            contexts, active = config.list_kube_config_contexts(file)
            chosen = next((c for c in contexts if c["name"] == context), None) if context else active
            if chosen is None:
                known = ", ".join(c["name"] for c in contexts)
                raise UserError(f"the kubeconfig has no context '{context}': it has {known}")
            config.load_kube_config(file, context=chosen["name"], client_configuration=configuration)
        except (config.ConfigException, TypeError, yaml.YAMLError) as error:
            why = " ".join(str(error).split()).rstrip(".")
            raise NoCluster(f"no cluster is configured: {why}; KUBECONFIG names the file") from None
        namespace = chosen["context"].get("namespace") or "default"
        return cls(client.ApiClient(configuration), namespace=namespace, on_request=on_request)

    @classmethod
    def in_cluster(cls, *, connections: int, on_request: Callable[[str, float], object]) -> KubeClient:
        """By the pod's service account, else by the kubeconfig."""
        from kubernetes import client, config

        configuration = _configuration(connections)
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            return cls.connect(connections=connections, on_request=on_request)
        return cls(client.ApiClient(configuration), on_request=on_request)

    # ---- objects --------------------------------------------------------------------------------------------------

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """An object; None where it does not exist, or where its kind is not served."""
        try:
            return self.json("get", resource.path(namespace, name), what=f"{resource.kind} {namespace}/{name}")
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    def dated(self, resource: Resource, namespace: str, name: str) -> tuple[Object, float]:
        """An object, and when the API server answered, in seconds since 1970 by its own clock."""
        body, headers = self._answer("get", resource.path(namespace, name), f"{resource.kind} {namespace}/{name}", {})
        return json.loads(body), parsedate_to_datetime(headers["Date"]).timestamp()

    def listing(self, resource: Resource, namespace: str = "", **query: str) -> Listing:
        """The objects of a namespace, or of all, at one point in time; KubeError where there is no such kind."""
        what = f"{resource.plural} in {namespace or 'all namespaces'}"
        items: list[Object] = []
        page: Object = {}
        while not page or page["metadata"].get("continue"):
            more = {"continue": page["metadata"]["continue"]} if page else {}
            page = self.json("list", resource.path(namespace), what=what, query={**query, "limit": PAGE, **more})
            items += page["items"]
        return Listing(items, int(page["metadata"]["resourceVersion"]))

    def serves(self, resource: Resource) -> bool:
        """Whether the API server has such a kind of object."""
        try:
            found = self.json("get", resource.root, what=f"the resources of {resource.api_version}")["resources"]
        except KubeError as error:
            if error.status == 404:
                return False
            raise
        return any(item["name"] == resource.plural for item in found)

    def create(self, resource: Resource, body: Object) -> Object | None:
        """The new object; None where one of its name exists."""
        meta = body["metadata"]
        what = f"{resource.kind} {meta['namespace']}/{meta['name']}"
        try:
            return self.json("create", resource.path(meta["namespace"]), what=what, body=_typed(resource, body))
        except KubeError as error:
            if error.code == "AlreadyExists":
                return None
            raise

    def apply(
        self, resource: Resource, body: Object, *, manager: str, strict: bool = True, dry_run: bool = False
    ) -> Object:
        """Server-side apply: the fields in `body` become the manager's; `strict` refuses those that do not exist."""
        meta = body["metadata"]
        options = {"fieldValidation": "Strict"} if strict else {}
        return self.json(
            "patch",
            resource.path(meta["namespace"], meta["name"]),
            what=f"{resource.kind} {meta['namespace']}/{meta['name']}",
            body=_typed(resource, body),
            content_type=APPLY,
            query={"fieldManager": manager, "force": "true", **options, **({"dryRun": "All"} if dry_run else {})},
        )

    def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        uid: str = "",
        grace: int | None = None,
        propagation: str | None = None,
    ) -> None:
        """Delete an object; one that is gone already is no error, nor where `uid` is given another one of its name."""
        options = {
            "gracePeriodSeconds": grace,
            "propagationPolicy": propagation,
            "preconditions": {"uid": uid} if uid else None,
        }
        body = {name: value for name, value in options.items() if value is not None}
        body |= {"apiVersion": "v1", "kind": "DeleteOptions"}
        try:
            self.json("delete", resource.path(namespace, name), what=f"{resource.kind} {namespace}/{name}", body=body)
        except KubeError as error:
            if error.status != 404 and not (uid and error.status == 409):
                raise

    # ---- requests -------------------------------------------------------------------------------------------------

    def json(
        self,
        verb: str,
        path: str,
        *,
        what: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> Object:
        """The JSON object that answers a request; see `request`."""
        answer = self.request(verb, path, what=what, query=query, body=body, content_type=content_type, headers=headers)
        return json.loads(answer or b"{}")

    def request(
        self,
        verb: str,
        path: str,
        *,
        what: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """The answer to a request. `verb` is one of METHODS; an error says that it cannot VERB WHAT."""
        path += f"?{urlencode(query)}" if query else ""
        return self._answer(verb, path, what, {"Content-Type": content_type, **(headers or {})}, body)[0]

    def _answer(
        self, verb: str, path: str, what: str, headers: Mapping[str, str], body: Object | None = None
    ) -> tuple[bytes, Mapping[str, str]]:
        """Body and headers of the answer."""
        from kubernetes.client.exceptions import ApiException

        began = time.monotonic()
        try:
            response: Any = self.api.call_api(
                path,
                METHODS[verb],
                header_params={"Accept": "*/*", **headers},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=self._timeout,
            )
            return response.read(), response.headers
        except ApiException as error:
            raise KubeError.of_answer(f"{verb} {what}", error.status or 0, error.body or b"") from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            said = f"the API server cannot be reached ({type(error).__name__})"
            raise KubeError(f"cannot {verb} {what}: {said}", said=said) from None
        finally:
            if self._on_request:
                self._on_request(verb, time.monotonic() - began)


def _typed(resource: Resource, body: Object) -> Object:
    return {"apiVersion": resource.api_version, "kind": resource.kind, **body}


def _configuration(connections: int) -> Configuration:
    """A configuration that tries each request once: whoever asks knows better when to ask again."""
    from kubernetes.client import Configuration

    configuration = Configuration()
    configuration.connection_pool_maxsize = connections
    configuration.retries = urllib3.Retry(0)  # type: ignore[assignment]
    return configuration
