"""`nanochat bench train` at a small shape: what it prints, and what it says where it cannot measure."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from bench_schema import DOCUMENT
from bench_shapes import SETS, bench, document, refused, sentence, write_peer

from nanochat.bench.checkout import find_checkout
from nanochat.bench.measurement import Measurement, own_task, theirs
from nanochat.bench.shapes import Shape, batch, describe, read_shape
from nanochat.bench.worker import sentence as worker_sentence
from nanochat.bench.workers import Worker, Workers, take_turns
from nanochat.pipeline.profiles import resolve_profile
from tests.cli.small_pipeline import called

ROOT = Path(__file__).parents[2]
PARTS = ["interpreter", "import torch", "imports", "store", "build model", "data", "first step"]


@pytest.mark.parametrize("stage", ["base", "sft", "rl"])
def test_every_stage_is_measured(tmp_path: Path, stage: str) -> None:
    found = document(bench(tmp_path, "train", "--stage", stage, "--json"))
    jsonschema.validate(found, DOCUMENT)
    (ours,) = found["measured"]
    figures = ours["figures"]
    assert ours["name"] == "ours, eager" and found["stage"] == stage and found["times_faster"] == []
    assert {spread["rounds"] for spread in figures.values()} == {5}
    assert figures["seconds"]["low"] > 0 and figures["peak_memory"]["high"] > 1e7
    assert 0 < ours["flop_utilisation"]["median"] < 10 and ours["tokens_per_second"]["low"] > 0
    assert figures["tokens"]["median"] == 128 if stage == "base" else figures["tokens"]["low"] > 0
    assert len(ours["costs"]) >= 3 and sum(cost["share"] for cost in ours["costs"]) == pytest.approx(1)
    assert list(ours["parts"]) == PARTS
    assert found["shape"]["depth"] == 1 and found["machine"]["threads"] == 1
    assert not list((tmp_path / "state").rglob("bench*")), "what was written to measure is removed"


@pytest.mark.parametrize("stage", ["base", "rl"])
def test_several_processes_train_together(tmp_path: Path, stage: str) -> None:
    """Figures are those of one process, which has its part of the step and waits for the others."""
    found = document(bench(tmp_path, "train", "--stage", stage, "--processes", "2", "--json"))
    jsonschema.validate(found, DOCUMENT)
    (ours,) = found["measured"]
    waited, exposed = ours["figures"]["waited"], ours["figures"]["exposed"]
    assert found["processes"] == 2 and 0 < ours["communication_not_hidden"]["low"] < 1
    assert all(exposed[name] <= waited[name] for name in ("low", "median", "high"))
    assert ours["figures"]["tokens"]["median"] == 64 if stage == "base" else ours["figures"]["tokens"]["low"] > 0


def test_a_peer_and_another_commit_take_turns(tmp_path: Path) -> None:
    """Nothing is compiled, though there is a compiler: that would take minutes."""
    peer = write_peer(tmp_path / "peer")
    done = bench(tmp_path, "train", "--json", "--peer", str(peer), CXX="g++", TORCHDYNAMO_DISABLE="1")
    found = document(done)
    jsonschema.validate(found, DOCUMENT)
    names = [item["name"] for item in found["measured"]]
    assert names == ["ours, compiled", "ours, eager", "peer, as shipped", "peer, bf16"]
    assert [(ratio["first"], ratio["second"]) for ratio in found["times_faster"]] == [
        (ours, theirs) for ours in names[:2] for theirs in names[2:]
    ]
    assert found["measured"][2]["figures"]["tokens"]["median"] == 128


def test_another_commit_is_measured_with_its_own_code(tmp_path: Path) -> None:
    """Here it is a copy of this one, whose model is twice as deep as it is told."""
    other = tmp_path / "before"
    for name in ("nanochat", "tasks"):
        shutil.copytree(ROOT / name, other / name, ignore=shutil.ignore_patterns("__pycache__"))
    sizes = other / "nanochat" / "model" / "sizes.py"
    sizes.write_text(sizes.read_text().replace("            depth=depth,\n", "            depth=2 * depth,\n"))
    found = document(bench(tmp_path, "train", "--peer", str(other), "--json"))
    ours, before = found["measured"]
    assert [ours["name"], before["name"]] == ["ours, eager", "before, eager"]
    assert before["figures"]["flops"]["median"] > ours["figures"]["flops"]["median"]


def test_tables_are_for_people(tmp_path: Path) -> None:
    done = bench(tmp_path, "train", "--markdown")
    assert done.returncode == 0, done.stderr
    for words in ("The machine: ", "| products of a step |", "A step of base", "| ours, eager |", "Largest costs"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--peer", "."], "is no checkout of karpathy/nanochat: it has no nanochat/gpt.py"),
        (["--peer", "nowhere"], "--peer nowhere is no checkout of karpathy/nanochat"),
        (["--set", "stages.base.totalBatchTokens=96"], "3 rows, which do not divide into micro-batches of 2"),
        (["--set", "model.depth=0"], "model.depth"),
        (["missing.yaml"], "missing.yaml"),
        (["--rounds", "4"], "4 is not a number from 5 to 1,000"),
        (["--processes", "0"], "0 is not a number from 1 to 64"),
        (["--stage", "tokens"], "'tokens' is none of base, sft, rl"),
        (["--store", "nowhere"], "'nowhere'"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, arguments: list[str], words: str) -> None:
    sets = [] if "missing.yaml" in arguments else [word for item in SETS for word in ("--set", item)]
    assert words in sentence(called(tmp_path, "bench", "train", *sets, *arguments))


def test_what_a_peer_lacks_is_one_sentence(tmp_path: Path) -> None:
    peer = write_peer(tmp_path / "peer", gpt="import wandb_of_nobody")
    with Workers() as workers:
        said = refused(
            workers.start("peer, bf16", {"module": "peer", "measure": "steps", "root": str(peer)}, {}).answer
        )
    assert said.startswith("peer, bf16: the peer needs the Python module 'wandb_of_nobody': install what ")
    assert f" {peer}/pyproject.toml names into {sys.prefix}" in said


def test_a_compiler_that_does_not_work_is_one_sentence(tmp_path: Path) -> None:
    """Nothing that is called compiled is measured without."""
    task = own_task(Shape(None, tuple(SETS)), "base", 1, "always")
    variables = {"CXX": "false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    with Workers() as workers:
        said = refused(workers.start("ours, compiled", task, variables).answer)
    assert said == "ours, compiled: torch.compile finds no C++ compiler: install g++, or set CXX to one"


def test_what_a_peer_cannot_be_asked_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = find_checkout(write_peer(tmp_path / "peer"))
    asked = Measurement(
        shape=Shape(None, tuple(SETS)),
        spec=read_shape(None, SETS),
        rounds=5,
        threads=1,
        peer=peer,
        profile=resolve_profile(),
    )
    assert "is measured in base only" in refused(lambda: list(theirs(asked, stage="sft", steps=1)))
    several = replace(asked, processes=2)
    assert "is measured in one process only" in refused(lambda: list(theirs(several, stage="base", steps=1)))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert "there is no C++ compiler here: install g++" in refused(lambda: list(theirs(asked, stage="base", steps=1)))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "does not fit into memory: measure fewer rows"),
        (RuntimeError("InvalidCxxCompiler: No working C++ compiler found"), "no C++ compiler: install g++"),
        (ModuleNotFoundError("x", name="nanochat.stages"), "has no module nanochat.stages: name a newer checkout"),
        (ValueError("so\nand so"), "ValueError: so"),
    ],
)
def test_errors_of_a_worker_are_one_sentence(error: BaseException, words: str) -> None:
    said = worker_sentence(error, "/peer")
    assert words in said and "\n" not in said


def python(code: str, log: Path) -> Worker:
    """A measured process that runs this code instead."""
    pipe = subprocess.PIPE
    with log.open("w") as errors:
        process = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=errors, text=True)
    return Worker("it", process, log)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "it was killed, most likely by the kernel for memory",
        ),
        ("import sys; print('one\\ntwo', file=sys.stderr); sys.exit(3)", "it ended with exit code 3: two"),
        ("raise SystemExit(4)", "it ended with exit code 4: it said nothing"),
    ],
)
def test_a_worker_that_ends_is_one_sentence(tmp_path: Path, code: str, words: str) -> None:
    made = python(code, tmp_path / "log")
    assert words in refused(made.answer)
    assert words in refused(lambda: made.ask("step"))
    made.close()


class Turn:
    """A worker that remembers when it was asked."""

    def __init__(self, name: str, asked: list[str]) -> None:
        self.name, self.asked = name, asked

    def answer(self) -> dict[str, Any]:
        return {"parts": {"imports": 1.0}}

    def ask(self, command: str) -> dict[str, Any]:
        self.asked.append(f"{self.name} {command}")
        return {"seconds": float(len(self.asked)), "costs": []} if command == "profile" else {"seconds": 1.0}


def test_turns_go_back_and_forth() -> None:
    asked: list[str] = []
    found = take_turns([Turn("a", asked), Turn("b", asked)], rounds=3)  # type: ignore[list-item]
    assert [item.split()[0] for item in asked] == ["a", "b", *"ab", *"ba", *"ab", "a", "b"]
    assert [item.name for item in found] == ["a", "b"] and len(found[0].rounds) == 3


def test_shapes_are_those_of_the_file(tmp_path: Path) -> None:
    spec = read_shape(ROOT / "k8s/pipelines/speedrun.yaml", ["stages.base.totalBatchTokens=65536"])
    assert batch(spec) == (2, 16, 2048)
    found = describe(spec)
    assert found["parameters"] == 560_988_160 and found["vocab_size"] == 65_536
    assert batch(read_shape(None, SETS)) == (2, 2, 32)
    assert batch(read_shape(None, [])) == (1, 16, 512)
    assert describe(read_shape(None, []))["width"] == 384


def test_a_checkout_is_told_by_its_files(tmp_path: Path) -> None:
    own = find_checkout(ROOT)
    assert own is not None and own.own and own.root == ROOT
    peer = find_checkout(write_peer(tmp_path / "peer"))
    assert peer is not None and not peer.own and peer.name == "peer"
    assert find_checkout(None) is None
