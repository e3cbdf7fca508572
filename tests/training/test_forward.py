from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from nanochat.training.forward import Forward, compile_pays


class FakeModel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def broken(error: Exception):
    def call(*_: object) -> Tensor:
        raise error

    return call


def test_compiling_does_not_pay_for_a_short_run_on_a_cpu() -> None:
    assert not compile_pays(torch.device("cpu"), 1e12)
    assert compile_pays(torch.device("cuda"), 1e12)


def test_where_compiling_fails_the_plain_model_goes_on_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    forward = Forward(FakeModel(), compiled=False)
    forward.call, forward.proven = broken(RuntimeError("no compiler\nmore")), False
    with caplog.at_level(logging.WARNING):
        assert forward(torch.tensor(1)) == 2
        assert forward(torch.tensor(2)) == 3
    assert [record.getMessage() for record in caplog.records] == [
        "torch.compile does not work here, so training is slower: no compiler"
    ]


def test_want_of_memory_is_not_a_failure_of_compiling() -> None:
    forward = Forward(FakeModel(), compiled=False)
    forward.call, forward.proven = broken(torch.OutOfMemoryError("full")), False
    with pytest.raises(torch.OutOfMemoryError):
        forward(torch.tensor(1))
