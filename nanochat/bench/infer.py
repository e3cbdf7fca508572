"""`nanochat bench infer`: prompts and answers of the engine against the speed of memory, and against a peer.

The peer is another commit of this project, or the transformers package with the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from nanochat.bench.figures import Measured, Spread, times_faster
from nanochat.bench.measurement import Contender, Measurement
from nanochat.bench.shapes import describe
from nanochat.bench.tables import Table, percent, seconds, times
from nanochat.bench.workers import Workers, take_turns
from nanochat.spec.errors import UserError

ROWS = (1, 2, 4, 8, 16)  # that are decoded at once
SLOTS = 8  # of a server
BOUND = "weights read once"


def measure_infer(asked: Measurement, *, tokens: int, package: bool) -> dict[str, Any]:
    """Let this project and the peer, or the transformers `package`, answer in turns -> the document for programs."""
    prompt = asked.spec.model.sequence_length // 2
    if tokens + 64 > prompt:
        raise UserError(
            f"--tokens {tokens}: a context of {2 * prompt} tokens holds less; "
            "ask for fewer, or set a larger model.sequenceLength"
        )
    with Workers() as workers:
        started = [
            contender.start(workers) for contender in contenders(asked, prompt=prompt, tokens=tokens, package=package)
        ]
        found = take_turns(started, rounds=asked.rounds, warm=0, profile=False)
    work = [name for name in found[0].rounds[0] if f"{name}, cpu" in found[0].rounds[0]]
    pairs = [(other, name) for other in found[1:] for name in work if name in other.rounds[0]]
    return {
        "bench": "infer",
        "shape": describe(asked.spec),
        "prompt": prompt,
        "tokens": tokens,
        "measured": [item.to_dict() | {"of_the_bound": of_the_bound(item, tokens)} for item in found],
        "times_faster": [
            {
                "work": name,
                "second": other.name,
                "seconds": asdict(times_faster(found[0], other, over="once", under=name)),
                "cpu_seconds": asdict(times_faster(found[0], other, over="once", under=f"{name}, cpu")),
            }
            for other, name in pairs
        ],
    }


def contenders(asked: Measurement, *, prompt: int, tokens: int, package: bool) -> Iterator[Contender]:
    """This project, and its peer."""
    task = {
        "module": "generation", "shape": asked.shape.to_dict(), "prompt": prompt, "tokens": tokens,
        "rows": ROWS, "slots": SLOTS,
    }  # fmt: skip
    yield Contender("ours", task, asked.variables)
    if package:
        yield Contender("transformers", task | {"module": "transformers_peer"}, asked.variables)
    if asked.peer is None:
        return
    if not asked.peer.own:
        raise UserError(
            f"--peer {asked.peer.root} is another project, whose engine is not measured: name a checkout of "
            "this one, or transformers"
        )
    yield Contender(asked.peer.name, task | {"root": str(asked.peer.root)}, asked.variables)


def of_the_bound(item: Measured, tokens: int) -> dict[str, dict[str, Any]]:
    """Of what decodes: the time that its weights take to be read once for each token, of the time that it took."""
    return {
        name: asdict(Spread.of([tokens * given[BOUND] / given[name] for given in item.rounds]))
        for name in item.rounds[0]
        if name.startswith("decode") and not name.endswith("cpu")
    }


def infer_tables(document: Mapping[str, Any]) -> list[Table]:
    """The document for people."""
    tables = []
    for item in document["measured"]:
        figures, bound = item["figures"], item["of_the_bound"]
        rows = [
            [name, seconds(spread), seconds(figures[f"{name}, cpu"]), percent(bound[name]) if name in bound else ""]
            for name, spread in figures.items()
            if f"{name}, cpu" in figures
        ]
        title = f"{item['name']}: a prompt of {document['prompt']:,} tokens, {document['tokens']} tokens of each row"
        tables.append(Table(title, ["", "time", "CPU time", "of the bound"], rows))
    ratios = [
        [f"{item['work']} / {item['second']}", times(item["seconds"]), times(item["cpu_seconds"])]
        for item in document["times_faster"]
    ]
    if ratios:
        tables.append(Table("Times as fast, round by round", ["", "by the clock", "by CPU time"], ratios))
    return tables
