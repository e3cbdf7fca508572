"""The GPU's figures among the metrics, with a driver that tells what the tests want."""

from __future__ import annotations

import logging

import pytest
import torch
from prometheus_client import CollectorRegistry

from nanochat.inference import Engine
from nanochat.serving.gpu import Gpu
from nanochat.serving.metrics import Metrics
from nanochat.serving.service import EngineService

GIB = 1 << 30


def told(registry: CollectorRegistry) -> dict[str, float]:
    return {sample.name: sample.value for metric in registry.collect() for sample in metric.samples}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GIB, 80 * GIB) if device.index == 1 else ())
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 37 if device.index == 1 else None)
    return torch.device("cuda", 1)


def test_figures_of_the_servers_own_gpu(gpu: torch.device) -> None:
    registry = CollectorRegistry()
    registry.register(Gpu(gpu))
    assert told(registry) == {
        "nanochat_gpu_memory_used_bytes": 70 * GIB,
        "nanochat_gpu_memory_bytes": 80 * GIB,
        "nanochat_gpu_utilization_ratio": 0.37,
    }


def test_what_cannot_be_had_is_left_out_and_said_once(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_device: torch.device) -> int:
        raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "utilization", fail)
    registry = CollectorRegistry()
    registry.register(Gpu(gpu))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert told(registry).keys() == {"nanochat_gpu_memory_used_bytes", "nanochat_gpu_memory_bytes"}
    (record,) = caplog.records
    assert "nanochat_gpu_utilization_ratio is not told any more: nvidia-ml-py" in record.getMessage()


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_server_tells_them_where_it_computes_on_one(
    kind: str, gpu: torch.device, model: torch.nn.Module, tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, tokenizer, slots=1)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(engine, "_device", gpu if kind == "cuda" else torch.device("cpu"))
    metrics = Metrics()
    metrics.follow(EngineService(engine), name="tiny", version="3", fingerprint="f00d")
    found = [name for name in told(metrics.registry) if name.startswith("nanochat_gpu_")]
    assert len(found) == (3 if kind == "cuda" else 0)
