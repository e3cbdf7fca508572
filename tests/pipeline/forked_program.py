"""A server whose forks do what the second word of their arguments says, and a runner that only starts them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from nanochat.pipeline.forking import Forks, ForkServer
from nanochat.pipeline.orphan import STAGE, die_with_starter
from nanochat.stages.fork_server import main


def run(arguments: Sequence[str], forks: Forks) -> NoReturn:
    """tell its surroundings, exit with the code 7, sleep until it is ended, or nest: sleep, and fork one that does."""
    die_with_starter()
    what = arguments[2]
    if what == "tell":
        sid = os.getsid(0) == os.getpid()
        print(os.getcwd(), sid, os.environ.get("COLOUR"), os.environ.get("SERVER_ONLY"), *sys.argv[1:], flush=True)
    if what == "exit":
        os._exit(7)
    if what == "nest":
        log = Path(arguments[3]).parent / "log"
        _kept = forks.start_child(["-m", STAGE, "sleep", arguments[3]], log=log, variables={})
    if what in ("sleep", "nest"):
        while True:
            time.sleep(60)
    os._exit(0)


def runner(folder: Path) -> None:
    """Start a launcher that starts a stage, and wait."""
    server = ForkServer(folder, threads=1, module=__spec__.name)
    server.begin()
    while server.importing:
        time.sleep(0.02)
    child = server.start_child(["-m", STAGE, "nest", str(folder / "a" / "plan.json")], log=folder / "log", variables={})
    child.wait()


if __name__ == "__main__":
    if sys.argv[1] == "runner":
        runner(Path(sys.argv[2]))
    else:
        os.environ["SERVER_ONLY"] = "yes"
        main(imports=lambda: None, run=run)
