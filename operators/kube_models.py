"""Between JSON and the models of `kubernetes` and `kubeflow.training`.

pod = from_json(V1Pod, body)
body = to_json(V1ConfigMap(...))     # what is not set is left out
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from kubeflow.training import ApiClient

from operators.kube_error import Object

_API = ApiClient()  # kubeflow's knows the models of both


@dataclass(frozen=True, slots=True)
class _Answer:
    """An HTTP response, as the library reads one."""

    data: str


def from_json(kind: type, body: Object) -> Any:
    """The model of an object, whose attributes have no types; fields that it lacks are dropped.

    ValueError where a required field is missing.
    """
    return _API.deserialize(_Answer(json.dumps(body)), kind)


def to_json(model: object) -> Object:
    """The body of a request that sends a model."""
    body = _API.sanitize_for_serialization(model)
    assert isinstance(body, dict)
    return body
