"""`nanochat rollback`: the model version that was champion before is champion again, and served.

On a cluster nothing but a kubeconfig is needed: a tracking server inside of it is reached through the API server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlencode, urlsplit

import typer

from nanochat.cli.cluster import Context, Namespace
from nanochat.cli.kube import ClusterFailure, ClusterPipeline, Kube
from nanochat.cli.runs import Run, StoreName, find_anywhere
from nanochat.spec.errors import UserError
from nanochat.spec.stages import ReleaseStage
from nanochat.tracking.registry import ALIAS, FORMER, Registry
from nanochat.tracking.rest import Call, RestClient

_SERVICE = re.compile(r"([a-z0-9-]+)\.([a-z0-9-]+)(\.svc(\..+)?)?")


def rollback(
    name: Run = None,
    to: Annotated[str, typer.Option("--to", metavar="VERSION", help="Version; by default the former champion.")] = "",
    store: StoreName = "default",
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Make the former champion of a pipeline's model champion again."""
    found = find_anywhere(name, store, namespace, context)
    if isinstance(found, ClusterPipeline):
        registry, spec = _registry_of(found), found.found["spec"]
    else:
        registry, spec = Registry(found.resolved.tracking), found.store.read_json(found.paths.pipeline)["spec"]
    model = spec.get("stages", {}).get("release", {}).get("model") or ReleaseStage().model
    before, now = registry.rollback(model, to)
    if before == now.version:
        print(f"Version {now.version} of {model} was {ALIAS} already; where it was given up, it is tried again.")
    else:
        instead = f" instead of version {before}, which is now {FORMER}" if before else ""
        print(f"Version {now.version} of {model} is now {ALIAS}{instead}.")
    print(f"Servers that follow the registry serve it from now on: {now.source}")


def _registry_of(pipeline: ClusterPipeline) -> Registry:
    """The registry of the tracking server that the pipeline's store profile names."""
    uri = (pipeline.status.get("profile") or {}).get("tracking")
    if not uri:
        raise UserError(f"{pipeline.name} has no tracking server: its store profile names none, so nothing is released")
    service = _service(uri)
    return Registry(uri, connect=lambda _: RestClient(_through(pipeline.kube, *service))) if service else Registry(uri)


def _service(uri: str) -> tuple[str, str, str] | None:
    """(path of the proxy, host, what it is) of a service inside the cluster; None for any other address."""
    parts = urlsplit(uri)
    found = _SERVICE.fullmatch(parts.hostname or "")
    # Two names alone may be a domain as well, but not one that is served without TLS.
    if found is None or (not found[3] and parts.scheme == "https"):
        return None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    proxy = f"/api/v1/namespaces/{found[2]}/services/{parts.scheme}:{found[1]}:{port}/proxy{parts.path.rstrip('/')}"
    return proxy, parts.netloc.rpartition("@")[2], f"MLflow (service {found[2]}/{found[1]})"


def _through(kube: Kube, proxy: str, host: str, what: str) -> Call:
    """Requests to MLflow through the API server's proxy."""

    def call(method: str, path: str, arguments: Mapping[str, str]) -> Mapping[str, Any]:
        query, body = (f"?{urlencode(arguments)}", None) if method == "GET" else ("", dict(arguments))
        address = f"{proxy}/api/2.0/mlflow/{path}{query}"
        try:
            return json.loads(kube.raw(method, address, what=what, body=body))
        except ClusterFailure as error:
            if error.status == 404:
                raise ClusterFailure(f"{what}: {error.said}", status=404) from None
            if error.status != 403 or "Host header" not in error.said:
                raise
        # The proxy passes on the API server's own name, and MLflow answers only to names that it was told.
        return json.loads(kube.raw(method, address, what=what, body=body, headers={"Host": host}))

    return call
