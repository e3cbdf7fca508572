"""The next batch is made while this one trains: by one thread, in order; its errors are told where it is used."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from nanochat.spec.errors import UserError
from nanochat.training.batches import Batches
from nanochat.training.objective import LocalBatch, MicroBatch

CPU = torch.device("cpu")
WAIT = 60.0  # seconds, after which a test has failed


@dataclass
class Data:
    """An objective of which the data alone is asked for; step n is a tensor of n."""

    reads_ahead: bool = True
    broken: set[int] = field(default_factory=set)  # steps that fail once
    made: list[int] = field(default_factory=list)
    threads: set[threading.Thread] = field(default_factory=set)
    begun: threading.Event = field(default_factory=threading.Event)  # the last of `made`
    hold: threading.Event = field(default_factory=threading.Event)  # what making one waits for

    def __post_init__(self) -> None:
        self.hold.set()

    def local_batch(self, step: int) -> LocalBatch:
        self.made.append(step)
        self.threads.add(threading.current_thread())
        self.begun.set()
        assert self.hold.wait(WAIT)
        if step in self.broken:
            self.broken.remove(step)
            raise UserError(f"the data of step {step} is damaged")
        return LocalBatch((MicroBatch(torch.full((1, 2), step), torch.full((1, 2), step)),))


def number(local: LocalBatch) -> int:
    return int(local.batches[0].inputs[0, 0])


def test_the_next_batch_is_made_while_the_caller_goes_on() -> None:
    data = Data()
    with Batches(data, CPU) as batches:  # type: ignore[arg-type]
        assert number(batches.get(3)) == 3
        data.begun.clear()
        data.hold.clear()
        batches.prepare(4)
        assert data.begun.wait(WAIT), "it is begun though nobody has asked for it"
        data.hold.set()
        assert number(batches.get(4)) == 4
    assert data.made == [3, 4]


def test_one_thread_makes_them_in_the_order_of_the_calls_and_each_once() -> None:
    data = Data()
    with Batches(data, CPU) as batches:  # type: ignore[arg-type]
        for prepared, step in ((0, 0), (1, 1), (2, 2), (3, 9), (10, 10)):
            batches.prepare(prepared)
            assert number(batches.get(step)) == step
            assert batches.get(step) is batches.get(step)
    assert data.made == [0, 1, 2, 3, 9, 10]
    (thread,) = data.threads
    assert thread is not threading.current_thread() and not thread.is_alive()


def test_an_error_is_raised_where_the_batch_is_used_and_asking_again_tries_again() -> None:
    data = Data(broken={1})
    with Batches(data, CPU) as batches:  # type: ignore[arg-type]
        assert number(batches.get(0)) == 0
        batches.prepare(1)
        with pytest.raises(UserError, match="the data of step 1 is damaged"):
            batches.get(1)
        assert number(batches.get(1)) == 1
    assert data.made == [0, 1, 1]


def test_data_that_depends_on_the_weights_is_made_when_it_is_used() -> None:
    data = Data(reads_ahead=False)
    with Batches(data, CPU) as batches:  # type: ignore[arg-type]
        for step in (0, 1):
            batches.prepare(step)
            assert data.made == list(range(step))
            assert number(batches.get(step)) == step
        batches.get(1)
    assert data.made == [0, 1, 1], "the weights may be others"
    assert data.threads == {threading.current_thread()}


def test_after_an_error_the_thread_is_not_waited_for() -> None:
    data = Data()
    with pytest.raises(MemoryError), Batches(data, CPU) as batches:  # type: ignore[arg-type]
        data.hold.clear()
        batches.prepare(0)
        assert data.begun.wait(WAIT)
        batches.prepare(1)
        raise MemoryError
    data.hold.set()
    (thread,) = data.threads
    thread.join(WAIT)
    assert not thread.is_alive() and data.made == [0]


def test_a_gpu_copies_beside_training_which_waits_for_its_own_batch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In what order is told to CUDA: there is none here."""
    told: list[Any] = []
    inside = ["training"]

    class Stream:
        def __init__(self, name: object) -> None:
            self.name = "training" if name == "training" else "copies"

        def wait_stream(self, other: Stream) -> None:
            told.append((self.name, "waits for", other.name))

    @contextmanager
    def within(stream: Stream) -> Any:
        inside.append(stream.name)
        yield
        inside.pop()

    class Pinned:
        """A tensor as far as a copy needs one."""

        is_cuda = False

        def pin_memory(self) -> Pinned:
            told.append("pinned")
            return self

        def to(self, device: torch.device, non_blocking: bool = False) -> Pinned:
            told.append((inside[-1], "copies", non_blocking))
            return self

        def record_stream(self, stream: Stream) -> None:
            told.append((stream.name, "reads"))

    class OnGpu(Data):
        def local_batch(self, step: int) -> LocalBatch:
            return LocalBatch((MicroBatch(Pinned(), Pinned()),))  # type: ignore[arg-type]

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("training"))
    with Batches(OnGpu(), torch.device("cuda", 0)) as batches:  # type: ignore[arg-type]
        batches.get(0)
    copies = ["pinned", ("copies", "copies", True)]
    assert told == [*copies, *copies, ("training", "waits for", "copies"), *[("training", "reads")] * 2]
