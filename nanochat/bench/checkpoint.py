"""`nanochat bench checkpoint`: what it takes to save the state of training, and how long the loop waits for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nanochat.bench.measurement import (
    Contender,
    Measurement,
    machine_table,
    measure_machine,
    peer_checkpoint,
)
from nanochat.bench.shapes import describe
from nanochat.bench.tables import Table, bytes_, percent, seconds
from nanochat.bench.workers import Workers, take_turns

INTERVAL = 60.0  # seconds between two saves, for which shares are told
FIGURES = (
    ("copy to host memory", "copy_seconds"),
    ("write as a file", "write_seconds"),
    ("hash, bring to the store", "store_seconds"),
    ("the loop waits", "wait_seconds"),
    ("all of it under training", "save_seconds"),
    ("what it costs the loop in all", "extra_seconds"),
    ("a step, for comparison", "step_seconds"),
)


def measure_checkpoint(asked: Measurement) -> dict[str, Any]:
    """Measure the machine, then saves in turns -> the document for programs."""
    folder = asked.profile.work
    folder.mkdir(parents=True, exist_ok=True)
    task = {"module": "states", "folder": str(folder), "profile": asked.profile.profile_dict()}
    contenders = [
        Contender("ours", {**task, "shape": asked.shape.to_dict()}, asked.variables),
        *peer_checkpoint(asked, str(folder)),
    ]
    with Workers() as workers:
        machine = measure_machine(asked, workers)
        found = take_turns([each.start(workers) for each in contenders], rounds=asked.rounds, profile=False)
    return {
        "bench": "checkpoint",
        "shape": describe(asked.spec),
        "machine": machine,
        "measured": [item.to_dict() for item in found],
        "times_faster": [],
    }


def checkpoint_tables(document: Mapping[str, Any]) -> list[Table]:
    """The document for people."""
    tables = [machine_table(document["machine"])]
    for item in document["measured"]:
        figures = item["figures"]
        rows = [["state", bytes_(figures["bytes"])]]
        rows += [[words, seconds(figures[name])] for words, name in FIGURES if name in figures]
        for words, name in (("loop waits", "wait_seconds"), ("costs in all", "extra_seconds")):
            if name in figures:
                share = {key: figures[name][key] / INTERVAL for key in ("median", "low", "high")}
                rows.append([f"{words}, of {INTERVAL:.0f} s between saves", percent(share)])
        if "wait_seconds" not in figures:
            rows.append(["the loop waits", seconds(figures["seconds"])])
        tables.append(Table(f"A save: {item['name']}", ["", ""], rows))
    return tables
