"""Stages that train, as processes on a GPU."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CPU, STOPPED, Site

from nanochat.model.transformer import Transformer
from nanochat.runtime.device import Device
from nanochat.training.host_copy import HostCopy
from nanochat.training.plan import Measurement
from tests.training.rig import CONFIG, Rig, losses, same

pytestmark = pytest.mark.gpu

SETTINGS: dict[str, Any] = {"steps": 12, "totalBatchTokens": 4096, "deviceBatchSize": 8}
# Of the losses of twelve steps, by the products of TF32 and bf16.
ROUNDING = {"fp32": 2e-3, "bf16": 2e-2}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_are_those_of_a_cpu(data: Site, tmp_path: Path, precision: str) -> None:
    """mid begins from the same weights on both; fresh ones depend on the device's random numbers."""
    mid = {**SETTINGS, "precision": "fp32"}
    cpu = data.copy(tmp_path / "cpu", base={**SETTINGS, "precision": "fp32"}, mid=mid)
    cpu.run("base", **CPU)
    gpu = cpu.copy(tmp_path / "gpu", base=cpu.stages["base"], mid={**mid, "precision": precision})
    cpu.run("mid", **CPU)
    gpu.run("mid")
    made, _ = gpu.output("mid")
    assert made.metadata["device"] == "cuda"
    expected = cpu.losses("mid")
    assert len(expected) == 12 and expected[-1] < 0.97 * expected[0]
    assert gpu.losses("mid") == pytest.approx(expected, rel=ROUNDING[precision])


@pytest.mark.parametrize("compiled", ["never", "always"])
def test_stopped_and_resumed_is_equal_bit_for_bit(data: Site, tmp_path: Path, compiled: str) -> None:
    """Each launch compiles again, as in a pod of its own."""
    settings = {**SETTINGS, "compile": compiled, "deterministic": True}
    whole = data.copy(tmp_path / "whole", base=settings)
    log = whole.run("base")
    assert f"compile is {compiled}" in log and "does not work" not in log
    parts = data.copy(tmp_path / "parts", base=settings)
    parts.run("base", steps=5, code=STOPPED)
    assert "resumed after step 5 of 12" in parts.run("base")
    assert same(whole.weights("base"), parts.weights("base"))
    assert whole.losses("base") == parts.losses("base")
    assert all(map(math.isfinite, whole.losses("base")))


def test_compiled_losses_are_the_plain_ones(data: Site, tmp_path: Path) -> None:
    kinds = ("never", "always", "max-autotune")
    sites = [data.copy(tmp_path / compiled, base={**SETTINGS, "compile": compiled}) for compiled in kinds]
    for site in sites:
        assert "does not work" not in site.run("base")
    plain, *compiled = (site.losses("base") for site in sites)
    for found in compiled:
        assert found == pytest.approx(plain, rel=ROUNDING["bf16"])


def test_without_a_c_compiler_training_goes_on_and_says_so(data: Site, tmp_path: Path) -> None:
    site = data.copy(tmp_path, base={**SETTINGS, "compile": "always"})
    log = site.run("base", CC="false", CXX="false")
    assert log.count("torch.compile does not work here, so training is slower: ") == 1
    assert all(map(math.isfinite, site.losses("base")))


def test_what_a_gpu_saved_a_cpu_resumes(data: Site, tmp_path: Path) -> None:
    site = data.copy(tmp_path, base={**SETTINGS, "precision": "fp32"})
    site.run("base", steps=5, code=STOPPED)
    assert "resumed after step 5 of 12" in site.run("base", **CPU)
    assert len(site.losses("base")) == 12


def test_every_stage_runs(data: Site, tmp_path: Path) -> None:
    site = data.copy(tmp_path)
    for stage in ("base", "eval-base", "mid", "sft", "rl", "eval-rl"):
        site.run(stage)
    for stage in ("base", "mid", "sft", "rl"):
        assert site.output(stage)[0].metadata["device"] == "cuda"
    assert site.results("eval-base")["metrics"]["val_bpb"]["value"] > 0
    assert site.results("eval-rl")["metrics"]["world-sums"]["n"] == 4


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_no_step_waits_for_the_gpu(tmp_path: Path) -> None:
    """From the second step on CUDA refuses whatever would wait for it, but where something is measured."""

    def forward(rig: Rig, *args: torch.Tensor, **options: str) -> torch.Tensor:
        if rig.trainer.made:
            torch.cuda.set_sync_debug_mode("error")
        return rig.plain(*args, **options)

    def measure(step: int) -> dict[str, float]:
        torch.cuda.set_sync_debug_mode("default")
        return {}

    with torch.device("cuda"):
        model = Transformer(CONFIG)
    device = Device(torch.device("cuda", 0), torch.float32)
    rig = Rig(tmp_path, device, model=model, forward=forward, measurements=(Measurement(6, measure),))
    try:
        assert rig.run().step == 12
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(map(math.isfinite, losses(tmp_path)))


def test_a_copy_of_the_state_is_of_its_moment() -> None:
    """Training goes on at once; the next copy goes into the same pinned memory."""
    weights = torch.randn(4096, 4096, device="cuda")
    copy = HostCopy()
    places = set()
    for _ in range(2):
        expected = weights.cpu()
        taken = copy.take({"model": {"weights": weights}})["model"]["weights"]
        for _ in range(50):
            weights.add_(1.0)
        copy.wait()
        assert taken.is_pinned() and torch.equal(taken, expected)
        places.add(taken.data_ptr())
    assert len(places) == 1
