"""All that measurements have in common: their options, the machine, and who takes turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nanochat.bench.checkout import Checkout
from nanochat.bench.figures import Measured, Spread, times_faster
from nanochat.bench.shapes import Shape, batch
from nanochat.bench.tables import Table, times
from nanochat.bench.workers import Worker, Workers, asleep
from nanochat.pipeline.profiles import ResolvedProfile
from nanochat.pipeline.resolve import model_config
from nanochat.runtime.compiler import cxx_compiler
from nanochat.spec.errors import UserError
from nanochat.spec.pipeline import PipelineSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The options of every measurement: the shape, how often, on how many threads, against whom, with which store."""

    shape: Shape
    spec: PipelineSpec  # of the shape
    rounds: int
    threads: int
    peer: Checkout | None
    profile: ResolvedProfile
    processes: int = 1  # that train together

    @property
    def variables(self) -> dict[str, str]:
        """The environment of this project's processes, which wait asleep."""
        return asleep(self.threads)


@dataclass(frozen=True, slots=True)
class Contender:
    """One of those that take turns."""

    name: str
    task: Mapping[str, Any]
    variables: Mapping[str, str]
    processes: int = 1

    def start(self, workers: Workers) -> Worker:
        return workers.start(self.name, self.task, self.variables, processes=self.processes)


def measure_machine(asked: Measurement, workers: Workers) -> dict[str, Any]:
    """The bounds that all else is measured against."""
    _, rows, length = batch(asked.spec)
    task = {
        "module": "machine",
        "model": model_config(asked.spec).to_dict(),
        "rows": rows * length,
        "precision": asked.spec.stages.base.precision,
        "folder": str(asked.profile.cache),
        "profile": asked.profile.profile_dict(),
    }
    return workers.start("the measurement of the machine", task, asked.variables).answer()


def ours(asked: Measurement, *, stage: str, steps: int) -> Iterator[Contender]:
    """This project: base compiled and eager, the others as they come, with rows of many widths."""
    for name, compile_ in modes(stage):
        task = own_task(asked.shape, stage, steps, compile_)
        yield Contender(f"ours, {name}", task, asked.variables, asked.processes)


def modes(stage: str) -> Sequence[tuple[str, str]]:
    """How a stage is run: its name and the setting `compile`."""
    eager = ("eager", "never")
    return (("compiled", "always"), eager) if stage == "base" and cxx_compiler() else (eager,)


def own_task(shape: Shape, stage: str, steps: int, compile_: str) -> dict[str, Any]:
    """A task for `steps.py`, with no checkpoint in between."""
    changed = [f"stages.{stage}.compile={compile_}", f"stages.{stage}.checkpointEverySeconds=null"]
    shape = Shape(shape.file, (*shape.overrides, *changed))
    return {"module": "steps", "shape": shape.to_dict(), "stage": stage, "steps": steps}


def theirs(asked: Measurement, *, stage: str, steps: int) -> Iterator[Contender]:
    """The peer: another commit of this project like ours, karpathy's as shipped and in bf16."""
    peer, plain = asked.peer, {"OMP_NUM_THREADS": str(asked.threads)}
    if peer is None:
        return
    root = str(peer.root)
    if peer.own:
        for name, compile_ in modes(stage):
            task = own_task(asked.shape, stage, steps, compile_) | {"root": root}
            yield Contender(f"{peer.name}, {name}", task, asked.variables, asked.processes)
        return
    if asked.processes > 1:
        raise UserError(
            "--processes: a peer of another project is measured in one process only: leave out --peer or --processes"
        )
    if stage != "base":
        raise UserError(
            f"--stage {stage}: a peer of another project is measured in base only: leave out --peer or --stage"
        )
    if not cxx_compiler():
        raise UserError("--peer compiles its model, and there is no C++ compiler here: install g++, or set CXX to one")
    task = {"module": "peer", "measure": "steps", "root": root, **shape_of(asked)}
    yield Contender(f"{peer.name}, as shipped", task, plain)
    yield Contender(f"{peer.name}, bf16", task, {**plain, "NANOCHAT_DTYPE": "bfloat16"})


def peer_loader(asked: Measurement) -> Iterator[Contender]:
    """The loader of a peer of another project, which makes its tokens while it trains."""
    if peer := another_project(asked):
        task = {"module": "peer", "measure": "loader", "root": str(peer.root), **shape_of(asked)}
        yield Contender(f"{peer.name}, loader", task, {"OMP_NUM_THREADS": str(asked.threads)})


def peer_checkpoint(asked: Measurement, folder: str) -> Iterator[Contender]:
    """The checkpoints of a peer of another project, in a folder of this machine."""
    if peer := another_project(asked):
        task = {"module": "peer", "measure": "checkpoint", "root": str(peer.root), "folder": folder}
        yield Contender(peer.name, task | shape_of(asked), {"OMP_NUM_THREADS": str(asked.threads)})


def another_project(asked: Measurement) -> Checkout | None:
    """The peer, if there is one; UserError where it is another commit of this project."""
    if asked.peer is not None and asked.peer.own:
        raise UserError(
            f"--peer {asked.peer.root} is a commit of this project, which only `nanochat bench train` and "
            "`nanochat bench startup` measure: leave out --peer, or name a checkout of karpathy/nanochat"
        )
    return asked.peer


def shape_of(asked: Measurement) -> dict[str, Any]:
    """The shape as another project's code is told it."""
    return {"model": model_config(asked.spec).to_dict(), "batch": batch(asked.spec)}


def compare(
    found: Sequence[Measured], ratio: Callable[..., Spread] = times_faster, first: str = "ours"
) -> list[dict[str, Any]]:
    """Each whose name begins with `first` against each of the others, by the clock and by CPU time."""
    mine = [item for item in found if item.name.startswith(first)]
    return [
        {
            "first": item.name,
            "second": other.name,
            "seconds": asdict(ratio(item, other)),
            "cpu_seconds": asdict(ratio(item, other, under="cpu_seconds")),
        }
        for item in mine
        for other in found
        if other not in mine
    ]


def ratio_tables(document: Mapping[str, Any], title: str) -> list[Table]:
    """The comparisons of a document for people; none where nothing was compared."""
    rows = [
        [f"{item['first']} / {item['second']}", times(item["seconds"]), times(item["cpu_seconds"])]
        for item in document["times_faster"]
    ]
    return [Table(title, ["", "by the clock", "by CPU time"], rows)] if rows else []


def machine_table(machine: Mapping[str, Any]) -> Table:
    """The bounds."""
    products = [[f"products, {name}", f"{rate / 1e9:,.0f} GFLOP/s"] for name, rate in machine["products"].items()]
    rows = [
        *products,
        ["products of a step", f"{machine['bound'] / 1e9:,.0f} GFLOP/s"],
        *[[name, f"{machine[name] / 1e9:,.2f} GB/s"] for name in ("memory", "disk", "store")],
    ]
    title = f"The machine: {machine['device']}, {machine['precision']}, PyTorch {machine['torch']}"
    return Table(title, ["", "best of five"], rows)
