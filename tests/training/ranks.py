"""What each process of `run_ranks` does; in a module of its own, because `conftest` is the name of several."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any


def run_rank(function: Callable[..., Any], rank: int, size: int, port: int, arguments: tuple[Any, ...]) -> None:
    """Call the function with torchrun's variables set, and end the process as a stage ends."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
        CUDA_VISIBLE_DEVICES="",
    )
    try:
        function(*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
