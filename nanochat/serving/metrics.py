"""The server's Prometheus metrics; a request for several choices counts each of them.

    metrics = Metrics()
    metrics.follow(service, name="nanochat", version="3", fingerprint="90ce5fcc1fdd0a4b")
    metrics.render()

What counts requests and tokens has the version of the model that served them as a label. A process serves one.
"""

from __future__ import annotations

from typing import Protocol

import torch
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from nanochat.serving.gpu import Gpu

CONTENT_TYPE = CONTENT_TYPE_LATEST
FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds
INTER_TOKEN_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)  # seconds


class Queue(Protocol):
    """The engine's service, as the metrics read it."""

    @property
    def running(self) -> int: ...

    @property
    def waiting(self) -> int: ...

    @property
    def held(self) -> int: ...

    @property
    def capacity(self) -> int: ...

    @property
    def device(self) -> torch.device: ...


class Metrics:
    """One server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._running = Gauge("nanochat_requests_running", "Requests that have a slot.", registry=registry)
        self._waiting = Gauge("nanochat_requests_waiting", "Requests that wait for a slot.", registry=registry)
        self._held = Gauge(
            "nanochat_kv_cache_tokens", "Tokens whose keys and values are kept, of requests that are gone too.",
            registry=registry,
        )  # fmt: skip
        self._capacity = Gauge(
            "nanochat_kv_cache_capacity_tokens", "Tokens that fit into the cache.", registry=registry
        )
        self._model = Gauge(
            "nanochat_model_info", "The model that is served.", ["name", "version", "fingerprint"], registry=registry
        )
        self._rejected = Counter(
            "nanochat_rejected", "Requests that were turned away.", ["reason", "version"], registry=registry
        )
        self._first_token = Histogram(
            "nanochat_time_to_first_token_seconds", "From a request's arrival to its first token.", ["version"],
            buckets=FIRST_TOKEN_BUCKETS, registry=registry,
        )  # fmt: skip
        self._inter_token = Histogram(
            "nanochat_inter_token_seconds", "Between two tokens of a request.", ["version"],
            buckets=INTER_TOKEN_BUCKETS, registry=registry,
        )  # fmt: skip
        self._generated = Counter("nanochat_generated_tokens", "Tokens of replies.", ["version"], registry=registry)
        self._prompt = Counter("nanochat_prompt_tokens", "Tokens of prompts.", ["version"], registry=registry)
        self._reused = Counter(
            "nanochat_prompt_tokens_reused", "Tokens of prompts that were in the key-value cache.", ["version"],
            registry=registry,
        )  # fmt: skip
        self._cancelled = Counter(
            "nanochat_cancelled", "Requests given up before their end.", ["version"], registry=registry
        )
        self._count_for("")

    def follow(self, queue: Queue, *, name: str, version: str, fingerprint: str) -> None:
        """Tell of this model and of the requests to it from now on."""
        self._running.set_function(lambda: queue.running)
        self._waiting.set_function(lambda: queue.waiting)
        self._held.set_function(lambda: queue.held)
        self._capacity.set(queue.capacity)
        self._model.labels(name=name, version=version, fingerprint=fingerprint).set(1)
        if queue.device.type == "cuda":
            self.registry.register(Gpu(queue.device))
        self._count_for(version)

    def _count_for(self, version: str) -> None:
        """Count for this version, from nothing."""
        self._version = version
        by_version = (
            self._first_token, self._inter_token, self._generated, self._prompt, self._reused, self._cancelled
        )  # fmt: skip
        for metric in by_version:
            metric.clear()
        self.first_token, self.inter_token = self._first_token.labels(version), self._inter_token.labels(version)
        self.generated, self.prompt = self._generated.labels(version), self._prompt.labels(version)
        self.reused, self.cancelled = self._reused.labels(version), self._cancelled.labels(version)

    def reject(self, reason: str) -> None:
        """Count a request that was turned away."""
        self._rejected.labels(reason=reason, version=self._version).inc()

    def render(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)
