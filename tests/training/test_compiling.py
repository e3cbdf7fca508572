"""When torch.compile pays."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nanochat.model.sizes import ModelConfig
from nanochat.training import compiling
from nanochat.training.compiling import Decision, decide

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DEMO = ModelConfig.from_depth(4, width=192, head_dim=64, vocab_size=640, sequence_length=256)
LARGER = ModelConfig.from_depth(6, vocab_size=32_768, sequence_length=512)


@pytest.fixture(autouse=True)
def two_threads_and_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def choose(
    config: ModelConfig, tokens: float, setting: Any = "auto", device: torch.device = CPU, **changes: Any
) -> Decision:
    return decide(setting, device, config, tokens=tokens, **{"fixed_shapes": True, "fused": False} | changes)


def test_compiling_pays_for_long_training_and_not_for_the_demo() -> None:
    assert not choose(DEMO, 150 * 4096).compiled
    assert choose(DEMO, 100 * 150 * 4096).compiled
    assert not choose(LARGER, 10 * 8192).compiled
    assert choose(LARGER, 1000 * 8192).compiled


def test_less_is_left_to_gain_beside_own_code() -> None:
    between = 100 * 8192  # tokens
    assert choose(LARGER, between).compiled and not choose(LARGER, between, fused=True).compiled
    assert choose(LARGER, 1000 * 8192, fused=True).compiled


def test_a_larger_vocabulary_gains_more() -> None:
    small, large = (ModelConfig.from_depth(1, width=64, vocab_size=size, sequence_length=512) for size in (640, 65_536))
    assert not choose(small, 2e6).compiled
    assert choose(large, 2e6).compiled


def test_the_figures_are_said() -> None:
    gain = (compiling.GAIN * 6 * 384 + compiling.LOGIT_GAIN * 32_768) * 8_192_000 / 2
    figures = f"it would save an estimated {gain:,.0f} s of training and take {compiling.COST:,.0f} s"
    assert choose(LARGER, 8_192_000).reason == f"compiled: {figures}"


@pytest.mark.parametrize("tokens", [1.0, 1e12])
def test_what_is_set_and_what_the_device_is_come_first(tokens: float, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(DEMO, tokens, "always").compiled and choose(DEMO, tokens, "always", fixed_shapes=False).compiled
    assert not choose(DEMO, tokens, "never").compiled and not choose(DEMO, tokens, "never", CUDA).compiled
    assert choose(DEMO, tokens, device=CUDA).compiled
    assert not choose(DEMO, tokens, device=torch.device("mps")).compiled
    assert not choose(DEMO, tokens, fixed_shapes=False).compiled
    assert not choose(DEMO, tokens, device=CUDA, fixed_shapes=False).compiled
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "/nowhere")
    assert choose(DEMO, tokens).reason == "not compiled: there is no C++ compiler; install g++"


def test_kernels_are_tried_where_that_is_set_and_no_bits_are_promised() -> None:
    tried = choose(DEMO, 1.0, "max-autotune", CUDA)
    assert tried.tuned and tried.compiled and not choose(DEMO, 1e12, device=CUDA).tuned
    for device, deterministic in ((CUDA, True), (CPU, False)):
        plain = choose(DEMO, 1.0, "max-autotune", device, deterministic=deterministic)
        assert plain.compiled and not plain.tuned and plain.reason.startswith("compiled, not tuned: ")
