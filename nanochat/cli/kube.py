"""Pipelines on a cluster, with nothing but a kubeconfig.

pipeline = find("demo", namespace=None, context=None)
pipeline.change(spec={"suspend": True})
data, headers = pipeline.stored("logs/base")     # from the controller's endpoint, through the API server
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import urllib3
import yaml

from nanochat.spec.errors import NanochatError, UserError
from nanochat.spec.pipeline import Pipeline

GROUP, VERSION, PLURAL = "nanochat.dev", "v1alpha1", "chatpipelines"
IDENTITY_BYTES = 900_000  # a ConfigMap holds 1 MiB
TIMEOUT = (5, 60)
NEXT = "X-Nanochat-Next"


class ClusterFailure(NanochatError):
    """The cluster could not be asked, or refused."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Kube:
    """A cluster and a namespace, as the kubeconfig and the command line name them."""

    api: Any
    namespace: str

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
            raise UserError(f"no cluster is configured (kubeconfig): {error}") from None
        configuration.retries = urllib3.Retry(0)  # type: ignore[assignment]
        api = client.ApiClient(configuration)
        return cls(api=api, namespace=namespace or chosen["context"].get("namespace") or "default")

    def get(self, name: str) -> dict[str, Any]:
        """A ChatPipeline."""
        return self.call("GET", self.path(name), what=f"pipeline {self.namespace}/{name}")

    def path(self, name: str = "") -> str:
        return f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{PLURAL}" + (f"/{name}" if name else "")

    def call(
        self, method: str, path: str, *, what: str, body: Any = None, kind: str = "application/json"
    ) -> dict[str, Any]:
        """A request's JSON answer."""
        return json.loads(self.raw(method, path, what=what, body=body, kind=kind)[0] or b"{}")

    def raw(
        self,
        method: str,
        path: str,
        *,
        what: str,
        body: Any = None,
        kind: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[bytes, Mapping[str, str]]:
        """A request's answer as bytes, with its headers; ClusterFailure says in one sentence what is wrong."""
        with failures(what):
            answer = self.api.call_api(
                path,
                method,
                header_params={"Accept": "*/*", "Content-Type": kind, **(headers or {})},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=TIMEOUT,
            )
            return answer.read(), answer.headers


@contextmanager
def failures(what: str) -> Iterator[None]:
    """Errors of the client library as sentences."""
    from kubernetes.client.exceptions import ApiException

    try:
        yield
    except ApiException as error:
        raise ClusterFailure(_sentence(error, what), status=error.status or 0) from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise ClusterFailure(
            f"the cluster cannot be reached ({type(error).__name__}): check the kubeconfig's context and the network"
        ) from None


def _sentence(error: Any, what: str) -> str:
    text = error.body.decode(errors="replace") if isinstance(error.body, bytes) else error.body or ""
    try:
        said = json.loads(text)
        said = said.get("message") or said.get("detail") or error.reason
    except (ValueError, AttributeError):
        said = text.strip()[:300] or error.reason
    if error.status == 401:
        return f"the cluster does not know you ({said}): log in to it again"
    if error.status == 403:
        return f"you may not do this: {said}"
    if (error.status == 404 and "could not find the requested resource" in said) or said == "404 page not found":
        return "the cluster has no ChatPipelines: install nanochat's chart first"
    if error.status == 404:
        return f"there is no {what} on the cluster"
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
    def is_live(self) -> bool:
        """Whether more may come of it."""
        return self.status.get("phase") not in ("Succeeded", "Failed", "Cancelled")

    def refresh(self) -> None:
        self.found = self.kube.get(self.name)

    def change(self, *, spec: Mapping[str, Any], annotations: Mapping[str, str] | None = None) -> None:
        """Merge into the spec and the annotations."""
        body: dict[str, Any] = {"spec": dict(spec)}
        if annotations:
            body["metadata"] = {"annotations": dict(annotations)}
        self.found = self.kube.call(
            "PATCH",
            self.kube.path(self.name) + "?fieldValidation=Strict",
            what=f"pipeline {self.name}",
            body=body,
            kind="application/merge-patch+json",
        )

    def stored(self, path: str, **query: object) -> tuple[bytes, Mapping[str, str]]:
        """What the controller's endpoint answers; the token is taken anew from the status where it has expired."""
        try:
            return self._stored(path, query)
        except ClusterFailure as error:
            if error.status != 404 or "token" not in error.message:
                raise
        self.refresh()
        return self._stored(path, query)

    def _stored(self, path: str, query: Mapping[str, object]) -> tuple[bytes, Mapping[str, str]]:
        access = self.status.get("access")
        if not access:
            raise UserError(
                f"the controller has not said yet where the logs of {self.name} are: is it running? "
                f"See 'nanochat status {self.name}'"
            )
        namespace, _, service = access["service"].partition("/")
        place = f"/v1/{self.kube.namespace}/{self.name}/{quote(path)}" + (f"?{urlencode(query)}" if query else "")
        full = f"/api/v1/namespaces/{namespace}/services/http:{service}/proxy{place}"
        what = f"{path} of {self.name} (or its token has changed)"
        return self.kube.raw("GET", full, what=what, headers={"X-Nanochat-Token": access["token"]})


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
        "metadata": {"name": name, "labels": {"nanochat.dev/pipeline": pipeline.metadata.name}},
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
