"""The files of a run's folder: what is written is read back, by whoever wrote it and by versions before."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanochat.pipeline import control
from nanochat.pipeline.admission import admit
from nanochat.pipeline.attempts import AttemptLog, AttemptRecord, read_attempts
from nanochat.pipeline.outcomes import Outcome, Reason
from nanochat.pipeline.planner import Observed, plan
from nanochat.pipeline.ref import ArtifactRef
from nanochat.pipeline.run_status import RunStatus, StatusFile, read_status
from nanochat.pipeline.runs import RunPaths
from nanochat.spec.errors import StorageError
from nanochat.spec.load import check_pipeline
from nanochat.storage import Profile, Store, open_store
from nanochat.tracking.progress import State, read_progress
from operators.attempts import JobAttempt

PATHS = RunPaths.of(namespace="team", name="demo", uid="uid-1")
ENDED = Outcome(Reason.INFRASTRUCTURE, "a peer was lost", rank=1, time=120.0)
RECORD = AttemptRecord(
    stage="base", number=2, started=100.0, device_batch_size=4, keys=("k1", "k2"), launch="02-aa", heartbeat=110.0,
    stopping="suspended", ended=120.0, outcome=ENDED, reached=7,
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(Profile(root=str(tmp_path)))


def test_records_come_back(store: Store) -> None:
    log = AttemptLog(store, PATHS, AttemptRecord)
    log.put(RECORD)
    log.put(replace(RECORD, number=1, ended=None, outcome=None, stopping=""))
    log.save()
    again = AttemptLog(store, PATHS, AttemptRecord).load()
    assert list(again.of("base")) == list(log.of("base"))
    assert again.last("base") == RECORD and [record.number for record in again.open()] == [1]
    assert again.reached("base", before=2) == 7 and again.reached("base", before=1) == 0
    assert read_attempts(store, PATHS, "base") == list(log.of("base"))


def test_only_what_changed_is_stored(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AttemptLog(store, PATHS, AttemptRecord)
    log.put(RECORD)
    log.save()
    written: list[str] = []
    monkeypatch.setattr(store, "write_json", lambda path, value: written.append(path))
    log.put(replace(RECORD, heartbeat=130.0))  # a sign of life is kept in memory alone
    log.save()
    assert written == []
    log.put(replace(RECORD, reached=8))
    log.save()
    assert written == [PATHS.attempt("base", 2)]


@pytest.mark.parametrize(
    ("kind", "old"),
    [
        (AttemptRecord, {"waiting": "", "stale": False, "stopping": True, "heartbeat": None, "launch": "01-aa"}),
        (JobAttempt, {"stage": "base", "job": "demo-1-base-1", "hosts": ["a"], "decided": {"reason": "Stalled"}}),
    ],
    ids=["of a runner", "of a controller"],
)  # fmt: skip
def test_records_of_the_first_version_are_read(store: Store, kind: type[AttemptRecord], old: dict[str, Any]) -> None:
    common = {"number": 1, "started": 100.0, "device_batch_size": 4, "ended": 120.0, "outcome": ENDED.to_dict()}
    store.write_json(PATHS.attempt("base", 1), common | old)
    record = AttemptLog(store, PATHS, kind).load().get("base", 1)
    assert (record.stage, record.number, record.outcome) == ("base", 1, ENDED)
    assert record.stopping == ("stopped" if old.get("stopping") else "")
    if isinstance(record, JobAttempt):
        assert record.hosts == ("a",) and record.decided == Outcome(Reason.STALLED)


@pytest.mark.parametrize(
    ("record", "processes"),
    [(RECORD, 1), (replace(RECORD, processes=3), 3), (JobAttempt(stage="base", number=1, nodes=2, processes=4), 8)],
    ids=["of before", "of a runner", "of a controller"],
)
def test_the_planner_knows_how_many_processes_share_a_step(record: AttemptRecord, processes: int) -> None:
    assert record.observed(stopping=False, silence=0.0).processes == processes


SENSELESS = [
    b"", b"[]", b"\xff", b'"\\ud800"', b'{"a": "\\ud800"}', b"[" * 100_000, b"{" + b" " * (2 << 20) + b"}", b"NaN",
    b'{"number": "x", "outcome": 3}', b'{"number": 1, "outcome": {"reason": "Bored"}}', b'{"number": -1}',
    b'{"number": 1, "started": 1e300}', b'{"number": 1, "started": 1e999}', b'{"number": 1' + b"0" * 400 + b"}",
    b'{"number": 1, "keys": "k"}', b'{"number": 1, "outcome": {"reason": "Stalled", "time": 1' + b"0" * 5000 + b"}}",
]  # fmt: skip


@pytest.mark.parametrize("text", SENSELESS)
def test_a_record_that_makes_no_sense(store: Store, text: bytes, caplog: pytest.LogCaptureFixture) -> None:
    store.write(PATHS.attempt("base", 1), text)
    AttemptLog(store, PATHS, AttemptRecord).put(RECORD)
    store.write_json(PATHS.attempt("base", 2), RECORD.to_dict())
    with caplog.at_level(logging.WARNING):
        assert read_attempts(store, PATHS, "base") == [RECORD], "the others are there"
        assert AttemptLog(store, PATHS, AttemptRecord).load().all() == [RECORD], "it stops no run"
    assert caplog.text.count("0001.json is passed over") == 2


def status() -> RunStatus:
    document = {"apiVersion": "nanochat.dev/v1alpha1", "kind": "ChatPipeline", "metadata": {"name": "demo"}}
    admitted = admit(check_pipeline(document | {"spec": {"sources": {"text": {"kind": "world"}}}}), {})
    _, planned = plan(admitted.graph, admitted.spec, Observed(present=frozenset()), 0.0)
    progress = {"dataset": State("dataset", "01-aa", warnings=("a file was damaged",))}
    attempts = [replace(RECORD, stage="dataset")]
    return RunStatus.of(admitted.pipeline, admitted.graph, planned, {"dataset": "new"}, progress, attempts)


def test_a_status_comes_back(store: Store) -> None:
    assert read_status(store, PATHS) is None
    StatusFile(store, PATHS).write(status())
    found = read_status(store, PATHS)
    assert found == status()
    dataset = found.of_stage("dataset") if found else None
    assert dataset is not None and dataset.warnings == ("a file was damaged",) and dataset.ended == 120.0
    assert found is not None and found.keys()[ArtifactRef.of("tokenizer", "bpe")]


def test_a_status_is_written_where_it_differs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    file = StatusFile(store, PATHS)
    assert file.differs(status())
    file.write(status())
    assert not file.differs(status())
    monkeypatch.setattr(store, "write", None)
    file.write(status())


@pytest.mark.parametrize("text", SENSELESS[:8])
def test_control_that_makes_no_sense_asks_for_nothing(
    store: Store, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store.write(PATHS.control, text)
    assert [control.is_cancelled(store, PATHS) for _ in range(2)] == [False, False]
    assert caplog.text.count("passed over") == 1, "it is said once"


@pytest.mark.parametrize("text", [*SENSELESS[:8], b'{"time": 1e300}', b'{"step": -1}', b'{"losses": {"loss": "x"}}'])
def test_progress_that_makes_no_sense_is_none(store: Store, text: bytes) -> None:
    store.write(f"{PATHS.progress('base')}/01-a.json", text)
    assert read_progress(store, PATHS.progress("base"), "01-a") is None


@pytest.mark.parametrize(
    "text",
    [
        *SENSELESS[:6],
        b'{"stages": [{"keys": {"no slash": "k"}}]}',
        b'{"stages": [{"stage": "base", "keys": {"model/base": "../.."}}]}',
        b'{"stages": 3}',
        b'{"stages": [{"stage": "base", "started": 1e18}]}',
    ],
)
def test_a_status_that_makes_no_sense(store: Store, text: bytes) -> None:
    store.write(PATHS.status, text)
    with pytest.raises(StorageError, match=r"status\.json"):
        read_status(store, PATHS)


def test_a_cancellation_is_asked_for_and_forgotten(store: Store) -> None:
    assert not control.is_cancelled(store, PATHS)
    control.ask_cancel(store, PATHS)
    assert control.is_cancelled(store, PATHS)
    control.forget(store, PATHS)
    assert not control.is_cancelled(store, PATHS)


@pytest.mark.parametrize("text", ["", "/", "kind", "kind/", "/name"])
def test_not_a_reference(text: str) -> None:
    with pytest.raises(ValueError, match="kind/name"):
        ArtifactRef.parse(text)


def test_a_reference_is_its_text() -> None:
    ref = ArtifactRef.parse("text/shard_00001")
    assert (ref.kind, ref.name, ref) == ("text", "shard_00001", ArtifactRef.of("text", "shard_00001"))
    assert {ref: 1} == {"text/shard_00001": 1}
