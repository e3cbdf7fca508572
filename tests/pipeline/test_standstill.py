"""Which ranks stand still: the one that neither moves nor waits, as its node's launcher sees it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanochat.pipeline.attempts import AttemptRecord
from nanochat.pipeline.outcomes import Reason
from nanochat.pipeline.running_attempt import RunningAttempt
from nanochat.pipeline.standstill import Standstill, StandstillReporter, named_ranks, read_standstill, standstill_of
from nanochat.runtime.waits import Waits, read_waits
from nanochat.spec.errors import StorageError
from nanochat.storage.folder import FolderStore
from nanochat.storage.store import Store

PATH = "run/standstills/base/01-a.json"
SECONDS = 10.0


class Rig:
    """A launcher's folder with two ranks, and the time."""

    def __init__(self, work: Path, store: Any) -> None:
        self.work, self.store, self.now = work, store, 0.0
        self.ranks = [Waits.in_file(work / f"rank{rank}.waits") for rank in (2, 3)]
        self.reporter = StandstillReporter(store, PATH, work, ranks=(2, 3), seconds=SECONDS, passed=lambda: self.now)

    def look(self, after: float) -> Standstill:
        self.now += after
        self.reporter.look()
        return read_standstill(self.store, PATH)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def rig(tmp_path: Path, store: Store) -> Iterator[Rig]:
    found = Rig(tmp_path, store)
    yield found
    found.reporter.close()


def test_a_rank_that_waits_does_not_stand(rig: Rig) -> None:
    with rig.ranks[0]:
        assert rig.look(0) == rig.look(SECONDS - 1) == Standstill(), "not yet"
        assert rig.look(1) == Standstill(waiting=(2,), standing=(3,)) and not rig.look(5).waits
        assert standstill_of(rig.work, (2, 3)) == Standstill(waiting=(2,), standing=(3,))
        with rig.ranks[1]:
            assert rig.look(1) == Standstill(), "something moved"
            assert rig.look(SECONDS) == Standstill(waiting=(2, 3)) and rig.look(1).waits
    assert rig.look(1) == Standstill()


def test_a_process_that_is_stopped_stands_wherever_it_was(rig: Rig) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        (rig.work / "rank3.pid").write_text(str(process.pid))
        with rig.ranks[0], rig.ranks[1]:
            rig.look(0)
            assert rig.look(SECONDS) == Standstill(waiting=(2, 3))
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            assert rig.look(1) == Standstill(waiting=(2,), standing=(3,))
    finally:
        process.kill()
        process.wait()


def test_a_rank_that_has_ended_does_not_stand(rig: Rig) -> None:
    (rig.work / "outcome-rank2.json").write_text("{}")
    rig.look(0)
    assert rig.look(SECONDS) == Standstill(waiting=(2,), standing=(3,))


@pytest.mark.parametrize(
    ("waits", "said"),
    [(0, ""), (1, ": rank 1 stood still while the others waited"), (2, "")],
    ids=["none", "one", "all"],
)
def test_an_attempt_that_is_stopped_as_stalled_names_the_rank_that_stood(tmp_path: Path, waits: int, said: str) -> None:
    for rank in range(2):
        Waits.in_file(tmp_path / f"rank{rank}.waits")
    waiting = [Waits.in_file(tmp_path / f"rank{rank}.waits") for rank in range(waits)]
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    running = RunningAttempt(AttemptRecord(stage="base", number=1), process, tmp_path, processes=2)
    for each in waiting:
        each.__enter__()
    running.stop("stalled", grace=0.0)
    running.end()
    outcome = running.outcome(-9)
    assert (outcome.reason, outcome.message) == (Reason.STALLED, f"no sign of life; it was stopped{said}")


def test_ranks_in_a_sentence() -> None:
    assert [named_ranks(ranks) for ranks in ((), (3,), (3, 4))] == ["ranks", "rank 3", "ranks 3, 4"]
    assert named_ranks(range(1000)) == "ranks 0, 1, 2, 3, 4, 5, 6, 7, ..."


def test_what_could_not_be_told_is_told_later(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_path: str, _value: object) -> None:
        raise StorageError("no")

    rig.look(0)
    with monkeypatch.context() as patch:
        patch.setattr(rig.store, "write_json", refuses)
        assert rig.look(SECONDS) == Standstill()
    assert rig.look(1) == Standstill(standing=(2, 3))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"waiting": "x"}', b'{"standing": [-1]}', b"x" * (2 << 20)])
def test_what_makes_no_sense_tells_nothing(store: Store, text: bytes) -> None:
    store.write(PATH, text)
    assert read_standstill(store, PATH) == Standstill()


def test_waits_are_counted_across_errors(tmp_path: Path) -> None:
    path = tmp_path / "rank0.waits"
    assert read_waits(path) == (0, False)
    waits = Waits.in_file(path)
    with pytest.raises(ValueError, match="why"), waits:
        assert read_waits(path) == (1, True)
        raise ValueError("why")
    assert read_waits(path) == (2, False)
    path.write_bytes(b"odd")
    assert read_waits(path) == (0, False)
