"""The lines that `nanochat logs` prints of a pipeline whose logs grow while it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from nanochat.cli import logs
from nanochat.cli.logs import show
from nanochat.cli.run_handle import Unanswered
from nanochat.pipeline.log_reader import LaunchLogs
from nanochat.pipeline.run_status import StageRunStatus
from nanochat.spec.errors import UserError

Turn = Callable[["FakeSource"], None]


@dataclass
class FakeSource:
    """A pipeline that changes at every look."""

    turns: list[Turn]
    name: str = "small"
    live: bool = True
    stages: dict[str, StageRunStatus] = field(default_factory=dict)
    files: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    reads: int = 0

    def look(self) -> tuple[bool, Sequence[StageRunStatus]]:
        self.turns.pop(0)(self)
        return self.live, list(self.stages.values())

    def launches(self, stage: str) -> Sequence[LaunchLogs]:
        found = self.files.get(stage, {})
        return [LaunchLogs(name, {file: len(data) for file, data in files.items()}) for name, files in found.items()]

    def read(self, stage: str, launch: str, file: str, offset: int) -> bytes:
        self.reads += 1
        return self.files[stage][launch][file][offset:][:5]

    def stands(self, stage: str, phase: str, *, attempts: int = 1, started: float | None = 1.0) -> None:
        self.stages[stage] = StageRunStatus(stage, phase, f"{phase} for a reason", attempts, started=started)

    def writes(self, stage: str, launch: str, file: str, data: bytes) -> None:
        files = self.files.setdefault(stage, {}).setdefault(launch, {})
        files[file] = files.get(file, b"") + data


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FOLLOW_SECONDS", 0.0)


Capture = pytest.CaptureFixture[str]


def told(
    capsys: Capture, *turns: Turn, stage: str | None = "base", attempt: int | None = None, rank: int | None = None,
    follow: bool = True,
) -> list[str]:  # fmt: skip
    """The lines that are printed; all turns must have been taken."""
    source = FakeSource(list(turns))
    show(source, stage=stage, attempt=attempt, rank=rank, follow=follow)
    assert source.turns == []
    return capsys.readouterr().out.splitlines()


def runs(*pieces: tuple[str, str, bytes], phase: str = "Running", attempts: int = 1) -> Turn:
    """The stage base stands so, and its launches have written (launch, file, bytes)."""

    def turn(source: FakeSource) -> None:
        source.stands("base", phase, attempts=attempts)
        for launch, file, data in pieces:
            source.writes("base", launch, file, data)

    return turn


def test_it_goes_on_across_attempts_until_the_stage_has_ended(capsys: Capture) -> None:
    assert told(
        capsys,
        runs(("01-a", "rank0", b"one\ntw")),
        runs(("01-a", "rank0", b"o\nlast words")),
        runs(("02-b", "rank0", b"three\n"), phase="Retrying", attempts=2),
        runs(("02-b", "rank0", b"four\n"), phase="Succeeded", attempts=2),
    ) == ["==> base, attempt 1 <==", "one", "two", "last words", "==> base, attempt 2 <==", "three", "four"]


def test_ranks_have_prefixes_in_their_order_and_lines_stay_whole(capsys: Capture) -> None:
    both = [("01-a", "rank0", b"a"), ("01-a", "rank10", b"c\n"), ("01-b", "rank2", b"b\n")]
    assert told(capsys, runs(*both), runs(("01-a", "rank0", b"A\n"), phase="Failed")) == [
        "==> base, attempt 1 <==",
        "rank2: b",
        "rank10: c",
        "rank0: aA",
    ]


@pytest.mark.parametrize(
    ("rank", "lines"),
    [(None, ["rank0: zero", "rank1: one"]), (0, ["zero"]), (1, ["one"]), (-1, ["01-a: own", "01-b: other"])],
)
def test_one_rank_is_chosen(capsys: Capture, rank: int | None, lines: list[str]) -> None:
    turn = runs(
        ("01-a", "launch", b"own\n"),
        ("01-a", "rank0", b"zero\n"),
        ("01-b", "launch", b"other\n"),
        ("01-b", "rank1", b"one\n"),
    )
    assert told(capsys, turn, rank=rank, follow=False) == lines


def test_a_launch_that_never_had_ranks_speaks_itself(capsys: Capture) -> None:
    turn = runs(("01-a", "launch", b"no master\n"))
    assert told(capsys, turn, follow=False) == ["no master"]


def test_pods_that_a_queue_started_again_have_a_heading(capsys: Capture) -> None:
    turn = runs(("01-a", "rank0", b"one\n"), ("01-c", "rank0", b"two\n"))
    assert told(capsys, turn, follow=False) == [
        "==> base, attempt 1 <==",
        "one",
        "==> base, attempt 1, start 2 <==",
        "two",
    ]


@pytest.mark.parametrize(("attempt", "line"), [(None, "second"), (1, "first"), (2, "second")])
def test_unfollowed_it_is_the_last_attempt_or_the_one_asked_for(
    capsys: Capture, attempt: int | None, line: str
) -> None:
    turn = runs(("01-a", "rank0", b"first\n"), ("02-b", "rank0", b"second\n"), attempts=2)
    assert told(capsys, turn, attempt=attempt, follow=False) == [line]


def test_following_one_attempt_ends_with_the_next(capsys: Capture) -> None:
    turns = [runs(("01-a", "rank0", b"x\n")), runs(("02-b", "rank0", b"y\n"), attempts=2)]
    assert told(capsys, *turns, attempt=1) == ["==> base, attempt 1 <==", "x"]


def test_without_a_stage_it_follows_all_and_reads_the_ended_ones_once(capsys: Capture) -> None:
    def first(source: FakeSource) -> None:
        source.stands("tokens", "Succeeded", started=1.0)
        source.stands("base", "Running", started=2.0)
        source.stands("mid", "Waiting", started=None)
        source.writes("tokens", "01-t", "rank0", b"t\n")
        source.writes("base", "01-b", "rank0", b"b\n")

    def second(source: FakeSource) -> None:
        source.writes("tokens", "01-t", "rank0", b"not read\n")
        source.stands("base", "Failed", started=2.0)

    def retried(source: FakeSource) -> None:
        source.stands("base", "Running", started=2.0, attempts=2)
        source.writes("base", "02-b", "rank0", b"again\n")

    def end(source: FakeSource) -> None:
        source.live = False
        source.stands("mid", "Succeeded", started=3.0)
        source.writes("mid", "01-m", "rank0", b"m\n")

    assert told(capsys, first, second, retried, end, stage=None) == [
        "==> tokens, attempt 1 <==",
        "t",
        "==> base, attempt 1 <==",
        "b",
        "==> base, attempt 2 <==",
        "again",
        "==> mid, attempt 1 <==",
        "m",
    ]


def away(source: FakeSource) -> None:
    raise Unanswered("the controller does not answer")


def test_followed_logs_outlast_a_source_that_is_away(capsys: Capture) -> None:
    source = FakeSource([runs(("01-a", "rank0", b"a\n")), away, away, runs(("01-a", "rank0", b"b\n"), phase="Failed")])
    show(source, stage="base", attempt=None, rank=None, follow=True)
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1:] == ["a", "b"]
    assert captured.err == "the controller does not answer; trying again\n"


def test_a_stage_that_has_not_begun_is_said(capsys: Capture) -> None:
    def waits(source: FakeSource) -> None:
        source.stands("base", "Waiting", started=None, attempts=0)

    source = FakeSource([waits, waits, runs(("01-a", "rank0", b"a\n"), phase="Succeeded")])
    show(source, stage="base", attempt=None, rank=None, follow=True)
    assert capsys.readouterr().err == "base has not begun: Waiting for a reason\n"


def cached(source: FakeSource) -> None:
    source.live = False
    source.stands("base", "Cached", started=None, attempts=0)


@pytest.mark.parametrize(
    ("turn", "stage", "attempt", "rank", "says"),
    [
        (runs(), "bsae", None, None, "there is no stage 'bsae'. Did you mean 'base'?"),
        (runs(), "base", None, None, "there is no log of base: Running for a reason"),
        (runs(("01-a", "rank0", b"a")), "base", 3, None, "there is no log of base, attempt 3"),
        (runs(("01-a", "rank0", b"a")), "base", None, 4, "there is no log of base, rank4"),
        (cached, "base", None, None, "there is no log of base: an earlier run made its output, which is reused"),
        (cached, None, None, None, "no stage of small has run: all its outputs were there already"),
        (lambda source: None, None, None, None, "no stage of small has run yet"),
        (away, "base", None, None, "the controller does not answer"),
    ],
)
def test_what_is_not_there(turn: Turn, stage: str | None, attempt: int | None, rank: int | None, says: str) -> None:
    with pytest.raises(UserError) as caught:
        show(FakeSource([turn]), stage=stage, attempt=attempt, rank=rank, follow=False)
    assert caught.value.message == says
