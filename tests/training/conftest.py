"""Several ranks in one test: real processes with torchrun's variables, over gloo."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from typing import Any

import pytest

from tests.training.ranks import run_rank


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
