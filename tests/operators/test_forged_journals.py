"""Journals that a tenant forged: the run beside them is told to MLflow whole, and so is what makes sense of theirs."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from two_pipelines import FORGED, GIGABYTE, UIDS, WELL, TwoPipelines

from nanochat.tracking.mlflow import EXPERIMENT, RUN_TAG, STAGE_TAG, _digest
from operators.mlflow_sync import COMMAND, MlflowSync, Worker

MOST_GROWTH = 64 << 20  # bytes of the controller's memory
DATE = 1_800_000_000.0
SHORT = {name: {"enabled": False} for name in ("mid", "sft", "rl", "evalBase", "evalChat", "report", "release")}
NAMES = ["../x", "/etc/passwd", "a//b", "", ".", "x" * 300, "a\nb", "a\u0000b", "$(reboot)", "\u202egnp", "<b>", "a;b"]


def line(step: Any = 2, time: Any = DATE, **values: Any) -> bytes:
    return json.dumps({"step": step, "time": time, "metrics": values or {"loss": 1.0}}).encode() + b"\n"


def many(number: int, names: Callable[[int], str]) -> bytes:
    return line(**{names(index): 1.0 for index in range(number)})


NOT_JSON = b'{"step":2,"time":NaN,"metrics":{"loss":1}}\n{"step":2,"time":1,"metrics":{"loss":%b}}\n'
# name -> pieces below the folder of a launch, and what is said of them
JOURNALS: dict[str, tuple[dict[str, Any], str]] = {
    "no JSON": ({"1.jsonl": b"\x00\xff{]\n"}, "no records"),
    "a line that is cut": ({"1.jsonl": line()[:-9]}, "no records"),
    "no numbers": ({"1.jsonl": b"".join(NOT_JSON % word for word in (b"NaN", b"Infinity", b"1e400"))}, "no records"),
    "wrong types": ({"1.jsonl": line(step=[]) + line(loss={}) + line(loss=None) + b'[]\n"x"\n7\n'}, "no records"),
    "steps out of bounds": ({"1.jsonl": line(step=-1) + line(step=1 << 60) + line(step=1.5)}, "no records"),
    "dates out of bounds": ({"1.jsonl": line(time=-1) + line(time=1e300)}, "no records"),
    "dates to come": ({"1.jsonl": line(time=9e10)}, ""),
    "half a letter": ({"1.jsonl": '{"step":2,"time":1,"metrics":{"é'.encode()[:-1]}, "no records"),
    "zeros": ({"1.jsonl": bytes(100_000)}, "no records"),
    "deep": ({"1.jsonl": b"[" * 100_000}, "no records"),
    "a large line": ({"1.jsonl": many(40_000, "k{:08d}".format)}, "no records"),
    "a gigabyte": ({"1.jsonl": GIGABYTE}, "no records"),
    "many names": ({f"{i}.jsonl": many(9000, f"k{i}.{{}}".format) for i in range(1, 99)}, ""),
    "names that MLflow refuses": ({"1.jsonl": line(**dict.fromkeys(NAMES, 1.0))}, "no name that MLflow takes"),
    "the same step again and again": ({"1.jsonl": line() * 15_000}, ""),
    "steps that fall": ({f"{i}.jsonl": line(i + 9) + line(i) for i in range(1, 999)}, ""),
    "a hundred thousand empty lines": ({"1.jsonl": b"\n" * 100_000}, "no records"),
    "events of everything": (
        {f"{i}.jsonl": json.dumps({"event": "e", "time": 1, "data": {"l": [[]] * 60_000}}).encode() for i in range(40)},
        "more than is read",
    ),
    "names of files": ({"\x1b[2J.jsonl": line(), "a\\b.jsonl": line(), "..": None, "1.jsonl": line()}, "no records"),
    "links and pipes": ({"link.jsonl": "/dev/zero", "pipe.jsonl": "pipe", "1.jsonl": line()}, ""),
    "another's run": ({"1.jsonl": line(), "mlflow": "another's"}, ""),
}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the process that tells MLflow says."""
    return tmp_path_factory.mktemp("log") / "log"


@pytest.fixture(scope="module")
def worker(log: Path) -> Iterator[Worker]:
    found = Worker()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("operators.mlflow_sync.COMMAND", ("sh", "-c", f'exec "$0" "$@" 2>>{log}', *COMMAND))
        patch.setattr("operators.mlflow_sync.RUN_SECONDS", 600.0)  # a busy machine changes nothing
        yield found
    found.close()


class Site:
    """Two pipelines, both told to one MLflow."""

    def __init__(self, folder: Path, database: Path, worker: Worker, number: int) -> None:
        self.database, self.uri = database, f"sqlite:///{database}"
        uids = {name: f"{uid[:-3]}{number:03d}" for name, uid in UIDS.items()}
        self.two = TwoPipelines(folder, tracking=self.uri, stages=SHORT, uids=uids)
        self.shown = {WELL}  # to MLflow
        self.sync = MlflowSync(
            lambda: [run.snapshot for name, run in self.two.runs.items() if name in self.shown and run.snapshot]
        )
        self.sync.worker = worker
        for name in UIDS:
            root = self.two.paths(name).root
            for stage in ("dataset", "base"):
                lines = b"".join(line(step, **{"train/loss": 3.0 / step, "train/mfu": 0.5}) for step in range(1, 50))
                self.two.store.write(f"{root}/metrics/{stage}/01-a/000000.jsonl", lines)
            self.two.store.write(f"{root}/report/report.html", name.encode())

    def forge(self, pieces: dict[str, Any]) -> None:
        """Put pieces into the folder of another launch of the stage that runs."""
        folder = f"{self.two.paths().root}/metrics/dataset/02-b"
        target = self.two.folder / "store" / folder
        target.mkdir(parents=True)
        for name, content in pieces.items():
            if name == "mlflow":
                self.claim_anothers_run()
            elif content == "pipe":
                os.mkfifo(target / name)
            elif isinstance(content, str):
                (target / name).symlink_to(content)
            elif content is not None:
                self.two.forge(f"{folder}/{name}", content)

    def claim_anothers_run(self) -> None:
        """Say of the other's MLflow run that it is one's own, and that of one's stage."""
        uids = self.two.uids
        (theirs,) = self.ask("select run_uuid from tags where value = ?", uids[WELL])[0]
        (experiment,) = self.ask("select experiment_id from experiments where name = ?", EXPERIMENT)[0]
        for stage in ("", "dataset"):
            where = _digest([self.uri, str(experiment), {RUN_TAG: uids[FORGED], STAGE_TAG: stage}])[:16]
            self.two.forge(f"{self.two.paths().root}/mlflow/{where}.json", {"run": theirs})

    def ask(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        """Rows of MLflow's database: its library takes seconds to load."""
        with closing(sqlite3.connect(self.database)) as database:
            return database.execute(query, values).fetchall()

    def told(self, name: str) -> dict[str, Any]:
        """All that MLflow has of a pipeline's runs, without what differs from one test to the next."""
        found = {}
        for (run,) in self.ask("select run_uuid from tags where key = ? and value = ?", RUN_TAG, self.two.uids[name]):
            tags = dict(self.ask("select key, value from tags where run_uuid = ? and key != 'mlflow.parentRunId'", run))
            params = self.ask("select key, value from params where run_uuid = ? order by key", run)
            metrics = self.ask("select key, step, value, is_nan, timestamp from metrics where run_uuid = ?", run)
            ((title, status, address),) = self.ask(
                "select name, status, artifact_uri from runs where run_uuid = ?", run
            )
            files = sorted(Path(address.removeprefix("file://")).glob("report/*"))
            text = json.dumps([title, status, params, sorted(tags.items())])
            for varying in (str(self.two.folder), self.two.uids[name]):
                text = text.replace(varying, "")
            text = re.sub(r"01-[0-9a-z-]{8}", "LAUNCH", text)
            text = re.sub(r"it took \d+ s", "it took TIME", text)
            found[tags[STAGE_TAG]] = (text, sorted(metrics), [file.read_bytes() for file in files])
        return found


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow") / "mlflow.db"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, database: Path, worker: Worker) -> dict[str, Any]:
    """What MLflow is told of the other pipeline where nobody forges."""
    site = Site(tmp_path_factory.mktemp("undisturbed"), database, worker, 0)
    assert site.two.run_to_its_end(WELL) == "Succeeded"
    site.sync.round()
    told = site.told(WELL)
    assert len(told["base"][1]) == 98 and told[""][2] == [WELL.encode()] and "FINISHED" in told[""][0]
    return told


@pytest.mark.parametrize("kind", JOURNALS)
def test_the_run_beside_is_told_whole(
    kind: str, tmp_path: Path, database: Path, worker: Worker, undisturbed: dict[str, Any], log: Path
) -> None:
    site = Site(tmp_path, database, worker, 1 + [*JOURNALS].index(kind))
    for name in UIDS:
        site.two.reconcile(name)
    site.sync.round()
    process, before, heard = worker._process, psutil.Process().memory_info().rss, len(log.read_text())
    pieces, said = JOURNALS[kind]
    site.forge(pieces)
    theirs = {entry.path for entry in site.two.store.list(site.two.paths(WELL).root)}
    site.shown = {FORGED, WELL}
    site.sync.round()
    assert site.two.reconcile(FORGED)["phase"] == "Running" and site.two.run_to_its_end(WELL) == "Succeeded"
    site.sync.round()
    assert site.told(WELL) == undisturbed
    assert theirs <= {entry.path for entry in site.two.store.list(site.two.paths(WELL).root)}
    assert ("train/loss", 1, 3.0, 0, int(DATE * 1000)) in site.told(FORGED)["dataset"][1], "what makes sense is told"
    assert worker._process is process, "it has not ended over it"
    assert psutil.Process().memory_info().rss - before < MOST_GROWTH
    sentences = [json.loads(text)["message"] for text in log.read_text()[heard:].splitlines()]
    assert [said in text for text in sentences] == [True] * bool(said), sentences
