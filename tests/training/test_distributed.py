from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from nanochat.training.distributed import World, join


def report(folder: Path) -> None:
    with join(torch.device("cpu")) as world:
        found = {
            "sum": world.sum(0.1 * world.rank, 1.0),
            "shared": world.broadcast({"step": 7, "name": "\u00e9"} if world.first else None),
            "part": [world.part(7).start, world.part(7).stop],
        }
        (folder / f"{world.rank}.json").write_text(json.dumps(found))


def test_one_process_makes_no_group(tmp_path: Path) -> None:
    report(tmp_path)
    assert not torch.distributed.is_initialized()
    assert json.loads((tmp_path / "0.json").read_text()) == {
        "sum": [0.0, 1.0],
        "shared": {"step": 7, "name": "\u00e9"},
        "part": [0, 7],
    }


def test_three_ranks_agree(tmp_path: Path, run_ranks: Callable[..., None]) -> None:
    run_ranks(report, 3, tmp_path)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert [item["sum"] for item in found] == [[0.1 + 0.2, 3.0]] * 3
    assert [item["shared"] for item in found] == [{"step": 7, "name": "\u00e9"}] * 3
    assert [item["part"] for item in found] == [[0, 2], [2, 4], [4, 7]]


def test_parts_cover_everything_once() -> None:
    for size in range(1, 9):
        for count in range(20):
            rows = [row for rank in range(size) for row in range(count)[World(rank=rank, size=size).part(count)]]
            assert rows == list(range(count))
