"""`nanochat eval MODEL --tasks ...`: any model measured at any time; what was stopped goes on where it was."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nanochat.cli import options
from nanochat.cli.models import find_model
from nanochat.cli.options import Model, Set, Stage, Store, option
from nanochat.cli.warned import Warned
from nanochat.pipeline.profiles import resolve_profile
from nanochat.runtime.threads import settle
from nanochat.spec.bounds import PATH, integer, path, real, text
from nanochat.spec.errors import UserError
from nanochat.spec.load import apply_override, check_pipeline

MOST_TASKS = 64


def evaluate(
    tasks: Annotated[
        str, option(text(PATH), "--tasks", help="Tasks with commas between them, such as core,gsm8k,arc-easy.")
    ],
    model: Model = None,
    stage: Stage = None,
    out: Annotated[
        Path | None, option(path, help="Folder of the results; by default one by the model and the settings.")
    ] = None,
    rows: Annotated[int | None, option(integer(1, 10**9), help="Most items of each task; by default all.")] = None,
    samples: Annotated[int, option(integer(1, 256), help="Answers to each problem, for pass@k.")] = 1,
    temperature: Annotated[float, option(real(0, 10), help="Temperature of answers; 0 takes the likeliest token.")] = 0,
    top_k: Annotated[int, option(options.top_k, help="Likeliest tokens that are drawn from; 0 means all.")] = 50,
    max_tokens: Annotated[int, option(options.max_tokens, help="Longest answer, in tokens.")] = 512,
    batch_size: Annotated[int, option(integer(1, 65_536), help="Rows that are computed together.")] = 32,
    set_: Set = None,
    store: Store = "default",
) -> None:
    """Measure a model on tasks. Stopped, it goes on where it was; with more tasks or rows it adds these."""
    settle()
    from nanochat.stages.standalone import CORE, measure

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not 0 < len(names) <= MOST_TASKS:
        raise UserError(f"--tasks names {len(names)} tasks: name 1 to {MOST_TASKS}")
    chat: dict[str, Any] = {
        "maxPerTask": rows, "samples": samples, "temperature": temperature, "topK": top_k or None,
        "maxNewTokens": max_tokens, "deviceBatchSize": batch_size,
    }  # fmt: skip
    if chosen := [{"task": name} for name in names if name != CORE]:
        chat["tasks"] = chosen
    base = {"coreMaxPerTask": rows, "deviceBatchSize": batch_size}
    data: dict[str, Any] = {
        "apiVersion": "nanochat.dev/v1alpha1", "kind": "ChatPipeline", "metadata": {"name": "eval"},
        "spec": {"stages": {"evalBase": base, "evalChat": chat}},
    }  # fmt: skip
    for override in set_ or []:
        apply_override(data, override)
    pipeline = check_pipeline(data, where="nanochat eval")
    folder = find_model(model, stage=stage, store=store)
    bar = Progress(
        TextColumn("items"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    )
    with Warned(lambda text: bar.console.print(text, markup=False, highlight=False, soft_wrap=True)), bar:
        shown = bar.add_task("items", total=None)
        place, results = measure(
            folder,
            names,
            pipeline,
            resolve_profile(store),
            out=out,
            tick=lambda done, total: bar.update(shown, completed=done, total=total),
        )
    print(*results.lines(), sep="\n")
    print(f"The results and all items are in {place}; compare them: nanochat compare {place} ...", file=sys.stderr)
