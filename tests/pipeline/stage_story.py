"""Stages that do what a story says instead of their work: `{"base": ["StorageError", "ok"]}` by attempt.

`install(folder)` gives the variables under which the processes of a runner started with them play the story.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanochat.spec import errors
from nanochat.stages.context import StageContext

STORY = "STAGE_STORY"

SITE = """
import sys
import types

if "nanochat.stages" in sys.orig_argv:
    import stage_story

    for name in ("dataset", "tokenizer", "tokens", "base"):
        module = types.ModuleType(f"nanochat.stages.{name}")
        module.run = stage_story.run
        sys.modules[module.__name__] = module
"""


def install(folder: Path, story: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Variables for the runner's environment."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(SITE)
    path = os.pathsep.join([str(folder), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path, STORY: json.dumps(story)}


def run(context: StageContext) -> None:
    """Play this attempt's part, the last one again and again."""
    parts = json.loads(os.environ[STORY]).get(context.stage, ["ok"])
    part = parts[min(context.plan.attempt, len(parts)) - 1]
    print(f"plays {part}", flush=True)
    context.progress.update(phase="playing", step=1, total=2)
    if hasattr(errors, part):
        raise getattr(errors, part)(f"because of {part}")
    match part:
        case "bug":
            raise ValueError("an error of the program")
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stops answering":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "launcher killed":
            os.kill(os.getpid() if os.getppid() == 1 else os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGSTOP)
        case "forgets":
            return
        case "waits":
            while not context.stop:
                time.sleep(0.05)
            raise errors.Stopped("stopped after a checkpoint")
        case "ignores":
            time.sleep(600)
        case "ends when stopped":
            while not context.stop:
                time.sleep(0.05)
    for output in context.outputs:
        with context.writer(output) as writer:
            (writer.folder / "file").write_text(f"{context.settings.model_dump(mode='json')}")
            context.commit(writer, output, {})
