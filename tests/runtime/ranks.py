"""Several ranks in one test: real processes with torchrun's variables, over gloo."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import pytest


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


@pytest.fixture
def run_ranks() -> Callable[..., None]:
    """run_ranks(function, size, *arguments): the function in `size` processes; fails where one of them does."""

    def run(function: Callable[..., Any], size: int, *arguments: Any) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = multiprocessing.get_context("spawn")
        ranks = [
            processes.Process(target=run_rank, args=(function, rank, size, port, arguments)) for rank in range(size)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(120)
        codes = [process.exitcode for process in ranks]
        for process in ranks:
            process.kill()
        assert codes == [0] * size

    return run
