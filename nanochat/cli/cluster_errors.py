"""Failed requests to a cluster as sentences for the user, told apart by the codes of the answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nanochat.cli.run_handle import Unanswered
from nanochat.spec.errors import NanochatError, UserError
from operators.kube_client import PIPELINES
from operators.kube_error import Cause, KubeError


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Errors of requests for an object as sentences; `what` names the object."""
    try:
        yield
    except KubeError as error:
        if error.is_unserved:
            raise UserError("the cluster has no ChatPipelines: install nanochat's chart first") from None
        if error.status == 404 and error.kind == PIPELINES.plural:
            raise UserError(f"there is no {what} on the cluster (-n names another namespace)") from None
        raise to_error(error, what) from None


def to_error(error: KubeError, what: str) -> NanochatError:
    """One sentence on a request for `what`: Unanswered where it may succeed later, else UserError."""
    sentence = _sentence(error, what)
    return Unanswered(sentence) if error.is_passing else UserError(sentence)


def _sentence(error: KubeError, what: str) -> str:
    if error.status == 0:
        return f"{error.said}: check the kubeconfig's context and the network"
    if error.status == 401:
        return f"the cluster does not know you ({error.said}): log in to it again"
    if error.status == 403:
        return f"you may not do this: {error.said}"
    if error.status == 404 and error.kind == "namespaces":
        return f"the cluster has no such namespace: {error.said}"
    if error.code == "Invalid" and error.causes:
        return f"{what}: {'; '.join(_fault(cause) for cause in error.causes)}"
    return f"{what}: {error.said}"


def _fault(cause: Cause) -> str:
    """A fault with the field that has it; a rule of the schema names its fields itself."""
    text = cause.message.removeprefix('Invalid value: "object": ')
    return text if cause.field in ("", "spec", "<nil>") else f"{cause.field}: {text}"
