"""`nanochat compare A B`: the scores of two evaluations, item by item, with paired standard errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nanochat.cli.differences import differences
from nanochat.cli.local_run import SHORTEST_ID, LocalRun, find_run
from nanochat.cli.options import Store, argument, option
from nanochat.pipeline.profiles import resolve_profile
from nanochat.pipeline.ref import ArtifactRef
from nanochat.spec.bounds import PATH, integer, text
from nanochat.spec.errors import UserError
from nanochat.storage.artifacts import ROOT, Artifacts
from nanochat.storage.manifest import check_name
from nanochat.storage.opening import open_store
from nanochat.storage.store import Profile

KIND = "evaluation"
STAGES = ("rl", "sft", "mid", "base")

Evaluation = Annotated[
    str,
    argument(
        text(PATH),
        help="Pipeline's name, NAME/STAGE, the folder of 'nanochat eval --out', or the URI of an evaluation artifact.",
    ),
]


def compare(
    a: Evaluation,
    b: Evaluation,
    items: Annotated[int, option(integer(0, 100_000), "--items", help="Print this many items of another verdict.")] = 0,
    store: Store = "default",
) -> None:
    """Compare two runs, or two evaluations: settings, data and losses of runs, then all items, B less A.

    Differences of scores come with the standard errors of paired differences.
    """
    console = Console(highlight=False)
    one, two = (_run_of(name, store=store) for name in (a, b))
    if one is not None and two is not None:
        (first, stage), (second, other) = one, two
        for line in differences(first, second, stage=stage, width=console.width):
            console.print(line, markup=False, soft_wrap=True)
        lacking = [
            f"{run.name}/{made or 'any stage'}"
            for run, made in ((first, stage), (second, other))
            if made in ("", *STAGES) and not _measured(run, made)
        ]
        if lacking:
            print(f"Scores: none to compare, for there is no evaluation of {' and '.join(lacking)}")
            return
        print()
    from nanochat.evaluation.comparison import compare as pair
    from nanochat.evaluation.core import PREFIX
    from nanochat.evaluation.items import read_items

    found = pair(*(read_items(items_of(name, store=store)) for name in (a, b)))
    table = Table(box=None, pad_edge=False, show_edge=False)
    for head in ("", "A", "B", "B - A", "only A", "only B", "n"):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for name, task in found.tasks.items():
        of = task.difference
        table.add_row(
            Text(_printable(name)),
            *(f"{100 * score:.1f}" for score in (task.first, task.second)),
            f"{100 * of.value:+.1f} ± {100 * of.stderr:.1f}",
            *(f"{count:,}" for count in (task.only_first, task.only_second, of.n)),
        )
    core = [name for name in found.tasks if name.startswith(PREFIX)]
    for kind, names in (("core", core), ("chat", [name for name in found.tasks if name not in core])):
        if len(names) > 1:
            first, second, of = found.mean(names)
            scores = (f"{first:.4f}", f"{second:.4f}", f"{of.value:+.4f} ± {of.stderr:.4f}")
            table.add_row(f"{kind}, {len(names)} tasks above guessing", *scores, "", "", f"{of.n:,}")
    console.print(table)
    if found.single or found.other_questions:
        console.print(
            f"Left out: {found.single:,} items that only one of the two has, {found.other_questions:,} of which the "
            "questions differ.",
            markup=False,
        )
    for first, second in found.changed[:items]:
        console.print(f"\n{_printable(first.task)} {first.index}: ...{first.prompt[-200:]!r}", markup=False)
        console.print(f"  expected {first.expected[:200]!r}", markup=False)
        for name, item in (("A", first), ("B", second)):
            console.print(f"  {name} {100 * item.right:.0f} %: {item.answers[0][:200]!r}", markup=False)


def items_of(name: str, *, store: str) -> Path:
    """The local file of an evaluation's items; UserError where there is none."""
    from nanochat.evaluation.items import ITEMS

    if Path(name, ITEMS).is_file():
        return Path(name, ITEMS)
    resolved = resolve_profile(store)
    if "://" in name:
        root, mark, key = name.rstrip("/").rpartition(f"/{ROOT}/{KIND}/")
        key = key.partition("/")[0]
        try:
            check_name(key if mark and root else "")
        except ValueError:
            raise UserError(f"'{name}' is not an evaluation's address: it ends in {ROOT}/{KIND}/<key>") from None
        own = resolved.profile.root == root
        profile = resolved.profile if own else Profile(root=root, endpoint=resolved.profile.endpoint)
        artifacts = Artifacts(open_store(profile), resolved.cache)
        what = name
    else:
        run_name, stage = _split(name)
        run = find_run(run_name, store=store)
        artifacts, keys = Artifacts(run.store, run.resolved.cache), run.status.keys()
        measured = [made for made in STAGES if ArtifactRef.of(KIND, made) in keys]
        if not measured or (stage and stage not in measured):
            raise UserError(
                f"{run.name} has no evaluation{f' of {stage}' if stage else ''}: it has {', '.join(measured) or 'none'}"
            )
        stage = stage or measured[0]
        key, what = keys[ArtifactRef.of(KIND, stage)], f"{run.name}/{stage}"
    manifest = artifacts.find(KIND, key)
    if manifest is None:
        raise UserError(
            f"{what} is not measured yet: there is no evaluation at {artifacts.store.uri(ROOT)}/{KIND}/{key}"
        )
    if not any(record.path == ITEMS for record in manifest.files):
        raise UserError(f"{what} was measured by a version that kept no items: measure it again with 'nanochat eval'")
    print(f"{what}: {artifacts.uri(manifest)}", file=sys.stderr)
    return artifacts.fetch(manifest, [ITEMS]) / ITEMS


def _split(name: str) -> tuple[str, str]:
    """A run's name or id and the stage, '' where none is named: an id may stand behind a name, too."""
    run, _, stage = name.rpartition("/")
    return (run, stage) if run and (stage in STAGES or ("/" not in run and len(stage) < SHORTEST_ID)) else (name, "")


def _run_of(name: str, *, store: str) -> tuple[LocalRun, str] | None:
    """The run that a word means, and its stage; None where it means an evaluation's folder or address."""
    if "://" in name or Path(name).is_dir():
        return None
    run, stage = _split(name)
    return find_run(run, store=store), stage


def _measured(run: LocalRun, stage: str) -> bool:
    """Whether an evaluation of a run, or of one of its stages, is there."""
    artifacts, keys = Artifacts(run.store, run.resolved.cache), run.status.keys()
    wanted = [key for made in ([stage] if stage else STAGES) if (key := keys.get(ArtifactRef.of(KIND, made)))]
    return any(artifacts.find(KIND, key) is not None for key in wanted)


def _printable(name: str) -> str:
    """A task's name, which comes from a file, without what a terminal would take for a command."""
    return ascii(name)[1:-1]
