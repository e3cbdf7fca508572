"""Any model measured at any time, outside of its pipeline; what was stopped goes on with the items that are missing.

    out, results = measure(folder, ["core", "gsm8k"], pipeline, resolved)

`out` gets the items as they are done, and in the end results.json, as an evaluation stage writes it.
The pipeline says how: sources, stages.evalBase and stages.evalChat. Data comes from the store's artifacts, and goes
there where it has to be fetched, under the keys that a pipeline gives it.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tasks
from nanochat.data.hub import Hub
from nanochat.data.hub_access import HubAccess
from nanochat.evaluation.chat import Chat, ChatSettings, Problems
from nanochat.evaluation.chat import TaskResult as ChatResult
from nanochat.evaluation.core import PREFIX, CoreResult, TaskResult, judge
from nanochat.evaluation.core_tasks import CoreTask, Example, load_tasks
from nanochat.evaluation.items import ITEMS, Item, ItemWriter, read_items
from nanochat.evaluation.sandbox import Sandbox
from nanochat.model.artifact import SERVED, combined
from nanochat.pipeline.admission import admit_local
from nanochat.pipeline.profiles import ResolvedProfile
from nanochat.pipeline.ref import ArtifactRef
from nanochat.pipeline.task_selection import find_task, unmeasurable
from nanochat.runtime.device import choose_device
from nanochat.runtime.distributed import ALONE
from nanochat.spec.errors import UserError
from nanochat.spec.pipeline import Pipeline
from nanochat.stages.dataset import make_files
from nanochat.stages.evaluate import Results, load_measured, task_errors
from nanochat.storage import files
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.opening import open_store
from nanochat.tokenizer import Tokenizer

CORE = "core"
SETTINGS = "settings.json"  # of all items of a folder


Known = dict[tuple[str, int], Item]  # by task and place


class Data:
    """The data of tasks, from the store where it is there, else from its source."""

    def __init__(self, pipeline: Pipeline, resolved: ResolvedProfile) -> None:
        admitted = admit_local(pipeline)
        self.spec = admitted.spec
        self._outputs = {output.ref: output for output in admitted.graph.node("dataset").outputs}
        self._artifacts = Artifacts(open_store(resolved.profile), resolved.cache)
        self._profile = resolved.profile

    def folder(self, ref: str) -> Path:
        """The local folder of task-data/<name> or eval-bundle/core."""
        output = self._outputs[ArtifactRef.parse(ref)]
        manifest = self._artifacts.find(output.kind, output.key)
        if manifest is None:
            access = HubAccess.of()
            with (
                Hub(store=self._profile, access=access) as hub,
                self._artifacts.writer(output.kind, output.key, f"eval-{uuid.uuid4().hex[:8]}") as writer,
            ):
                metadata = make_files(self.spec, access.located(self.spec.sources), hub, output, writer.folder)
                recipe = dict(output.recipe) | {"name": output.name}
                manifest = writer.commit(recipe=recipe, inputs=output.input_keys(), metadata=metadata)
        return self._artifacts.fetch(manifest)

    def task(self, name: str) -> tasks.Task:
        """The test split of a chat task."""
        cls = find_task(name)
        return cls(self.folder(f"task-data/{name}") if cls.files else Path(), "test", seed=self.spec.seed)


def measure(
    folder: Path,
    names: Sequence[str],
    pipeline: Pipeline,
    resolved: ResolvedProfile,
    *,
    out: Path | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Path, Results]:
    """Measure the model in `folder` on chat tasks and `core`; what `out` has already is not measured again.

    Without `out` it is a folder of this machine's own, by the model and how it is measured. `tick` is told how many
    items are there, and how many there will be. UserError where a task cannot be measured, or `out` has items that were
    measured otherwise.
    """
    data, results = Data(pipeline, resolved), Results()
    base, chat = data.spec.stages.eval_base, data.spec.stages.eval_chat
    measured = [find(data, name, results) for name in dict.fromkeys(names) if name != CORE]
    bundle = load_tasks(data.folder("eval-bundle/core")) if CORE in names else []
    out = _open(out, resolved, _how(folder, data))
    core = {task: task.examples(base.core_max_per_task) for task in bundle}
    rows = {task: min(len(task), chat.max_per_task or len(task)) for task in measured if task is not None}
    with ItemWriter(out / ITEMS) as writer:
        known: Known = {(item.task, item.index): item.without_texts() for item in read_items(out / ITEMS)}
        wanted = {(PREFIX + task.label, place) for task, examples in core.items() for place in range(len(examples))}
        wanted |= {(task.name, place) for task, count in rows.items() for place in range(count)}
        tick(len(wanted & known.keys()), len(wanted))
        if not wanted <= known.keys():
            for items in _measure(folder, core, rows, data, known):
                writer.add(items)
                known |= {(item.task, item.index): item.without_texts() for item in items}
                tick(len(wanted & known.keys()), len(wanted))
    if core:
        found = {}
        for task, examples in core.items():
            right = sum(known[PREFIX + task.label, place].right for place in range(len(examples)))
            found[task.label] = TaskResult.of(task, right, len(examples))
        results.add_core(CoreResult.of(found))
    if rows:
        items_of = {task: [known[task.name, place] for place in range(count)] for task, count in rows.items()}
        results.add_chat(
            {
                task.name: ChatResult.of(task, items, world=ALONE, pass_at=chat.pass_at)
                for task, items in items_of.items()
            }
        )
    files.write(out / "results.json", (json.dumps(results.to_dict(), indent=2) + "\n").encode())
    return out, results


def find(data: Data, name: str, results: Results) -> tasks.Task | None:
    """A chat task; None, with the reason in `results`, where this machine cannot run its programs."""
    if why := unmeasurable(name):
        raise UserError(f"task {name} cannot be measured: {why}")
    if find_task(name).kind == "program" and (reason := Sandbox().unavailable()):
        results.not_run[name] = reason
        return None
    with task_errors(name):
        return data.task(name)


def _measure(
    folder: Path,
    core: Mapping[CoreTask, Sequence[Example]],
    rows: Mapping[tasks.Task, int],
    data: Data,
    known: Known,
) -> Iterator[list[Item]]:
    """The items that are not known, some at a time."""
    base, chat = data.spec.stages.eval_base, data.spec.stages.eval_chat
    device = choose_device(chat.precision)
    tokenizer = Tokenizer.load(folder)
    model, _ = load_measured(folder, device)
    for task, examples in core.items():
        missing = {place: each for place, each in enumerate(examples) if (PREFIX + task.label, place) not in known}
        yield from judge(model, tokenizer, task, missing, batch_size=base.device_batch_size)
    work = []
    for task, count in rows.items():
        with task_errors(task.name):
            work.append(Problems.of(task, [place for place in range(count) if (task.name, place) not in known]))
    settings = ChatSettings.of(chat, seed=data.spec.seed)
    yield from Chat(model, tokenizer, settings, world=ALONE).examine(work)


def _how(folder: Path, data: Data) -> dict[str, Any]:
    """The model, and all settings on which an item depends but which items are measured."""
    if absent := [name for name in SERVED if not (folder / name).is_file()]:
        raise UserError(f"{folder} is no whole model: it has no {' and no '.join(absent)}")
    recipe = data.spec.stages.eval_chat.recipe()
    return {
        "model": combined({name: files.sha256(folder / name) for name in SERVED}),
        "seed": data.spec.seed,
        "answers": {
            name: value for name, value in recipe.items() if name not in ("tasks", "maxPerTask", "samplePrompts")
        },
        "hubRevision": data.spec.sources.hub_revision,
        "evalBundle": data.spec.sources.eval_bundle.revision,
    }


def _open(out: Path | None, resolved: ResolvedProfile, how: Mapping[str, Any]) -> Path:
    """The folder of the items, made where it is not there; UserError where its items were measured otherwise."""
    text = json.dumps(how, indent=2, sort_keys=True) + "\n"
    if out is None:
        out = resolved.home / "evaluations" / f"{how['model']}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    files.make_folder(out)
    files.create(out / SETTINGS, text.encode())
    with open(out / SETTINGS, "rb") as file:
        same = file.read(len(text) + 1) == text.encode()
    if not same:
        raise UserError(
            f"{out} has items that were measured with another model or other settings ({SETTINGS} says which): "
            "name another folder with --out"
        )
    return out
