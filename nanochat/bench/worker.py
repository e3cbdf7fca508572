"""A measured process: `python -m nanochat.bench.worker`, started by `nanochat bench`; the first line is its task.

The task names the module of this package that does it, and `root` where another checkout's `nanochat` is measured.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from nanochat.bench.pacing import Ended, Paced
from nanochat.runtime.memory import is_out_of_memory
from nanochat.spec.errors import NanochatError

NO_COMPILER = ("InvalidCxxCompiler", "InvalidCxxCompilerError")


def main() -> None:
    """Do the task until its end; what goes wrong is answered in one sentence."""
    paced = Paced()
    with suppress(Ended, BrokenPipeError):
        task = paced.read_task()
        root = task.get("root")
        try:
            if root:
                take_over(Path(root))
            with suppress(ImportError, AttributeError):  # a peer, or an older commit, has no such thing
                importlib.import_module("nanochat.runtime.threads").settle()
            importlib.import_module("torch")
            paced.stamp("import torch")
            importlib.import_module(f"nanochat.bench.{task['module']}").run(task, paced)
        except (Ended, BrokenPipeError):
            raise
        except BaseException as error:
            traceback.print_exc()
            paced.answer({"error": sentence(error, root)})


def take_over(root: Path) -> None:
    """From here on `nanochat` is the package below `root`, but for this package."""
    for name in list(sys.modules):
        top, _, rest = name.partition(".")
        if top in ("nanochat", "tasks") and not (rest + ".").startswith("bench."):
            del sys.modules[name]
    sys.path.insert(0, str(root))
    importlib.import_module("nanochat")


def sentence(error: BaseException, root: str | None) -> str:
    """One sentence about an error, for people."""
    words = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, ModuleNotFoundError) and error.name:
        name = error.name.partition(".")[0]
        if root and name != "nanochat":
            return (
                f"the peer needs the Python module '{name}': install what {root}/pyproject.toml names into {sys.prefix}"
            )
        if root:
            return f"{root} has no module {error.name}: name a newer checkout of the peer"
    if is_out_of_memory(error):
        return "the model does not fit into memory: measure fewer rows, such as --set stages.base.deviceBatchSize=4"
    if type(error).__name__ in NO_COMPILER or any(name in str(error) for name in NO_COMPILER):
        return "torch.compile finds no C++ compiler: install g++, or set CXX to one"
    if isinstance(error, NanochatError):
        return error.message
    return f"{type(error).__name__}: {words[:300]}"


if __name__ == "__main__":
    main()
