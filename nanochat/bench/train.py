"""`nanochat bench train`: a training step of this project against the machine's bound and, if there is one, a peer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nanochat.bench.figures import Measured, Spread, times_faster
from nanochat.bench.measurement import Measurement, machine_table, measure_machine, ours, theirs
from nanochat.bench.shapes import describe
from nanochat.bench.tables import Table, bytes_, costs, number, percent, seconds, times
from nanochat.bench.workers import Workers, take_turns

STAGES = ("base", "sft", "rl")


def measure_train(asked: Measurement, *, stage: str, steps: int) -> dict[str, Any]:
    """Measure the machine, then steps in turns -> the document for programs."""
    with Workers() as workers:
        machine = measure_machine(asked, workers)
        contenders = [*ours(asked, stage=stage, steps=steps), *theirs(asked, stage=stage, steps=steps)]
        found = take_turns([contender.start(workers) for contender in contenders], rounds=asked.rounds, warm=1)
    return {
        "bench": "train",
        "stage": stage,
        "shape": describe(asked.spec),
        "machine": machine,
        "measured": [item.to_dict() | derived(item, machine["bound"]) for item in found],
        "times_faster": comparisons(found),
    }


def derived(item: Measured, bound: float) -> dict[str, Any]:
    """Figures that follow from those of each round."""
    flops = [given["flops"] / given["seconds"] / bound for given in item.rounds]
    return {
        "tokens_per_second": asdict(item.rate("tokens")),
        "flops_per_second": asdict(item.rate("flops")),
        "flop_utilisation": asdict(Spread.of(flops)),
        "tokens_per_cpu_second": asdict(item.rate("tokens", "cpu_seconds")),
    }


def comparisons(found: Sequence[Measured]) -> list[dict[str, Any]]:
    """Each of ours against each of the others, by the clock and by CPU time."""
    return [
        {
            "first": first.name,
            "second": second.name,
            "seconds": asdict(times_faster(first, second)),
            "cpu_seconds": asdict(times_faster(first, second, under="cpu_seconds")),
        }
        for first in found
        if first.name.startswith("ours")
        for second in found
        if not second.name.startswith("ours")
    ]


def train_tables(document: Mapping[str, Any]) -> list[Table]:
    """The document for people."""
    rows = [
        [
            item["name"],
            seconds(item["figures"]["seconds"], each=item["figures"]["steps"]["median"]),
            number(item["tokens_per_second"]),
            percent(item["flop_utilisation"]),
            seconds(item["figures"]["cpu_seconds"], each=item["figures"]["steps"]["median"]),
            bytes_(item["figures"]["peak_memory"]),
            number(item["figures"]["minor_faults"]),
        ]
        for item in document["measured"]
    ]
    head = ["", "a step", "tokens/s", "of the bound", "CPU time", "peak memory", "page faults"]
    largest = [[item["name"], costs(item["costs"])] for item in document["measured"]]
    tables = [
        machine_table(document["machine"]),
        Table(f"A step of {document['stage']}", head, rows),
        Table("Largest costs of a step", ["", "share of the time"], largest),
    ]
    if document["times_faster"]:
        ratios = [
            [f"{item['first']} / {item['second']}", times(item["seconds"]), times(item["cpu_seconds"])]
            for item in document["times_faster"]
        ]
        tables.append(Table("Tokens a second, round by round", ["", "by the clock", "by CPU time"], ratios))
    return tables
