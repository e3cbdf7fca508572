"""The commands on a run of this machine, as its folder in the store tells it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nanochat.cli import listing, runs
from nanochat.cli.local_run import find_run
from nanochat.pipeline.lock import RunLock, lock_path
from nanochat.pipeline.profiles import resolve_profile
from nanochat.pipeline.runs import RunPaths
from nanochat.spec.errors import UserError
from nanochat.storage.folder import FolderStore
from nanochat.storage.opening import open_store
from nanochat.storage.store import Store

PATHS = RunPaths.of(namespace="default", name="demo", uid="0123")
Capture = pytest.CaptureFixture[str]


def stage(name: str, phase: str, **more: Any) -> dict[str, Any]:
    empty = {"message": "", "attempts": 1, "why": "", "warnings": [], "keys": {}, "started": 100.0, "ended": 142.0}
    return {"stage": name, "phase": phase, **empty, **more}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store of this machine's default profile, in a folder of its own and with no cluster to ask."""
    for name in ("NANOCHAT_ROOT", "NANOCHAT_ENDPOINT", "NANOCHAT_PROFILES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    monkeypatch.setenv("COLUMNS", "120")
    return open_store(resolve_profile().profile)


DECLARED = {"metadata": {"name": "demo"}, "spec": {}}


def tell(store: Store, phase: str, *stages: dict[str, Any], paths: RunPaths = PATHS) -> None:
    """Write the status of a run."""
    status = {"name": "demo", "namespace": "default", "phase": phase, "message": "", "horizon": {}, "pid": 1}
    store.write_json(paths.status, {**status, "stages": list(stages)})
    store.write_json(paths.pipeline, DECLARED)


def test_status_tells_of_stages_and_warnings(store: Store, capsys: Capture) -> None:
    damage = "step-0000100 is damaged and passed over"
    tell(
        store,
        "Running",
        stage("tokens", "Succeeded", why="changed: shards 1 -> 2"),
        stage("base", "Running", why="nothing like it", attempts=2, warnings=[damage]),
        stage("mid", "Waiting", message="waits for base", attempts=0, started=None, ended=None),
    )
    losses, rates = {"loss": 2.5}, {"tokens/s": 9.0}
    state = {"stage": "base", "launch": "02-a", "phase": "training", "step": 40, "total": 100, "eta": 60.0}
    store.write_json(f"{PATHS.progress('base')}/02-a.json", {**state, "losses": losses, "rates": rates})
    store.write_json(PATHS.attempt("base", 2), {"number": 2, "launch": "02-a"})
    runs.status()
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "demo: Stopped (the process that ran it is gone; go on with 'nanochat retry demo')",
        "STAGE PHASE ATTEMPTS TIME PROGRESS",
        "tokens Succeeded 1 42 s changed: shards 1 -> 2",
        "base Running 2 42 s training 40/100, loss 2.500, 9 tokens/s, 1 min left",
        "mid Waiting waits for base",
        f"warning: base: {damage}",
    ]


@pytest.mark.parametrize(
    ("phase", "message", "headline"),
    [
        ("Suspended", "suspended", "demo: Suspended"),
        ("Cancelled", "cancelled", "demo: Cancelled"),
        ("Failed", "base: it diverged", "demo: Failed, base: it diverged"),
        ("Succeeded", "", "demo: Succeeded"),
    ],
)
def test_the_headline_says_a_thing_once(store: Store, capsys: Capture, phase: str, message: str, headline: str) -> None:
    status = {"name": "demo", "namespace": "default", "phase": phase, "message": message, "horizon": {}, "stages": []}
    store.write_json(PATHS.status, status)
    store.write_json(PATHS.pipeline, DECLARED)
    runs.status()
    assert capsys.readouterr().out == f"{headline}\n"


def test_cancel_asks_the_runner_that_lives(store: Store, capsys: Capture) -> None:
    tell(store, "Running", stage("base", "Running"))
    with pytest.raises(UserError, match="'demo' is not running: it is Stopped"):
        runs.cancel("demo")
    with RunLock(lock_path(resolve_profile(), "default", "demo"), what="demo"):
        runs.cancel("demo.yaml")
    assert store.read_json(PATHS.control, 1 << 20) == {"cancel": True}
    said = "demo saves its checkpoints and stops; go on with it: nanochat retry demo\n"
    assert capsys.readouterr().out == said


def test_logs_of_a_reused_output_are_the_earlier_runs(store: Store, capsys: Capture) -> None:
    earlier = RunPaths.of(namespace="default", name="demo", uid="abcd")
    tell(store, "Succeeded", stage("base", "Succeeded"), paths=earlier)
    store.write(f"{earlier.logs('base', '01-a')}/rank0/000001", b"first\nsec")
    store.write(f"{earlier.logs('base', '01-a')}/rank0/000002", b"ond\n")
    tell(store, "Succeeded", stage("base", "Cached"))
    runs.logs("demo", "base")
    assert capsys.readouterr().out == "first\nsecond\n"


def test_a_profile_that_is_not_declared_is_not_looked_for_on_a_cluster(store: Store) -> None:
    with pytest.raises(UserError) as caught:
        runs.status("demo", store="team")
    assert "'team', which is not declared" in caught.value.message and "cluster" not in caught.value.message
    with pytest.raises(UserError, match="nothing has run in this store yet"):
        runs.status("demo")


OLDER = RunPaths.of(namespace="default", name="demo", uid="abcd0123")


def test_runs_are_listed_with_ids_that_other_commands_take(store: Store, capsys: Capture) -> None:
    tell(store, "Failed", stage("base", "Failed", ended=3700.0), paths=OLDER)
    tell(store, "Succeeded", stage("base", "Succeeded"), stage("mid", "Cached"))
    listing.runs()
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        "ID PIPELINE PHASE BEGAN TOOK STAGES WHERE",
        "0123 demo Succeeded 1970-01-01 00:01 UTC 42 s 2/2 cluster, namespace default",
        "abcd0123 demo Failed 1970-01-01 00:01 UTC 1 h 0/1 cluster, namespace default",
    ]
    for name in ("abcd0123", "abcd", "demo/abcd"):
        runs.status(name)
        assert capsys.readouterr().out.startswith("demo: Failed")
    listing.runs("demo", limit=1)
    assert capsys.readouterr().out.endswith("1 more: --limit 2\n")
    listing.runs("other")
    assert capsys.readouterr().out == "There is no run of 'other' in this store yet.\n"
    listing.runs(json_=True)
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == ["0123", "abcd0123"]


def test_an_older_run_has_its_own_logs_place_and_commands(store: Store, capsys: Capture) -> None:
    tell(store, "Succeeded", stage("base", "Succeeded", keys={"model/base": "k" * 32}), paths=OLDER)
    store.write(f"{OLDER.logs('base', '01-a')}/rank0/000001", b"older\n")
    tell(store, "Running", stage("base", "Running", keys={"model/base": "l" * 32}))
    store.write(f"{PATHS.logs('base', '01-a')}/rank0/000001", b"newer\n")
    runs.logs("abcd", "base")
    runs.logs("demo", "base")
    assert capsys.readouterr().out == "older\nnewer\n"
    older, newer = find_run("abcd"), find_run("demo")
    assert older.place != newer.place and older.command("report") == "nanochat report abcd0123"
    with RunLock(lock_path(resolve_profile(), "default", "demo"), what="demo"):
        assert find_run("demo").is_live and not find_run("abcd").is_live


def test_an_id_that_is_no_runs_or_several_runs_is_told(store: Store) -> None:
    for uid in ("abcd0123", "abcd4567"):
        tell(store, "Succeeded", paths=RunPaths.of(namespace="default", name="demo", uid=uid))
    with pytest.raises(UserError, match="2 runs have an id that begins like 'abcd': demo/abcd"):
        runs.status("abcd")
    with pytest.raises(UserError, match="no run of 'abc' in this store"):
        runs.status("abc")
    with pytest.raises(UserError, match="no run of 'other/abcd0' in this store"):
        runs.status("other/abcd0")


def test_a_listing_has_no_command_for_the_terminal(store: Store, capsys: Capture) -> None:
    status = {"name": "de\x1b[2Jmo", "namespace": "x\x07", "phase": "Run\u202ening", "message": "", "horizon": {}}
    store.write_json(PATHS.status, {**status, "stages": []})
    listing.runs()
    assert all(character.isprintable() for character in capsys.readouterr().out.replace("\n", ""))


def test_attempts_and_the_price_are_read_again_only_where_they_changed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    read = FolderStore.read
    monkeypatch.setattr(FolderStore, "read", lambda self, path, limit: reads.append(path) or read(self, path, limit))

    def costs(price: float, turn: int) -> None:
        store.write_json(PATHS.pipeline, {**DECLARED, "spec": {"cost": {"gpuHour": price}}})
        status = {"name": "demo", "namespace": "default", "phase": "Running", "turn": turn}
        store.write_json(PATHS.status, {**status, "stages": [stage("base", "Running")]})

    def looked() -> tuple[list[str], list[str]]:
        """The lines on the run after one look more, and what was read for them."""
        reads.clear()
        run.look()
        told = run.progress("base")
        lines = [*run.remarks(), told.text if told else "", *(event.text for event in run.events(9))]
        return lines, [path.removeprefix(f"{PATHS.root}/") for path in reads]

    costs(2.0, 1)
    attempt = {"number": 1, "launch": "02-a", "gpus": 8, "started": 0.0, "used": 1800.0}
    store.write_json(PATHS.attempt("base", 1), attempt)
    progress = {"stage": "base", "launch": "02-a", "phase": "training", "step": 4, "total": 9}
    store.write_json(f"{PATHS.progress('base')}/02-a.json", progress)
    run = find_run("demo")
    every = ["status.json", "progress/base/02-a.json"]
    first = ["4.0 GPU hours, 8.00 USD", "training 4/9", "base, attempt 1: started"]
    assert looked() == (first, ["status.json", "attempts/base/0001.json", "pipeline.json", "progress/base/02-a.json"])
    assert looked() == (first, every)

    store.write_json(f"{PATHS.progress('base')}/02-a.json", {**progress, "step": 5})
    assert looked()[0][1] == "training 5/9"
    ended = {"reason": "Error", "message": "it broke"}
    store.write_json(PATHS.attempt("base", 1), {**attempt, "ended": 5.0, "used": 3600.0, "outcome": ended})
    assert looked()[0] == ["8.0 GPU hours, 16.00 USD", "training 5/9", first[2], "base, attempt 1: Error: it broke"]
    store.write_json(PATHS.attempt("base", 2), {"number": 2, "launch": "02-b", "started": 6.0, "used": 0.0})
    assert looked()[0][1] == ""
    costs(3.0, 2)
    assert looked()[0][0] == "8.0 GPU hours, 24.00 USD"
    assert looked()[1] == ["status.json", "progress/base/02-b.json", "progress/base.json"]
