"""`nanochat bench infer` at a small shape: what it measures, beside another commit, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_schema import SPREAD
from bench_shapes import bench, document, sentence, write_peer
from jsonschema import validate

ROOT = Path(__file__).parents[2]
CHANGED = {"model.sequenceLength": 256, "stages.base.totalBatchTokens": 512}  # of the small shape
LONG = (*(word for name, value in CHANGED.items() for word in ("--set", f"{name}={value}")), "--tokens", "4")
WORK = {
    "prefill",
    "prefill of a short prompt",
    "first token of a second turn",
    "weights read once",
    "decode 1 of 8 slots",
    *(f"decode {rows}" for rows in (1, 2, 4, 8, 16)),
}


def test_prompts_and_rows_are_measured_beside_another_commit(tmp_path: Path) -> None:
    """Which is this one."""
    found = document(bench(tmp_path, "infer", "--peer", str(ROOT), "--json", last=LONG))
    ours, other = found["measured"]
    assert (ours["name"], other["name"]) == ("ours", ROOT.name)
    assert (found["bench"], found["prompt"], found["tokens"]) == ("infer", 128, 4)
    for item in found["measured"]:
        for name in WORK:
            for figure in (name, f"{name}, cpu"):
                validate(item["figures"][figure], SPREAD)
                assert item["figures"][figure]["rounds"] == 5 and item["figures"][figure]["low"] > 0
        assert set(item["of_the_bound"]) == {name for name in WORK if name.startswith("decode")}
    assert {ratio["work"] for ratio in found["times_faster"]} == WORK
    assert {ratio["second"] for ratio in found["times_faster"]} == {ROOT.name}


def test_tables_of_answers_are_for_people(tmp_path: Path) -> None:
    done = bench(tmp_path, "infer", "--markdown", last=LONG)
    assert done.returncode == 0, done.stderr
    for words in ("ours: a prompt of 128 tokens", "| decode 16 |", "| prefill |", "of the bound"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--tokens", "100"), "a context of 256 tokens holds less"), (("--peer", "peer"), "whose engine is not measured")],
)
def test_what_is_not_measured_is_refused(tmp_path: Path, arguments: tuple[str, str], words: str) -> None:
    peer = str(write_peer(tmp_path / "peer"))
    given = [peer if word == "peer" else word for word in arguments]
    assert words in sentence(bench(tmp_path, "infer", last=(*LONG, *given)))
