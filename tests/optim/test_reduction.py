"""When reductions begin: in one order in all processes, whatever backward makes first."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nanochat.optim.reduction import Reduction


class FakeShard:
    """Parameters whose reduction is only written down."""

    def __init__(self, name: str, log: list[str], parameters: int) -> None:
        self.name, self.log = name, log
        self.parameters = [nn.Parameter(torch.ones(())) for _ in range(parameters)]

    def start_reduce(self) -> None:
        self.log.append(f"begin {self.name}")

    def finish_reduce(self) -> None:
        self.log.append(f"end {self.name}")


def reduction(log: list[str], *, early: bool = True) -> tuple[Reduction, FakeShard, FakeShard]:
    first, second = FakeShard("first", log, 2), FakeShard("second", log, 1)
    shards: Any = [first, second]
    return Reduction(shards, early=early), first, second


def backward(log: list[str], *parameters: nn.Parameter) -> None:
    """One backward pass, in which gradients come in this order."""
    for parameter in parameters:
        parameter.backward()
        log.append("came")


def test_a_shard_begins_with_its_last_gradient_in_the_last_backward_alone() -> None:
    log: list[str] = []
    made, first, second = reduction(log)
    backward(log, *first.parameters, *second.parameters)
    made.begin_in_backward()
    backward(log, *first.parameters, *second.parameters)
    made.begin()
    made.finish()
    assert log == [*["came"] * 4, "begin first", "came", "begin second", "came", "end first", "end second"]


def test_a_shard_that_is_ready_waits_for_those_before_it() -> None:
    log: list[str] = []
    made, first, second = reduction(log)
    made.begin_in_backward()
    backward(log, *second.parameters, *first.parameters)
    assert log == ["came", "came", "begin first", "begin second", "came"]


def test_what_has_no_gradient_begins_after_backward() -> None:
    log: list[str] = []
    made, first, second = reduction(log)
    for _ in range(2):
        made.begin_in_backward()
        backward(log, first.parameters[0], *second.parameters)
        made.begin()
        made.finish()
    assert log == ["came", "came", "begin first", "begin second", "end first", "end second"] * 2


def test_one_process_begins_none_in_backward() -> None:
    log: list[str] = []
    made, first, second = reduction(log, early=False)
    made.begin_in_backward()
    backward(log, *first.parameters, *second.parameters)
    assert log == ["came"] * 3
