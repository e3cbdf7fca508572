"""The chat API's pods, where they are not ready: what keeps them, in a sentence.

why = why_unready(pods, "server", {"NANOCHAT_MODEL_VERSION": "3"}, ask_readyz)
# "pod nanochat-inference-7d-x cannot be scheduled: 0/3 nodes are available: 3 Insufficient memory"
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any

from kubernetes.client import V1Pod

from operators.observation import STARTING_REASONS

TIMEOUT = 2.0  # seconds, of each step
PORT = 8000
LONGEST = 400  # characters of what a pod says
ASKED = 3  # pods that are looked at in one go


def why_unready(pods: Sequence[V1Pod], container: str, told: Mapping[str, str], ask: Callable[[V1Pod], str]) -> str:
    """Why the first pod whose container is `told` these variables is not ready; '' where nothing says it."""
    mine = [pod for pod in pods if _is_told(pod, container, told) and not _is_ready(pod)]
    said = (_why(pod, container, ask) for pod in mine[:ASKED])
    return next((text for text in said if text), "")


def ask_readyz(pod: Any) -> str:
    """The reason that a server's /readyz gives; '' where it does not answer."""
    address = pod.status.pod_ip or ""
    if not address:
        return ""
    if _speaks_https(pod):
        connection = HTTPSConnection(address, PORT, timeout=TIMEOUT, context=ssl._create_unverified_context())
    else:
        connection = HTTPConnection(address, PORT, timeout=TIMEOUT)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        return answer.read(LONGEST).decode(errors="replace") if answer.status == 503 else ""
    except (HTTPException, OSError):
        return ""
    finally:
        connection.close()


def _speaks_https(pod: Any) -> bool:
    """As its probe says; the kubelet does not verify certificates either, for they are of names, and pods have none."""
    probes = (container.readiness_probe for container in pod.spec.containers)
    return any(probe and probe.http_get and probe.http_get.scheme == "HTTPS" for probe in probes)


def _why(pod: Any, container: str, ask: Callable[[V1Pod], str]) -> str:
    name, status = pod.metadata.name, pod.status
    for condition in status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"pod {name} cannot be scheduled: {(condition.message or condition.reason or '')[:LONGEST]}"
    found = next((item for item in status.container_statuses or () if item.name == container), None)
    state, last = (found.state, found.last_state) if found is not None else (None, None)
    ended = (last.terminated if last else None) or (state.terminated if state else None)
    if state is not None and state.running is not None and (text := ask(pod).strip()):
        return f"pod {name} says: {text[:LONGEST]}"
    if ended is not None:
        words = (ended.message or ended.reason or "").strip()[-LONGEST:]
        return f"pod {name} ended with exit code {ended.exit_code}: {words}"
    if state is not None and state.waiting is not None and (state.waiting.reason or "") not in STARTING_REASONS:
        return f"pod {name} cannot start: {(state.waiting.message or state.waiting.reason)[:LONGEST]}"
    return ""


def _is_told(pod: Any, container: str, told: Mapping[str, str]) -> bool:
    found = next((item for item in pod.spec.containers if item.name == container), None)
    values = {item.name: item.value or "" for item in (found.env if found else None) or ()}
    return all(values.get(name, "") == value for name, value in told.items())


def _is_ready(pod: Any) -> bool:
    return any(item.type == "Ready" and item.status == "True" for item in pod.status.conditions or ())
