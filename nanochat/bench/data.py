"""`nanochat bench data`: tokens that loaders and tokenizer give a second, against those that training takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from nanochat.bench.figures import times_faster
from nanochat.bench.measurement import (
    Contender,
    Measurement,
    compare,
    machine_table,
    measure_machine,
    ours,
    peer_loader,
    ratio_tables,
)
from nanochat.bench.shapes import describe
from nanochat.bench.tables import Table, number
from nanochat.bench.workers import Workers, take_turns

SOURCES = ("loader of base", "loader of sft", "tokenizer")


def measure_data(asked: Measurement) -> dict[str, Any]:
    """Measure the machine, then training and what feeds it in turns -> the document for programs."""
    shape = asked.shape.to_dict()
    sources = [
        Contender(
            name, {"module": "loading", "source": name, "shape": shape, "threads": asked.threads}, asked.variables
        )
        for name in SOURCES
    ]
    training = next(iter(ours(asked, stage="base", steps=1)))
    contenders = [*sources, *peer_loader(asked), training]
    with Workers() as workers:
        machine = measure_machine(asked, workers)
        found = take_turns([each.start(workers) for each in contenders], rounds=asked.rounds, profile=False)
    *sides, trained = found
    return {
        "bench": "data",
        "shape": describe(asked.spec),
        "machine": machine,
        "measured": [item.to_dict() | {"tokens_per_second": asdict(item.rate("tokens"))} for item in found],
        "times_faster": [
            comparison for side in sides for comparison in compare([side, trained], times_faster, side.name)
        ],
    }


def data_tables(document: Mapping[str, Any]) -> list[Table]:
    """The document for people."""
    rates = [[item["name"], number(item["tokens_per_second"])] for item in document["measured"]]
    title = "Tokens given for each that is taken, round by round"
    return [
        machine_table(document["machine"]),
        Table("Tokens that are given and taken", ["", "tokens/s"], rates),
        *ratio_tables(document, title),
    ]
