from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import nop
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from nanochat.model.transformer import Transformer
from nanochat.training.forward import Forward
from tests.training.rig import CONFIG

IDS, TARGETS = torch.arange(32).view(2, 16), torch.arange(1, 33).view(2, 16)


def model() -> Transformer:
    made = Transformer(CONFIG)
    made.init_weights(3)
    return made


def broken(error: Exception) -> Callable[[Tensor], Tensor]:
    def call(_: Tensor) -> Tensor:
        raise error

    return call


def test_where_compiling_fails_the_plain_model_goes_on_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    forward = Forward(plain := model(), compiled=False)
    forward.hidden, forward.proven = broken(RuntimeError("no compiler\nmore")), False
    with caplog.at_level(logging.WARNING):
        assert forward(IDS, TARGETS) == plain(IDS, TARGETS, reduction="sum")
        assert forward(TARGETS, IDS) == plain(TARGETS, IDS, reduction="sum")
    assert [record.getMessage() for record in caplog.records] == [
        "torch.compile does not work here, so training is slower: no compiler"
    ]


def test_where_tuning_fails_the_model_is_compiled_without_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[str | None] = []

    def compile(call: Callable[..., Tensor], **settings: Any) -> Callable[..., Tensor]:
        modes.append(settings.get("mode"))
        return broken(RuntimeError("no kernel")) if settings.get("mode") else call

    monkeypatch.setattr(torch, "compile", compile)
    forward = Forward(plain := model(), compiled=True, tuned=True)
    with caplog.at_level(logging.WARNING):
        assert forward(IDS, TARGETS) == plain(IDS, TARGETS, reduction="sum")
    assert modes == ["max-autotune-no-cudagraphs", None, None]  # the model, what works on each logit, the model anew
    assert [record.getMessage() for record in caplog.records] == [
        "max-autotune does not work here, so training is slower: no kernel"
    ]
    assert forward.proven


def test_where_backward_can_not_be_compiled_the_plain_model_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel for backward")

    backend = aot_autograd(fw_compiler=nop, bw_compiler=broken)
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **settings: real(call, dynamic=False, backend=backend))
    forward, plain = Forward(model(), compiled=True), model()
    with caplog.at_level(logging.WARNING):
        forward(IDS, TARGETS).backward()
    plain(IDS, TARGETS, reduction="sum").backward()
    pairs = zip(forward.model.parameters(), plain.parameters(), strict=True)
    assert all(torch.equal(one.grad, other.grad) for one, other in pairs)  # pyright: ignore[reportArgumentType]
    (record,) = caplog.records
    assert record.getMessage().startswith("torch.compile does not work here, so training is slower: ")
    assert "no kernel for backward" in record.getMessage()


def test_want_of_memory_is_not_a_failure_of_compiling() -> None:
    forward = Forward(model(), compiled=False)
    forward.hidden, forward.proven = broken(torch.OutOfMemoryError("full")), False
    with pytest.raises(torch.OutOfMemoryError):
        forward(IDS, TARGETS)


@pytest.fixture
def no_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(function: Callable[..., Tensor], **_: object) -> Callable[..., Tensor]:
        return function

    monkeypatch.setattr(torch, "compile", plain)


@pytest.mark.usefixtures("no_compiling")
def test_that_all_is_compiled_is_told_once_when_a_second_pass_begins() -> None:
    told: list[int] = []
    forward = Forward(model(), compiled=True, done=lambda: told.append(len(told)))
    found = []
    for _ in range(3):
        forward(IDS, TARGETS)
        found.append(len(told))
    assert found == [0, 1, 1]


@pytest.mark.usefixtures("no_compiling")
def test_where_compiling_fails_nothing_is_told() -> None:
    told: list[str] = []
    forward = Forward(model(), compiled=True, done=lambda: told.append("done"))
    forward.hidden = broken(RuntimeError("no compiler"))
    for _ in range(2):
        forward(IDS, TARGETS)
    assert told == []
