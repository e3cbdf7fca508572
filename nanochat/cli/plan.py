"""`nanochat plan` and `nanochat run --dry-run`: what a pipeline will take, without starting anything."""

from __future__ import annotations

import json
import textwrap
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from nanochat.cli.options import File, Set, option
from nanochat.pipeline.admission import admit_local
from nanochat.pipeline.devices import Devices
from nanochat.pipeline.forecast import Forecast, StageForecast, Target, devices_of
from nanochat.pipeline.initial_model import check_initial_model
from nanochat.pipeline.outputs import Outputs
from nanochat.pipeline.profiles import resolve_profile
from nanochat.pipeline.rates import learn
from nanochat.pipeline.work import Known
from nanochat.runtime.accelerators import ACCELERATORS, find_accelerator
from nanochat.spec.bounds import NAME, text
from nanochat.spec.errors import UserError
from nanochat.spec.load import load_pipeline
from nanochat.spec.pipeline import Pipeline
from nanochat.storage import Artifacts
from nanochat.storage.opening import open_store
from nanochat.tracking.quantities import count, duration, money, scientific, size

HEAD = ("STAGE", "STEPS", "TOKENS", "FLOPS", "TIME", "GPUS", "GPU H", "COST", "WHY")

Device = Annotated[
    str | None,
    option(text(NAME, "name"), "--device", help="GPU to reckon with: H100, A100, ...; by default this machine's."),
]
Json = Annotated[bool, typer.Option("--json", help="Print everything that is known, as JSON.")]


def plan(file: File, set_: Set = None, device: Device = None, json_: Json = False) -> None:
    """Tell what a pipeline will make, take and cost, without starting anything."""
    show(load_pipeline(file, set_), device=device, json_=json_)


def show(pipeline: Pipeline, *, device: str | None = None, here: bool = False, json_: bool = False) -> None:
    """Print the forecast of a pipeline as it declares itself, or of all of it on this machine."""
    admitted, resolved = admit_local(pipeline), resolve_profile(pipeline.spec.store)
    store = open_store(resolved.profile)
    artifacts = Artifacts(store, resolved.cache)
    check_initial_model(admitted.spec, admitted.graph, artifacts)
    outputs = Outputs(artifacts, admitted.graph)
    outputs.refresh()
    outputs.explain()
    rates, known = learn(store, artifacts), Known(artifacts, asks=True)
    if device and find_accelerator(device) is None and not rates.knows(device):
        names = ", ".join(item.name for item in ACCELERATORS)
        raise UserError(f"--device {device}: it is none of {names}, and no run in this store has used such a GPU")

    def forecast(target: Target) -> Forecast:
        return Forecast.of(admitted, outputs, rates=rates, target=target, known=known)

    target = Target.of(Devices.detect(), gpu=device, here=here, prices=resolved.prices)
    found = forecast(target)
    others = [(each.gpu, forecast(each)) for each in devices_of(target)] if found.gpu_hours and not here else []
    if json_:
        devices = [
            {"device": name, "seconds": f.seconds, "gpu_hours": f.gpu_hours, "cost": f.cost} for name, f in others
        ]
        print(json.dumps(found.to_dict() | {"devices": devices}, indent=1))
        return
    console = Console(highlight=False)
    _print(console, found)
    if others:
        _print_devices(console, others)


def _print(console: Console, found: Forecast) -> None:
    horizon, training = found.horizon, "no pretraining"
    if horizon["steps"]:
        shards = f"{horizon['shards']:,} shard{'' if horizon['shards'] == 1 else 's'} of text"
        training = (
            f"pretraining on {count(horizon['tokens'])} tokens in {horizon['steps']:,} steps ({shards}, "
            f"{scientific(horizon['flops'])} FLOPs)"
        )
    console.print(f"{found.name}: {count(horizon['parameters'])} parameters, {training}", soft_wrap=True)
    reasons = _print_stages(console, found)
    hours = f", {found.gpu_hours:,.1f} GPU hours" if found.gpu_hours else ""
    console.print(f"In all {duration(found.seconds)}{hours}, {money(found.cost)}", soft_wrap=True)
    kept = f", and {size(found.checkpoints)} of checkpoints while it trains" if found.checkpoints else ""
    console.print(f"To download {size(found.download)}, to store {size(found.stored)}{kept}", soft_wrap=True)
    if any(not (stage.measured or stage.cached) for stage in found.stages):
        console.print("* assumed: no run in this store has done this on such a device", soft_wrap=True)
    limits = [
        f"{limit:g} {unit}"
        for used, limit, unit in (
            (found.cost, found.budget["money"], "USD"), (found.gpu_hours, found.budget["gpuHours"], "GPU hours")
        )
        if limit is not None and used > limit
    ]  # fmt: skip
    if limits:
        console.print(f"That is more than the budget: {' and '.join(limits)}", soft_wrap=True)
    if reasons:
        console.print("Why they run:")
    for why, stages in reasons.items():
        line = f"  {', '.join(stages)}: {why}"
        wrapped = textwrap.wrap(
            line, console.width, subsequent_indent=" " * 4, break_long_words=False, break_on_hyphens=False
        )
        console.print("\n".join(wrapped), markup=False, soft_wrap=True)


def _print_stages(console: Console, found: Forecast) -> dict[str, list[str]]:
    """A line for each stage, without columns in which nothing stands. Returns why which stages run, where the terminal
    is too narrow for a column that says so."""
    rows, why = [HEAD, *map(_row, found.stages)], len(HEAD) - 1
    widths = {
        i: max(len(row[i]) for row in rows) for i in range(len(HEAD)) if i == 0 or any(row[i] for row in rows[1:])
    }
    reasons: dict[str, list[str]] = {}
    if sum(widths.values()) + 2 * len(widths) - 2 > console.width and widths.pop(why, None):
        for stage in found.stages:
            if stage.why:
                reasons.setdefault(stage.why, []).append(stage.stage)
    for row in rows:
        cells = (row[i].ljust(width) if i in (0, why) else row[i].rjust(width) for i, width in widths.items())
        console.print("  ".join(cells).rstrip(), markup=False, soft_wrap=True)
    return reasons


def _row(stage: StageForecast) -> tuple[str, ...]:
    if stage.cached:
        return (stage.stage, "", "", "", "cached ", "", "", "", "")
    work = stage.work
    return (
        stage.stage,
        f"{work.steps:,}" if work.steps else "",
        short(work.tokens) if work.tokens else "",
        scientific(work.flops) if work.flops else "",
        duration(stage.seconds) + (" " if stage.measured else "*"),
        str(stage.gpus or ""),
        f"{stage.gpu_hours:,.1f}" if stage.gpus else "",
        money(stage.cost) if stage.cost else "",
        stage.why,
    )


def short(value: float) -> str:
    """'7,473', '561M', '11.2B'."""
    for size_, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e5, "k")):
        if value >= size_:
            unit = 1e3 if letter == "k" else size_
            return f"{value / unit:.3g}{letter}"
    return f"{value:,.0f}"


def _print_devices(console: Console, others: list[tuple[str, Forecast]]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("GPU", "TIME", "GPU HOURS", "COST"):
        table.add_column(heading, justify="left" if heading == "GPU" else "right")
    for name, found in others:
        table.add_row(name, duration(found.seconds), f"{found.gpu_hours:,.1f}", money(found.cost))
    console.print(table)
