"""Checks that need no stage to have run: local identity files, splits and rewards of tasks.

    check_inputs(spec)      # UserError, in one sentence; nothing is written

What costs a download or a training to find out is the stages' to check.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from nanochat.data.text_files import KINDS, SETTING, kind_of, local_files
from nanochat.parse.address import local_path
from nanochat.pipeline.task_selection import find_task, mixture_parts, used_tasks
from nanochat.spec.errors import UserError
from nanochat.spec.pipeline import PipelineSpec
from tasks.identity import read_conversations
from tasks.task import DataError


def check_inputs(spec: PipelineSpec) -> None:
    """Check what the pipeline names and this machine holds."""
    _splits(spec)
    _rewards(spec)
    _identity(spec)
    _own_text(spec)


def _own_text(spec: PipelineSpec) -> None:
    """Files of one's own text: there, where they are on this machine; such as can be listed, where they are not."""
    text = spec.sources.text
    if text.files is None:
        return
    if (path := local_path(text.files)) is not None:
        local_files(path)
    elif text.files.startswith("http") and not kind_of(urlsplit(text.files).path):
        raise UserError(
            f"{SETTING}: {text.files} is no file that ends in {', '.join(KINDS)}; folders and patterns are "
            "of this machine or of object storage"
        )


def _splits(spec: PipelineSpec) -> None:
    for part in (*mixture_parts(spec), *(spec.stages.rl.tasks if spec.stages.rl.enabled else ())):
        known = find_task(part.task).splits
        if part.split not in known:
            raise UserError(f"task {part.task} has no split '{part.split}': it has {', '.join(known)}")


def _rewards(spec: PipelineSpec) -> None:
    for part in spec.stages.rl.tasks if spec.stages.rl.enabled else ():
        if not find_task(part.task).rewards():
            raise UserError(f"stages.rl.tasks: task {part.task} has no reward: name one that grades answers")


def _identity(spec: PipelineSpec) -> None:
    """The identity conversations: all of them, where they are a local file, and that they are used."""
    uri = spec.stages.mid.identity
    if not uri:
        return
    if (path := local_path(uri)) is not None:
        try:
            read_conversations(path)
        except DataError as error:
            line = f", line {error.line}" if error.line is not None else ""
            raise UserError(f"stages.mid.identity: {path}{line}: {error.problem}") from None
        except OSError as error:
            raise UserError(f"stages.mid.identity: cannot read {path}: {error.strerror}") from None
    if "identity" not in used_tasks(spec):
        raise UserError(
            "stages.mid.identity is given and no mixture uses it: add {task: identity} to stages.mid.mixture"
        )
