"""Outcomes of exceptions: by type and code, whatever the message says."""

from __future__ import annotations

import errno
import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanochat.pipeline.outcomes import (
    KILLED_HERE,
    KILLED_IN_POD,
    Outcome,
    Reason,
    blamed_on_memory,
    from_exit,
    read_outcome,
    write_outcome,
)
from nanochat.spec.errors import Diverged, OutOfMemory, PeerLost, Stopped, StorageError, UserError
from nanochat.stages.__main__ import classify
from tasks import DataError


def error_of_the_cpu_allocator() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    return caught.value


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UserError("there is no task called nccl"), Reason.USER_ERROR),
        (StorageError("the store does not answer"), Reason.INFRASTRUCTURE),
        (PeerLost("communication failed"), Reason.INFRASTRUCTURE),
        (OutOfMemory("too little"), Reason.OUT_OF_MEMORY),
        (Diverged("the loss is nan"), Reason.DIVERGED),
        (Stopped("stopped"), Reason.PREEMPTED),
        (MemoryError(), Reason.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory"), Reason.OUT_OF_MEMORY),
        (error_of_the_cpu_allocator(), Reason.OUT_OF_MEMORY),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), Reason.INFRASTRUCTURE),
        (TimeoutError(), Reason.INFRASTRUCTURE),
        (OSError(errno.ENOSPC, "No space left on device"), Reason.USER_ERROR),
        (ModuleNotFoundError("No module named 'igloo'", name="igloo.snow"), Reason.USER_ERROR),
        (ImportError("libigloo.so: cannot open shared object file"), Reason.USER_ERROR),
        (ModuleNotFoundError("No module named 'nanochat.igloo'", name="nanochat.igloo"), Reason.ERROR),
        (DataError(Path("gsm8k.parquet"), "row 3 of task gsm8k: no number"), Reason.USER_ERROR),
        (RuntimeError("task igloo: can't allocate memory"), Reason.ERROR),
    ],
    ids=lambda value: str(value) if isinstance(value, Reason) else f"{type(value).__name__} {value}"[:40],
)
def test_an_exception_has_the_outcome_of_its_type(error: BaseException, reason: Reason) -> None:
    outcome = classify(error, rank=1)
    assert (outcome.reason, outcome.rank) == (reason, 1)
    assert outcome.peer_lost == isinstance(error, PeerLost)


def test_a_missing_module_is_named_with_what_to_do() -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module("igloo.snow")
    assert "module 'igloo' is missing: install the package" in classify(caught.value, rank=0).message


@pytest.mark.parametrize("task", ["nccl", "igloo"])
def test_a_users_error_decides_whatever_it_names(task: str, tmp_path: Path) -> None:
    """Also where the other rank was stopped before it could leave an outcome."""
    path = tmp_path / "outcome.json"
    assert write_outcome(path, classify(UserError(f"task {task}: its data has no answers"), rank=0))
    outcome = read_outcome(path)
    assert outcome is not None
    decided = from_exit(1, [outcome], processes=2)
    assert (decided.reason, decided.message) == (Reason.USER_ERROR, f"task {task}: its data has no answers")


def test_a_lost_peer_is_told_from_file_to_file(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    assert write_outcome(path, classify(PeerLost("gone"), rank=0))
    lost = read_outcome(path)
    assert lost is not None and lost.peer_lost
    cause = classify(ValueError("a bug"), rank=1)
    assert from_exit(1, [lost, cause], processes=2) == cause


@pytest.mark.parametrize(
    ("outcome", "memory"),
    [
        (from_exit(-9, []), True),
        (from_exit(1, [], last_words="Killed"), True),
        (from_exit(1, [classify(PeerLost("gone"), rank=0)], processes=2), True),  # rank 1 left no word
        (classify(PeerLost("gone"), rank=0), True),
        (classify(StorageError("s3://igloo does not answer"), rank=0), False),
        (classify(TimeoutError("no answer"), rank=0), False),
        (classify(ValueError("a bug"), rank=0), False),
        (Outcome(Reason.USER_ERROR, "the disk is full"), False),
    ],
    ids=lambda value: value.message if isinstance(value, Outcome) else "",
)
@pytest.mark.parametrize(("pod", "message"), [(False, KILLED_HERE), (True, KILLED_IN_POD)])
def test_kills_for_memory_explain_what_has_no_word_of_its_own(
    outcome: Outcome, memory: bool, pod: bool, message: str
) -> None:
    """Whom the kernel killed may have been another program, or a child that the stage survived."""
    assert blamed_on_memory(outcome, kills=0, pod=pod) == outcome
    blamed = replace(outcome, reason=Reason.OUT_OF_MEMORY, message=message, host=True)
    assert blamed_on_memory(outcome, kills=1, pod=pod) == (blamed if memory else outcome)


def test_outcomes_without_the_newer_fields_are_read() -> None:
    assert Outcome.from_dict(json.loads('{"reason": "Error", "message": "why", "other": 1}')) == Outcome(
        Reason.ERROR, "why"
    )
