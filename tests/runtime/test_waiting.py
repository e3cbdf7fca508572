"""What the host does while a device computes: numbers are read late, and nothing is collected in between."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch

from nanochat.runtime.garbage import MUCH, Garbage
from nanochat.runtime.reading import Reading


class Node:
    """Something in a circle, which counting references alone never frees."""

    def __init__(self) -> None:
        self.own = self


@pytest.fixture(params=[True, False])
def enabled(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether collections come by themselves; they do again afterwards."""
    (gc.enable if request.param else gc.disable)()
    yield request.param
    gc.enable()


def test_a_number_is_what_it_was_when_its_reading_began() -> None:
    loss, norm = torch.tensor(2.5), torch.tensor(3.0, dtype=torch.float64)
    reading = Reading(loss, norm)
    loss.zero_()
    norm.add_(1.0)
    assert reading.is_whole and reading.values() == [2.5, 3.0]


def test_nothing_is_collected_but_when_it_is_asked_for(enabled: bool) -> None:
    with Garbage() as garbage:
        assert not gc.isenabled()
        gone = weakref.ref(Node())
        kept = [[] for _ in range(2000)]  # more than lets a collection come by itself
        assert len(kept) == 2000 and gone() is not None
        garbage.collect_if_much()
        assert gone() is not None
        garbage.collect()
        assert gone() is None
    assert gc.isenabled() == enabled


def test_what_is_kept_is_looked_at_again_after_the_block_only() -> None:
    with Garbage() as garbage:
        staying = Node()
        kept = weakref.ref(staying)
        garbage.keep()
        del staying
        gone = weakref.ref(Node())
        garbage.collect()
        assert gone() is None and kept() is not None
    gc.collect()
    assert kept() is None


def test_much_garbage_is_collected_without_being_asked_for() -> None:
    with Garbage() as garbage:
        gone = weakref.ref(Node())
        kept = [[] for _ in range(2 * MUCH)]  # other threads of the tests free some of theirs meanwhile
        garbage.collect_if_much()
        assert gone() is None and len(kept) == 2 * MUCH


def test_after_an_error_collections_come_by_themselves_again(enabled: bool) -> None:
    with pytest.raises(MemoryError), Garbage():
        raise MemoryError
    assert gc.isenabled() == enabled
