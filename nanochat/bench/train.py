"""`nanochat bench train`: a training step of this project against the machine's bound and, if there is one, a peer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from nanochat.bench.figures import Measured, Spread
from nanochat.bench.measurement import Measurement, compare, machine_table, measure_machine, ours, ratio_tables, theirs
from nanochat.bench.shapes import describe
from nanochat.bench.tables import Table, bytes_, costs, number, percent, seconds
from nanochat.bench.workers import Workers, take_turns

STAGES = ("base", "sft", "rl")


def measure_train(asked: Measurement, *, stage: str, steps: int) -> dict[str, Any]:
    """Measure the machine, then steps in turns -> the document for programs."""
    contenders = [*ours(asked, stage=stage, steps=steps), *theirs(asked, stage=stage, steps=steps)]
    with Workers() as workers:
        machine = measure_machine(asked, workers)
        found = take_turns([contender.start(workers) for contender in contenders], rounds=asked.rounds, warm=1)
    return {
        "bench": "train",
        "stage": stage,
        "shape": describe(asked.spec),
        "processes": asked.processes,
        "machine": machine,
        "measured": [item.to_dict() | derived(item, machine["bound"]) for item in found],
        "times_faster": compare(found),
    }


def derived(item: Measured, bound: float) -> dict[str, Any]:
    """Figures that follow from those of each round."""
    flops = [given["flops"] / given["seconds"] / bound for given in item.rounds]
    waited, exposed = (
        [given.get(name, 0.0) / given["seconds"] for given in item.rounds] for name in ("waited", "exposed")
    )  # another project's process waits for nobody
    return {
        "tokens_per_second": asdict(item.rate("tokens")),
        "flops_per_second": asdict(item.rate("flops")),
        "flop_utilisation": asdict(Spread.of(flops)),
        "waiting_for_others": asdict(Spread.of(waited)),
        "communication_not_hidden": asdict(Spread.of(exposed)),
        "tokens_per_cpu_second": asdict(item.rate("tokens", "cpu_seconds")),
    }


def train_tables(document: Mapping[str, Any]) -> list[Table]:
    """The document for people."""
    together = ("waiting_for_others", "communication_not_hidden") if document["processes"] > 1 else ()
    rows = [
        [
            item["name"],
            seconds(item["figures"]["seconds"], each=item["figures"]["steps"]["median"]),
            number(item["tokens_per_second"]),
            percent(item["flop_utilisation"]),
            *[percent(item[name]) for name in together],
            seconds(item["figures"]["cpu_seconds"], each=item["figures"]["steps"]["median"]),
            bytes_(item["figures"]["peak_memory"]),
            number(item["figures"]["minor_faults"]),
        ]
        for item in document["measured"]
    ]
    names = [name.replace("_", " ") for name in together]
    head = ["", "a step", "tokens/s", "of the bound", *names, "CPU time", "peak memory", "page faults"]
    largest = [[item["name"], costs(item["costs"])] for item in document["measured"]]
    tables = [
        machine_table(document["machine"]),
        Table(f"A step of {document['stage']}", head, rows),
        Table("Largest costs of a step", ["", "share of the time"], largest),
    ]
    return tables + ratio_tables(document, "Tokens a second, round by round")
