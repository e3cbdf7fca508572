from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nanochat.runtime.distributed import World, join
from nanochat.spec.errors import PeerLost


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


def lose_a_peer(folder: Path) -> None:
    """Rank 1 goes without a word; whatever rank 0 does with it from then on says so by the error's type."""
    with join(torch.device("cpu")) as world:
        world.sum(1.0)
        if not world.first:
            os._exit(0)
        own, whole = torch.zeros(1), torch.zeros(2)
        calls: dict[str, Callable[[], object]] = {
            "sum": lambda: world.sum(1.0),
            "broadcast": lambda: world.broadcast(1),
            "reduce_scatter": lambda: world.reduce_scatter(own, whole).wait(),
            "all_gather": lambda: world.all_gather(whole, own).wait(),
        }
        for name, call in calls.items():
            with pytest.raises(PeerLost, match="communication with the other processes failed: "):
                call()
            (folder / name).touch()
        os._exit(0)


def test_a_lost_peer_is_an_error_of_its_own_type(tmp_path: Path, run_ranks: Callable[..., None]) -> None:
    run_ranks(lose_a_peer, 2, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"sum", "broadcast", "reduce_scatter", "all_gather"}
