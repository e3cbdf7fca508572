"""Pipelines on a cluster, with nothing but a kubeconfig.

pipeline = find("demo", namespace=None, context=None)
pipeline.change(spec={"suspend": True})
data = pipeline.stored("logs/base")     # from the controller's endpoint, through the API server
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import urllib3
import yaml

from nanochat.spec.chatpipeline import API_VERSION, PIPELINE, PLURAL, RETRY
from nanochat.spec.errors import NanochatError, UserError
from nanochat.spec.pipeline import Pipeline

IDENTITY_BYTES = 900_000  # a ConfigMap holds 1 MiB
TIMEOUT = (5, 60)


class NoCluster(UserError):
    """No cluster is configured on this machine."""


class ClusterFailure(NanochatError):
    """The cluster could not be asked, or refused: its HTTP status (0 without an answer) and what it said."""

    def __init__(self, message: str, *, status: int = 0, said: str = "", passing: bool = False) -> None:
        super().__init__(message)
        self.status, self.said = status, said
        self.passing = passing or status == 0 or status == 429 or status >= 500


@dataclass(frozen=True, slots=True)
class Kube:
    """A cluster and a namespace, as the kubeconfig and the command line name them."""

    api: Any
    namespace: str
    context: str | None  # where the command line names one

    @classmethod
    def connect(cls, namespace: str | None, context: str | None) -> Kube:
        """Read the kubeconfig; UserError where there is none, or it lacks the context."""
        from kubernetes import client, config

        try:
            contexts: Any
            contexts, active = config.list_kube_config_contexts()
            chosen = next((c for c in contexts if c["name"] == context), None) if context else active
            if chosen is None:
                known = ", ".join(c["name"] for c in contexts)
                raise UserError(f"the kubeconfig has no context '{context}': it has {known}")
            configuration = client.Configuration()
            config.load_kube_config(context=chosen["name"], client_configuration=configuration)
        except (config.ConfigException, TypeError, yaml.YAMLError) as error:
            why = " ".join(str(error).split()).rstrip(".")
            raise NoCluster(f"no cluster is configured: {why}; KUBECONFIG names the file") from None
        configuration.retries = urllib3.Retry(0)  # type: ignore[assignment]
        api = client.ApiClient(configuration)
        return cls(api=api, namespace=namespace or chosen["context"].get("namespace") or "default", context=context)

    def get(self, name: str) -> dict[str, Any]:
        """A ChatPipeline."""
        return self.call("GET", self.path(name), what=f"pipeline {self.namespace}/{name}")

    def path(self, name: str = "") -> str:
        return f"/apis/{API_VERSION}/namespaces/{self.namespace}/{PLURAL}" + (f"/{name}" if name else "")

    def call(
        self, method: str, path: str, *, what: str, body: Any = None, kind: str = "application/json"
    ) -> dict[str, Any]:
        """A request's JSON answer."""
        return json.loads(self.raw(method, path, what=what, body=body, kind=kind) or b"{}")

    def raw(
        self,
        method: str,
        path: str,
        *,
        what: str,
        body: Any = None,
        kind: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """A request's answer; ClusterFailure says in one sentence what is wrong."""
        with failures(what):
            return self.api.call_api(
                path,
                method,
                header_params={"Accept": "*/*", "Content-Type": kind, **(headers or {})},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=TIMEOUT,
            ).read()


@contextmanager
def failures(what: str) -> Iterator[None]:
    """Errors of the client library as sentences."""
    from kubernetes.client.exceptions import ApiException

    try:
        yield
    except ApiException as error:
        said = _said(error)
        raise ClusterFailure(_sentence(error.status or 0, said, what), status=error.status or 0, said=said) from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise ClusterFailure(
            f"the cluster cannot be reached ({type(error).__name__}): check the kubeconfig's context and the network"
        ) from None


def _said(error: Any) -> str:
    """The words of an API server, or of the controller behind it."""
    text = error.body.decode(errors="replace") if isinstance(error.body, bytes) else error.body or ""
    try:
        answer = json.loads(text)
        # A refused object comes with a cause for each fault: "Invalid value: \"object\": store cannot change".
        causes = [cause for cause in (answer.get("details") or {}).get("causes", ()) if cause.get("message")]
        if answer.get("reason") == "Invalid" and causes:
            return "; ".join(_cause(cause) for cause in causes)
        return answer.get("message") or answer.get("detail") or error.reason
    except (ValueError, AttributeError):
        return text.strip()[:300] or error.reason


def _cause(cause: Mapping[str, str]) -> str:
    field, text = cause.get("field", ""), cause["message"].removeprefix('Invalid value: "object": ')
    return text if field in ("", "spec", "<nil>") else f"{field}: {text}"


def _sentence(status: int, said: str, what: str) -> str:
    if status == 401:
        return f"the cluster does not know you ({said}): log in to it again"
    if status == 403:
        return f"you may not do this: {said}"
    if (status == 404 and "could not find the requested resource" in said) or said == "404 page not found":
        return "the cluster has no ChatPipelines: install nanochat's chart first"
    if status == 404 and said.startswith("namespaces "):
        return f"the cluster has no such namespace: {said}"
    if status == 404:
        return f"there is no {what} on the cluster (-n names another namespace)"
    return f"{what}: {said}"


@dataclass(slots=True)
class ClusterPipeline:
    """A ChatPipeline on a cluster."""

    kube: Kube
    name: str
    found: dict[str, Any]

    @property
    def status(self) -> dict[str, Any]:
        return self.found.get("status") or {}

    @property
    def phase(self) -> str:
        """Its phase; "new" before the controller has looked at it."""
        return self.status.get("phase", "new")

    @property
    def is_live(self) -> bool:
        """Whether more may come of it: it has not ended, or was changed since the controller said so."""
        meta, told = self.found.get("metadata", {}), self.status
        looks = [told.get("observedGeneration") or 0, *(c["observedGeneration"] for c in told.get("conditions", ()))]
        unseen = meta.get("generation", 0) > max(looks) or (meta.get("annotations") or {}).get(RETRY) != told.get(
            "retriedAt"
        )
        return unseen or self.phase not in ("Succeeded", "Failed", "Cancelled")

    def command(self, verb: str) -> str:
        """What to type for it."""
        context = ["--context", self.kube.context] if self.kube.context else []
        return shlex.join(["nanochat", verb, self.name, "-n", self.kube.namespace, *context])

    def refresh(self) -> None:
        self.found = self.kube.get(self.name)

    def change(self, *, spec: Mapping[str, Any], annotations: Mapping[str, str] | None = None) -> None:
        """Merge into the spec and the annotations."""
        body: dict[str, Any] = {"spec": dict(spec)}
        if annotations:
            body["metadata"] = {"annotations": dict(annotations)}
        self.found = self.kube.call(
            "PATCH",
            self.kube.path(self.name) + "?fieldManager=nanochat&fieldValidation=Strict",
            what=f"pipeline {self.name}",
            body=body,
            kind="application/merge-patch+json",
        )

    def stored(self, path: str, **query: object) -> bytes:
        """What the controller's endpoint has stored under a path: logs, the report."""
        try:
            return self._stored(path, query)
        except ClusterFailure as error:
            if "token" not in error.said:
                raise self._explained(error) from None
        self.refresh()  # it has another token each day, and from each process of the controller
        try:
            return self._stored(path, query)
        except ClusterFailure as error:
            raise self._explained(error) from None

    def _stored(self, path: str, query: Mapping[str, object]) -> bytes:
        access = self.status.get("access")
        if not access and not self.is_live:
            raise UserError(f"nothing of {self.name} ran: {self.status.get('message', self.phase)}")
        if not access:
            raise ClusterFailure(
                f"the controller has not said yet where the logs of {self.name} are: is it running? "
                f"See: {self.command('status')}"
            )
        namespace, _, service = access["service"].partition("/")
        place = f"/v1/{self.kube.namespace}/{self.name}/{quote(path)}" + (f"?{urlencode(query)}" if query else "")
        full = f"/api/v1/namespaces/{namespace}/services/http:{service}/proxy{place}"
        return self.kube.raw("GET", full, what=path, headers={"X-Nanochat-Token": access["token"]})

    def _explained(self, error: ClusterFailure) -> ClusterFailure:
        """What an error of the endpoint, or on the way to it, means."""
        if error.status == 404 and "token" in error.said:
            text = f"the controller does not know {self.name} yet: it has just started; ask again in a moment"
            return ClusterFailure(text, status=error.status, passing=True)
        if error.status == 404:
            return ClusterFailure(f"{self.name}: {error.said}", status=error.status)
        if error.status == 403:
            text = f"logs and reports come through a service of the controller, which you may not reach: {error.said}"
            return ClusterFailure(text, status=error.status)
        if error.status >= 500:
            return ClusterFailure(f"the controller does not answer ({error.said})", status=error.status)
        return error


def find(name: str, *, namespace: str | None, context: str | None) -> ClusterPipeline:
    """A pipeline on the cluster; UserError or ClusterFailure where it cannot be found."""
    kube = Kube.connect(namespace, context)
    wanted = Path(name).stem if name.endswith((".yaml", ".yml")) else name
    return ClusterPipeline(kube, wanted, kube.get(wanted))


def upload_identity(kube: Kube, pipeline: Pipeline, path: Path) -> str:
    """Put a local identity file into a ConfigMap; returns its address."""
    data = path.read_bytes()
    if len(data) > IDENTITY_BYTES:
        raise UserError(
            f"stages.mid.identity: {path} has {len(data):,} bytes and a ConfigMap takes {IDENTITY_BYTES:,}: "
            "put it into S3 and name s3://..."
        )
    name = f"{pipeline.metadata.name}-identity"
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {PIPELINE: pipeline.metadata.name}},
        "data": {"identity.jsonl": data.decode("utf-8")},
    }
    apply(kube, f"/api/v1/namespaces/{kube.namespace}/configmaps/{name}", body, what=f"ConfigMap {name}")
    return f"configmap://{name}/identity.jsonl"


def apply(kube: Kube, path: str, body: Mapping[str, Any], *, what: str) -> dict[str, Any]:
    """Server-side apply."""
    return kube.call(
        "PATCH",
        f"{path}?fieldManager=nanochat&force=true&fieldValidation=Strict",
        what=what,
        body=dict(body),
        kind="application/apply-patch+yaml",
    )
