"""The evaluation bundle of CORE: a zip, or a folder by any address.

Unpacked it is core.yaml, eval_meta_data.csv and eval_data/. A folder needs no listing: core.yaml names the data
files of its tasks.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import yaml

from nanochat.data.hub import Hub
from nanochat.data.verify import check_zip
from nanochat.parse.address import shown
from nanochat.spec.errors import UserError

TASKS = "core.yaml"
META = "eval_meta_data.csv"
DATA = "eval_data"


def fetch_bundle(hub: Hub, url: str, folder: Path, *, setting: str) -> int:
    """Fetch the bundle into `folder`; returns the number of data files."""
    if urlsplit(url).path.endswith(".zip"):
        packed = folder / "bundle.zip"
        hub.fetch(url, packed, setting=setting, check=check_zip)
        _unpack(packed, folder, url)
        packed.unlink()
        names = data_files(folder, url)
        missing = [name for name in [META, *names] if not (folder / name).is_file()]
        if missing:
            raise UserError(f"{shown(url)} has no {missing[0]}: correct {setting}")
        return len(names)
    root = url.rstrip("/")
    for name in (TASKS, META):
        hub.fetch(f"{root}/{name}", folder / name, setting=setting)
    names = data_files(folder, url)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        hub.fetch(f"{root}/{name}", folder / name, setting=setting)
    return len(names)


def data_files(folder: Path, url: str) -> list[str]:
    """The data files that core.yaml names, as paths in the bundle."""
    try:
        tasks = yaml.safe_load((folder / TASKS).read_text(encoding="utf-8"))["icl_tasks"]
        names = sorted({f"{DATA}/{task['dataset_uri']}" for task in tasks})
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(
            f"{TASKS} of {shown(url)} names no tasks ({type(error).__name__}): it is not a CORE bundle"
        ) from None
    for name in names:
        _check_inside(name, url)
    return names


def _unpack(packed: Path, folder: Path, url: str) -> None:
    """Unpack what lies beside core.yaml, wherever that is in the zip."""
    with zipfile.ZipFile(packed) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        tops = [name.removesuffix(TASKS) for name in names if PurePosixPath(name).name == TASKS]
        if not tops:
            raise UserError(f"{shown(url)} has no {TASKS}: it is not a CORE bundle")
        top = min(tops, key=len)
        for name in names:
            inner = name.removeprefix(top)
            if not name.startswith(top) or not (inner in (TASKS, META) or inner.startswith(f"{DATA}/")):
                continue
            _check_inside(inner, url)
            target = folder / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, open(target, "wb") as out:
                shutil.copyfileobj(source, out)


def _check_inside(name: str, url: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{shown(url)} names a file outside of its folder: {name}")
