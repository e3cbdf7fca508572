"""The journal: what is written is read back, merged into the final lineage."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.spec.errors import StorageError
from nanochat.storage import Profile, Store, open_store
from nanochat.tracking.journal import MOST_NAMES, PIECE, SENSELESS, Journal, JournalReader, _Room, merge

RUN = "runs/default.demo/0123456789ab"
LONG = 1e9  # an interval that never passes in a test


class Clock:
    """Time that moves by one second whenever it is asked."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def journal(store: Store, launch: str, clock: Clock, **options: Any) -> Journal:
    return Journal(store, RUN, stage="base", launch=launch, interval=LONG, clock=clock, **options)


def steps(store: Store, name: str = "loss") -> dict[int, float]:
    history = JournalReader(store, RUN).history("base")
    return {point.step: point.value for point in history.metrics.get(name, ())}


def test_metrics_come_back(store: Store) -> None:
    with journal(store, "01-a", Clock()) as log:
        log.metrics(1, {"loss": 3.5, "rate": 10})
        log.flush()
        log.metrics(2, {"loss": 3.25})
    assert steps(store) == {1: 3.5, 2: 3.25}
    assert steps(store, "rate") == {1: 10.0}
    names = [entry.path.rsplit("/", 1)[1] for entry in store.list(f"{RUN}/metrics/base/01-a")]
    assert names == ["000000.jsonl", "000001.jsonl"]


def test_nothing_recorded_writes_nothing(store: Store) -> None:
    journal(store, "01-a", Clock()).close()
    assert store.list(f"{RUN}/metrics") == []
    assert JournalReader(store, RUN).history("base").metrics == {}


def test_only_rank_zero_writes(store: Store) -> None:
    with journal(store, "01-a", Clock(), enabled=False) as log:
        log.metrics(1, {"loss": 1.0})
        log.event("divergence", step=1)
    assert store.list(f"{RUN}/metrics") == []


def test_values_that_are_not_finite_are_strict_json_and_come_back(store: Store) -> None:
    with journal(store, "01-a", Clock()) as log:
        log.metrics(1, {"loss": math.nan, "up": math.inf, "down": -math.inf})
    line = store.read(f"{RUN}/metrics/base/01-a/000000.jsonl", 1 << 20).decode()
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert math.isnan(steps(store)[1])
    assert steps(store, "up") == {1: math.inf}
    assert steps(store, "down") == {1: -math.inf}


def test_a_resumed_launch_replaces_the_steps_it_ran_again(store: Store) -> None:
    clock = Clock()
    with journal(store, "01-zz", clock) as first:  # launches are ordered by time, not by name
        for step in range(1, 9):
            first.metrics(step, {"loss": float(step)})
    with journal(store, "02-aa", clock) as second:
        for step in range(5, 8):
            second.metrics(step, {"loss": 10.0 * step})
    assert steps(store) == {1: 1, 2: 2, 3: 3, 4: 4, 5: 50, 6: 60, 7: 70}


def test_a_measurement_at_the_checkpoint_stays(store: Store) -> None:
    clock = Clock()
    with journal(store, "01-a", clock) as first:
        first.metrics(5, {"loss": 1.0})
        first.metrics(5, {"val/bpb": 0.9})
        first.metrics(6, {"loss": 1.0, "val/bpb": 0.8})
    with journal(store, "02-b", clock) as second:
        second.metrics(5, {"loss": 2.0})
    assert steps(store) == {5: 2.0}
    assert steps(store, "val/bpb") == {5: 0.9}


def test_a_launch_that_goes_back_replaces_its_own_steps(store: Store) -> None:
    with journal(store, "01-a", Clock()) as log:
        for step, loss in ((1, 1.0), (2, 1.0), (3, 99.0), (4, 999.0), (3, 0.5)):
            log.metrics(step, {"loss": loss})
    assert steps(store) == {1: 1.0, 2: 1.0, 3: 0.5}


def test_events_of_all_launches_are_kept(store: Store) -> None:
    clock = Clock()
    with journal(store, "01-a", clock) as first:
        first.event("divergence", step=7, message="the loss is not finite", skipped=[5, 9])
    with journal(store, "02-b", clock) as second:
        second.event("sample", step=2, message="text")
    events = JournalReader(store, RUN).history("base").events
    assert [(e.kind, e.step, e.launch) for e in events] == [("divergence", 7, "01-a"), ("sample", 2, "02-b")]
    assert events[0].data == {"skipped": [5, 9]}


def test_lines_that_cannot_be_read_are_passed_over(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    good = b'{"step":1,"time":1.0,"metrics":{"loss":2.0}}'
    bad = [
        b"[]", b"[" * 10_000, b'"\\ud800"', b"\xff", b'{"step":2,"time":1e300,"metrics":{"loss":1}}',
        b'{"step":2e99,"time":1,"metrics":{"loss":1}}', b'{"step":2,"time":1,"metrics":{"loss":"x"}}',
        b'{"step":2,"time":1,"metrics":[]}', b'{"time":1}', b'{"time":1,"event":"x","data":3}', b'{"step":2,"ti',
    ]  # fmt: skip
    store.write(f"{RUN}/metrics/base/01-a/000000.jsonl", b"\n".join([good, *bad]))
    store.write(f"{RUN}/metrics/base/01-a/000001.jsonl", b" " * (PIECE + 1))
    assert steps(store) == {1: 2.0}
    (told,) = caplog.messages
    assert "in 2 of its pieces" in told and "000000.jsonl'" in told and "lines that are no records" in told


def line(step: int, **values: float) -> bytes:
    return json.dumps({"step": step, "time": 1.0, "metrics": values}).encode() + b"\n"


EVENT = json.dumps({"event": "e", "time": 1.0, "message": "x" * 100}).encode() + b"\n"


@pytest.mark.parametrize(
    ("room", "read", "events"),
    [(_Room(), 8, 3), (_Room(values=10), 5, 3), (_Room(events=200), 8, 1), (_Room(bytes=700), 4, 3)],
)
def test_what_a_run_has_too_much_of_is_passed_over(
    store: Store, caplog: pytest.LogCaptureFixture, room: _Room, read: int, events: int
) -> None:
    for piece in range(2):
        lines = b"".join(line(4 * piece + step, loss=1.0) for step in range(4))
        store.write(f"{RUN}/metrics/base/01-a/00000{piece}.jsonl", (lines if piece else EVENT * 3 + lines))
    reader = JournalReader(store, RUN)
    reader._room = room
    for _ in range(2):
        history = reader.history("base")
        assert [point.step for point in history.metrics["loss"]] == [*range(read)]
        assert len(history.events) == events
    assert ["the journal has more than is read" in message for message in caplog.messages] == [True] * room.full
    assert room.full is (read + events < 11)


def test_a_piece_of_something_else_is_not_read_to_its_end(store: Store) -> None:
    folder = f"{RUN}/metrics/base/01-a"
    store.write(f"{folder}/000000.jsonl", line(1, loss=1.0) + b"[]\n" * SENSELESS + line(2, loss=1.0))
    store.write(f"{folder}/000001.jsonl", line(3, **{f"n{number}": 1.0 for number in range(MOST_NAMES)}))
    history = JournalReader(store, RUN).history("base")
    assert [point.step for point in history.metrics["loss"]] == [1]
    assert len(history.metrics) == MOST_NAMES


def test_what_is_no_path_or_no_file_is_passed_over(tmp_path: Path, store: Store) -> None:
    store.write(f"{RUN}/metrics/base/01-a/000000.jsonl", line(1, loss=1.0))
    folder = Path(store.root) / RUN / "metrics/base/01-a"
    for name in ("a\\b.jsonl", "\x1b[2J.jsonl"):
        (folder / name).write_bytes(line(2, loss=1.0))
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "zeros.jsonl").symlink_to("/dev/zero")
    assert steps(store) == {1: 1.0}


def test_pieces_are_read_once(store: Store) -> None:
    clock = Clock()
    log = journal(store, "01-a", clock)
    log.metrics(1, {"loss": 1.0})
    log.flush()
    reader = JournalReader(store, RUN)
    assert len(reader.history("base").metrics["loss"]) == 1
    store.write(f"{RUN}/metrics/base/01-a/000000.jsonl", b"")  # pieces never change, so this is not seen
    log.metrics(2, {"loss": 1.0})
    log.close()
    assert [point.step for point in reader.history("base").metrics["loss"]] == [1, 2]
    assert reader.stages() == ("base",)


class FullStore:
    """A store that refuses to write until it is told otherwise."""

    def __init__(self) -> None:
        self.full = True
        self.pieces: list[bytes] = []

    def write(self, path: str, data: bytes) -> None:
        if self.full:
            raise StorageError("the store is full")
        self.pieces.append(data)


def test_what_cannot_be_written_is_written_later(caplog: pytest.LogCaptureFixture) -> None:
    full: Any = FullStore()
    log = journal(full, "01-a", Clock())
    log.metrics(1, {"loss": 1.0})
    with pytest.raises(StorageError):
        log.flush()
    log._try_flush()
    log._try_flush()
    assert len(caplog.records) == 1
    log.metrics(2, {"loss": 1.0})
    full.full = False
    log.close()
    records = [json.loads(line) for piece in full.pieces for line in piece.decode().splitlines()]
    assert [record["step"] for record in records] == [1, 2]


def test_it_is_written_in_the_background(tmp_path: Path) -> None:
    store = open_store(Profile(root=str(tmp_path)))
    log = Journal(store, RUN, stage="base", launch="01-a", interval=0.01)
    log.metrics(1, {"loss": 1.0})
    for _ in range(1000):
        if store.list(f"{RUN}/metrics"):
            break
        log._ticker._thread.join(0.01)  # type: ignore[union-attr]
    log.close()
    assert steps(store) == {1: 1.0}


# One launch is (first step, number of steps); launch i logs the value i at each of its steps.
launches = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=6)


@given(launches)
def test_the_lineage_is_that_of_a_run_that_resumed(runs: list[tuple[int, int]]) -> None:
    """A list that each launch cuts at its first step and goes on with is the model of the merge."""
    records, model = {}, {}
    for number, (first, count) in enumerate(runs):
        covered = range(first, first + count)
        records[f"launch-{number}"] = [
            {"time": 100.0 * number + i, "step": step, "metrics": {"loss": number}} for i, step in enumerate(covered)
        ]
        if count:
            model = {step: value for step, value in model.items() if step < first} | dict.fromkeys(covered, number)
    history = merge(records)
    assert {point.step: point.value for point in history.metrics.get("loss", ())} == model
    assert len(history.launches) == sum(count > 0 for _, count in runs)
    series = [point.step for point in history.metrics.get("loss", ())]
    assert series == sorted(set(series))


@given(launches)
def test_merging_again_changes_nothing(runs: list[tuple[int, int]]) -> None:
    records = {
        f"launch-{number}": [
            {"time": 100.0 * number + i, "step": first + i, "metrics": {"loss": number}} for i in range(count)
        ]
        for number, (first, count) in enumerate(runs)
    }
    once = merge(records)
    merged = [
        {"time": point.time, "step": point.step, "metrics": {"loss": point.value}}
        for point in once.metrics.get("loss", ())
    ]
    assert merge({"launch": merged}).metrics == once.metrics
