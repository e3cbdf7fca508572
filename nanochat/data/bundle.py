"""The evaluation bundle of CORE: a zip, or a folder by any address; and the tasks that it declares.

Unpacked it is core.yaml, eval_meta_data.csv and eval_data/. A folder needs no listing: core.yaml names the data
files of its tasks.
"""

from __future__ import annotations

import csv
import io
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nanochat.data.archive import path_problem, unpack
from nanochat.data.hub import Hub
from nanochat.data.verify import WrongFile
from nanochat.parse import Malformed, first_problem
from nanochat.parse.address import shown
from nanochat.parse.yaml_text import read_yaml
from nanochat.spec.errors import UserError

TASKS = "core.yaml"
META = "eval_meta_data.csv"
DATA = "eval_data"
LARGEST_LIST = 1 << 20  # bytes of core.yaml, and of eval_meta_data.csv
LARGEST_DATA = 1 << 30  # bytes of one data file
LARGEST_ZIP = 4 << 30

Kind = Literal["multiple_choice", "schema", "language_modeling"]


class BundleTask(BaseModel):
    """One task as core.yaml declares it."""

    model_config = ConfigDict(strict=True, frozen=True)

    label: str = Field(min_length=1, max_length=100)
    kind: Kind = Field(alias="icl_task_type")
    data: str = Field(alias="dataset_uri", min_length=1, max_length=500)
    shots: list[Annotated[int, Field(ge=0, le=100)]] = Field(alias="num_fewshot", min_length=1)
    delimiter: str = Field(" ", alias="continuation_delimiter", max_length=100)


def fetch_bundle(hub: Hub, url: str, folder: Path, *, setting: str) -> int:
    """Fetch the bundle into `folder`; returns the number of data files."""
    if urlsplit(url).path.endswith(".zip"):
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            whole = Path(beside) / "whole"
            hub.fetch(
                url,
                Path(beside) / "bundle.zip",
                setting=setting,
                check=lambda packed: _unpack(packed, whole),
                limit=LARGEST_ZIP,
            )
            _take(whole, folder)
    else:
        root = url.rstrip("/")
        for name in (TASKS, META):
            hub.fetch(f"{root}/{name}", folder / name, setting=setting, limit=LARGEST_LIST)
        for name in sorted({f"{DATA}/{task.data}" for task in _declared(folder, url, setting)}):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            hub.fetch(f"{root}/{name}", folder / name, setting=setting, limit=LARGEST_DATA)
    names = {META, *(f"{DATA}/{task.data}" for task in _declared(folder, url, setting))}
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise UserError(f"{shown(url)} has no {missing[0]}: correct {setting}")
    return len(names) - 1


def read_tasks(folder: Path) -> list[BundleTask]:
    """The tasks that the core.yaml of an unpacked bundle declares; WrongFile where it declares none, or a wrong one."""
    path = folder / TASKS
    try:
        content = read_bounded(path)
        declared: Any = read_yaml(content)
        entries = declared["icl_tasks"]
    except Malformed as error:
        raise WrongFile(path, f"it names no tasks, for it is {error}") from None
    except (KeyError, TypeError):
        raise WrongFile(path, "it names no tasks, so it is no CORE bundle's") from None
    if not isinstance(entries, list) or not entries:
        raise WrongFile(path, "it names no tasks, so it is no CORE bundle's")
    tasks: dict[str, BundleTask] = {}
    for number, entry in enumerate(entries, start=1):
        label = entry.get("label") if isinstance(entry, dict) else None
        name = f"task {number} ({str(label)[:100]})"
        try:
            task = BundleTask.model_validate(entry)
        except ValidationError as error:
            raise WrongFile(path, f"{name}: {first_problem(error)}") from None
        if problem := path_problem(task.data):
            raise WrongFile(path, f"{name}: dataset_uri {problem}: {task.data}")
        if task.label in tasks:
            raise WrongFile(path, f"{name} is there twice")
        tasks[task.label] = task
    return list(tasks.values())


def read_baselines(folder: Path) -> dict[str, str]:
    """The random baseline of each task in percent, as eval_meta_data.csv writes it."""
    path = folder / META
    try:
        rows = csv.DictReader(io.StringIO(read_bounded(path), newline=""))
        return {row["Eval Task"]: row["Random baseline"] for row in rows}
    except (csv.Error, KeyError) as error:
        raise WrongFile(path, f"it is no table with 'Eval Task' and 'Random baseline' ({error})") from None


def read_bounded(path: Path) -> str:
    """The text of one of the bundle's lists."""
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_LIST + 1)
        if len(content) > LARGEST_LIST:
            raise WrongFile(path, f"it has more than {LARGEST_LIST >> 20} MiB")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise WrongFile(path, "it is missing") from None
    except UnicodeDecodeError as error:
        raise WrongFile(path, f"it is not UTF-8 at byte {error.start}") from None


def _declared(folder: Path, url: str, setting: str) -> list[BundleTask]:
    try:
        return read_tasks(folder)
    except WrongFile as error:
        raise UserError(f"{TASKS} of {shown(url)}: {error.problem}: correct {setting}") from None


def _unpack(packed: Path, folder: Path) -> None:
    """Unpack the zip, anew where an earlier try broke off."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    names = unpack(packed, folder)
    if not any(PurePosixPath(name).name == TASKS for name in names):
        raise WrongFile(packed, f"it has no {TASKS}: it is not a CORE bundle")


def _take(whole: Path, folder: Path) -> None:
    """Move what lies beside the uppermost core.yaml of what was unpacked."""
    lists = (path for path in whole.rglob(TASKS) if path.is_file())
    top = min((path.parent for path in lists), key=lambda path: (len(path.parts), path))
    for name in (TASKS, META, DATA):
        if (top / name).exists():
            shutil.move(top / name, folder / name)
