"""MLflow's model registry over its REST API, by any transport: what `Registry` asks of MLflow's client, and no more.

    registry = Registry(uri, connect=lambda uri: RestClient(call))

`call(method, path, arguments)` makes a request below /api/2.0/mlflow/ and returns the JSON that came back.

    registry = light_registry(uri)     # of a server, without MLflow's own library, which takes 120 MiB of memory
    experiment_at(uri, "nanochat")     # the id of an experiment of that name
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nanochat.spec.errors import StorageError
from nanochat.tracking.client import unreachable
from nanochat.tracking.database import SQLITE, DatabaseRegistry
from nanochat.tracking.registry import Registry

Call = Callable[[str, str, Mapping[str, str]], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """A model with its aliases: name -> version."""

    name: str
    aliases: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version of a model."""

    version: str
    source: str
    tags: Mapping[str, str]
    status: str = "READY"


class RestClient:
    """The methods have the names and arguments of MLflow's own client."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def search_registered_models(self, filter_string: str, max_results: int) -> list[RegisteredModel]:
        query = {"filter": filter_string, "max_results": str(max_results)}
        return [
            _model(item) for item in self._call("GET", "registered-models/search", query).get("registered_models", ())
        ]

    def get_registered_model(self, name: str) -> RegisteredModel:
        return _model(self._call("GET", "registered-models/get", {"name": name})["registered_model"])

    def search_model_versions(self, filter_string: str) -> list[ModelVersion]:
        found: list[ModelVersion] = []
        token = ""
        while True:
            page = self._call("GET", "model-versions/search", {"filter": filter_string, "page_token": token})
            found += [_version(item) for item in page.get("model_versions", ())]
            token = page.get("next_page_token", "")
            if not token:
                return found

    def get_model_version(self, name: str, version: str) -> ModelVersion:
        return _version(self._call("GET", "model-versions/get", {"name": name, "version": version})["model_version"])

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self._call("POST", "registered-models/alias", {"name": name, "alias": alias, "version": version})

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        self._call("POST", "model-versions/set-tag", {"name": name, "version": version, "key": key, "value": value})


def _model(data: Mapping[str, Any]) -> RegisteredModel:
    return RegisteredModel(data["name"], {item["alias"]: item["version"] for item in data.get("aliases", ())})


def _version(data: Mapping[str, Any]) -> ModelVersion:
    tags = {item["key"]: item["value"] for item in data.get("tags", ())}
    return ModelVersion(data["version"], data.get("source", ""), tags, data.get("status", "READY"))


def light_registry(uri: str) -> Registry:
    """The registry at a tracking URI, without MLflow's own library as far as that goes."""
    if uri.startswith(SQLITE):
        return DatabaseRegistry(uri)
    if not uri.startswith(("http://", "https://")):
        return Registry(uri)
    return Registry(uri, connect=lambda uri: RestClient(_over_http(uri)))


def experiment_at(uri: str, name: str) -> str:
    """The id of a server's experiment; '' where it has none of that name, or does not say."""
    import requests

    try:
        told = _over_http(uri)("GET", "experiments/get-by-name", {"experiment_name": name})
        found = str(told["experiment"]["experiment_id"])
    except (StorageError, requests.RequestException, KeyError, TypeError):
        return ""
    return found if found.isdecimal() else ""


def _over_http(uri: str) -> Call:
    """Requests to a server, with the credentials and certificates of MLflow's variables."""
    import requests

    reason = unreachable(uri)
    if reason is not None:
        raise StorageError(reason)
    session, given = requests.Session(), os.environ.get
    if token := given("MLFLOW_TRACKING_TOKEN"):
        session.headers["Authorization"] = f"Bearer {token}"
    elif user := given("MLFLOW_TRACKING_USERNAME"):
        session.auth = (user, given("MLFLOW_TRACKING_PASSWORD", ""))
    session.verify = given("MLFLOW_TRACKING_SERVER_CERT_PATH") or (given("MLFLOW_TRACKING_INSECURE_TLS") != "true")
    session.cert = given("MLFLOW_TRACKING_CLIENT_CERT_PATH")

    def call(method: str, path: str, arguments: Mapping[str, str]) -> Mapping[str, Any]:
        query, body = (arguments, None) if method == "GET" else (None, dict(arguments))
        address = f"{uri.rstrip('/')}/api/2.0/mlflow/{path}"
        answer = session.request(method, address, params=query, json=body, timeout=10)
        if not answer.ok:
            raise StorageError(f"MLflow answered {answer.status_code}: {answer.text[:300]}")
        return answer.json()

    return call
