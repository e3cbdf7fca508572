"""The model registry of a tracking server inside a cluster, reached through the API server's proxy.

registry = registry_of("http://mlflow.tools.svc.cluster.local:5000", kube)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from nanochat.cli.cluster_errors import to_error
from nanochat.tracking.registry import Registry
from nanochat.tracking.rest import Call, RestClient
from operators.kube_client import KubeClient
from operators.kube_error import KubeError

_SERVICE = re.compile(r"([a-z0-9-]+)\.([a-z0-9-]+)(\.svc(\..+)?)?")


def registry_of(uri: str, kube: KubeClient) -> Registry:
    """The registry at an address: through the proxy where that is a service of the cluster."""
    service = service_of(uri)
    return Registry(uri, connect=lambda _: RestClient(_through(kube, *service))) if service else Registry(uri)


def named_service(uri: str) -> tuple[str, str] | None:
    """(namespace, name) of a service inside the cluster; None for any other address."""
    parts = urlsplit(uri)
    found = _SERVICE.fullmatch(parts.hostname or "")
    # Two names alone may be a domain as well, but not one that is served without TLS.
    return None if found is None or (not found[3] and parts.scheme == "https") else (found[2], found[1])


def service_of(uri: str) -> tuple[str, str, str] | None:
    """(path of the proxy, host, what it is) of a service inside the cluster; None for any other address."""
    parts, found = urlsplit(uri), named_service(uri)
    if found is None:
        return None
    namespace, name = found
    port = parts.port or (443 if parts.scheme == "https" else 80)
    proxy = f"/api/v1/namespaces/{namespace}/services/{parts.scheme}:{name}:{port}/proxy{parts.path.rstrip('/')}"
    return proxy, parts.netloc.rpartition("@")[2], f"MLflow (service {namespace}/{name})"


def _through(kube: KubeClient, proxy: str, host: str, what: str) -> Call:
    """Requests to MLflow through the API server's proxy."""

    def call(method: str, path: str, arguments: Mapping[str, str]) -> Mapping[str, Any]:
        def ask(headers: Mapping[str, str]) -> Mapping[str, Any]:
            address, given = f"{proxy}/api/2.0/mlflow/{path}", dict(arguments)
            if method == "GET":
                return kube.json("get", address, what=what, query=given, headers=headers)
            return kube.json("create", address, what=what, body=given, headers=headers)

        try:
            try:
                return ask({})
            except KubeError as error:
                if error.status != 403 or error.code:
                    raise
            # Refused, and not by the API server, whose answers have a code. The proxy passes on the API server's own
            # name, and MLflow answers only to names that it was told.
            return ask({"Host": host})
        except KubeError as error:
            raise to_error(error, what) from None

    return call
