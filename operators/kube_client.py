"""A small Kubernetes client, for the controller and the command line: JSON in, JSON out, one type of error.

    kube = KubeClient.connect(context=None)
    found = kube.get(PIPELINES, "team", "demo")     # None where it does not exist
    kube.apply(CONFIG_MAPS, body, manager="nanochat")
    log = kube.request("get", path, what="logs/base", headers={...})

Whoever handles a `KubeError` decides by its codes (`status`, `code`, `kind`, `causes`), never by its message's words.
The library `kubernetes` is imported when a connection is made: it takes half a second.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import urllib3
import yaml

from nanochat.spec import chatpipeline
from nanochat.spec.errors import NanochatError, UserError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, Configuration

Object = dict[str, Any]  # an object as the API server gives it
TIMEOUT = (5, 60)  # seconds to connect, and between bytes
METHODS = {"get": "GET", "list": "GET", "create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE"}
MERGE, APPLY = "application/merge-patch+json", "application/apply-patch+yaml"  # content types of a patch


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object and where the API server serves it."""

    api_version: str  # GROUP/VERSION, or v1
    kind: str
    plural: str

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The path of one object, of a namespace's objects, or of all of them."""
        scope = f"/namespaces/{namespace}" if namespace else ""
        root = f"/{'apis' if '/' in self.api_version else 'api'}/{self.api_version}{scope}/{self.plural}"
        return "/".join(filter(None, (root, name, subresource)))


PIPELINES = Resource(chatpipeline.API_VERSION, chatpipeline.KIND, chatpipeline.PLURAL)
PODS = Resource("v1", "Pod", "pods")
CONFIG_MAPS = Resource("v1", "ConfigMap", "configmaps")
EVENTS = Resource("v1", "Event", "events")
DEPLOYMENTS = Resource("apps/v1", "Deployment", "deployments")
LEASES = Resource("coordination.k8s.io/v1", "Lease", "leases")


class NoCluster(UserError):
    """No cluster is configured here."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One fault of an object that the API server refused, an entry of its Status's `details.causes`."""

    reason: str  # FieldValueInvalid, FieldValueRequired, ...
    field: str
    message: str


class KubeError(NanochatError):
    """A request failed. `status`, `code`, `kind` and `causes` are for programs, `said` and `message` for people.

    `status` is the HTTP status, 0 where no answer came. `code`, `kind` and `causes` are `reason`, `details.kind` and
    `details.causes` of the answer, a Kubernetes Status; a server behind the API server's proxy may answer with a
    `reason` and `detail` of its own. `code` is empty where the answer has none. `said` is the message of the answer
    alone.
    """

    reason = "Infrastructure"

    def __init__(
        self,
        message: str,
        *,
        said: str = "",
        status: int = 0,
        code: str = "",
        kind: str = "",
        causes: Sequence[Cause] = (),
    ) -> None:
        super().__init__(message)
        self.said, self.status, self.code, self.kind, self.causes = said or message, status, code, kind, tuple(causes)

    @property
    def is_passing(self) -> bool:
        """Whether the same request may succeed later: no answer, too many requests, or the server's own fault."""
        return self.status == 0 or self.status == 429 or self.status >= 500

    @property
    def is_unserved(self) -> bool:
        """Whether the API server has no such kind of object: its definition is not installed."""
        return self.status == 404 and not self.kind and self.code in ("", "NotFound")

    @classmethod
    def of_answer(cls, doing: str, status: int, body: bytes) -> KubeError:
        """The error that an answer means; `doing` is what was asked."""
        try:
            found = _dict(json.loads(body))
        except ValueError:
            found = {}
        details = _dict(found.get("details"))
        text = found.get("message") or found.get("detail") or body.decode(errors="replace").strip()[:300]
        said = str(text or f"HTTP status {status}")
        return cls(
            f"cannot {doing}: {said}",
            said=said,
            status=status,
            code=str(found.get("reason") or ""),
            kind=str(details.get("kind") or ""),
            causes=[
                Cause(cause.get("reason", ""), cause.get("field", ""), cause.get("message", ""))
                for cause in map(_dict, details.get("causes") or ())
            ],
        )


class KubeClient:
    """An API server; safe to use from several threads. Every request raises KubeError where it fails."""

    def __init__(
        self, api: ApiClient, *, namespace: str = "default", on_request: Callable[[str, float], object] | None = None
    ) -> None:
        """`namespace` is the configuration's own; `on_request` is told verb and seconds of every request."""
        self.api, self.namespace, self._on_request = api, namespace, on_request

    @classmethod
    def connect(cls, context: str | None = None) -> KubeClient:
        """By the kubeconfig; NoCluster where there is none, UserError where it lacks the context."""
        from kubernetes import client, config

        configuration = _configuration()
        try:
            contexts: Any
            contexts, active = config.list_kube_config_contexts()
            chosen = next((c for c in contexts if c["name"] == context), None) if context else active
            if chosen is None:
                known = ", ".join(c["name"] for c in contexts)
                raise UserError(f"the kubeconfig has no context '{context}': it has {known}")
            config.load_kube_config(context=chosen["name"], client_configuration=configuration)
        except (config.ConfigException, TypeError, yaml.YAMLError) as error:
            why = " ".join(str(error).split()).rstrip(".")
            raise NoCluster(f"no cluster is configured: {why}; KUBECONFIG names the file") from None
        return cls(client.ApiClient(configuration), namespace=chosen["context"].get("namespace") or "default")

    @classmethod
    def in_cluster(cls, *, connections: int, on_request: Callable[[str, float], object]) -> KubeClient:
        """By the pod's service account, else by the kubeconfig, with so many connections at once."""
        from kubernetes import client, config

        configuration = _configuration()
        try:
            config.load_incluster_config(client_configuration=configuration)
            api = client.ApiClient(configuration)
        except config.ConfigException:
            api = cls.connect().api
        api.configuration.connection_pool_maxsize = connections
        return cls(api, on_request=on_request)

    # ---- objects --------------------------------------------------------------------------------------------------

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """An object; None where it does not exist, or where its kind is not served."""
        try:
            return self.json("get", resource.path(namespace, name), what=f"{resource.kind} {namespace}/{name}")
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    def items(self, resource: Resource, namespace: str = "", **query: str) -> list[Object]:
        """The objects of a namespace, or of all; none where their kind is not served."""
        what = f"{resource.plural} in {namespace or 'all namespaces'}"
        try:
            return self.json("list", resource.path(namespace), what=what, query=query)["items"]
        except KubeError as error:
            if error.status == 404:
                return []
            raise

    def create(self, resource: Resource, body: Object) -> Object | None:
        """The new object; None where one of its name exists."""
        meta = body["metadata"]
        what = f"{resource.kind} {meta['namespace']}/{meta['name']}"
        try:
            return self.json("create", resource.path(meta["namespace"]), what=what, body=body)
        except KubeError as error:
            if error.code == "AlreadyExists":
                return None
            raise

    def apply(self, resource: Resource, body: Object, *, manager: str) -> Object:
        """Server-side apply: the fields in `body` become the manager's, all others stay as they are."""
        meta = body["metadata"]
        return self.json(
            "patch",
            resource.path(meta["namespace"], meta["name"]),
            what=f"{resource.kind} {meta['namespace']}/{meta['name']}",
            body={"apiVersion": resource.api_version, "kind": resource.kind, **body},
            content_type=APPLY,
            query={"fieldManager": manager, "force": "true", "fieldValidation": "Strict"},
        )

    def delete(self, resource: Resource, namespace: str, name: str, options: Object | None = None) -> None:
        """Delete an object by the given DeleteOptions; one that is gone already is no error."""
        path = resource.path(namespace, name)
        try:
            self.json("delete", path, what=f"{resource.kind} {namespace}/{name}", body=options)
        except KubeError as error:
            if error.status != 404:
                raise

    # ---- requests -------------------------------------------------------------------------------------------------

    def json(self, verb: str, path: str, *, what: str, **options: Any) -> Object:
        """The JSON object that answers a request; see `request`."""
        return json.loads(self.request(verb, path, what=what, **options) or b"{}")

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
        timeout: tuple[float, float] = TIMEOUT,
    ) -> bytes:
        """The answer to a request. `verb` is one of METHODS; an error says that it cannot VERB WHAT."""
        from kubernetes.client.exceptions import ApiException

        began = time.monotonic()
        try:
            response: Any = self.api.call_api(
                path + (f"?{urlencode(query)}" if query else ""),
                METHODS[verb],
                header_params={"Accept": "*/*", "Content-Type": content_type, **(headers or {})},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=timeout,
            )
            return response.read()
        except ApiException as error:
            raise KubeError.of_answer(f"{verb} {what}", error.status or 0, error.body or b"") from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            said = f"the API server cannot be reached ({type(error).__name__})"
            raise KubeError(f"cannot {verb} {what}: {said}", said=said) from None
        finally:
            if self._on_request:
                self._on_request(verb, time.monotonic() - began)


def _dict(value: Any) -> Object:
    """A JSON object; an empty one for a value that is none, as servers behind the proxy may send."""
    return value if isinstance(value, dict) else {}


def _configuration() -> Configuration:
    """A configuration that tries each request once: whoever asks knows better when to ask again."""
    from kubernetes.client import Configuration

    configuration = Configuration()
    configuration.retries = urllib3.Retry(0)  # type: ignore[assignment]
    return configuration
