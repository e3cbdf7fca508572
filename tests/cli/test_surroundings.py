"""Where nanochat is started: what lies in the folder, whether it can be written to, and whether it is still there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_pipeline import UNTRACKED, mistake, nanochat, output, started, variables_of, wait_until, write_pipeline

from nanochat.pipeline.orphan import start_child

STRANGERS = ("tasks.py", "torch.py", "numpy.py", "nanochat/__init__.py", "operators/__init__.py", "multiprocessing.py")
COMMAND = [sys.executable, "-P", "-m", "nanochat.cli.main"]  # as the script `nanochat`, which is not in this folder


def fill(folder: Path) -> None:
    """Put into a folder modules of somebody else's, each with the name of one that is used here."""
    for name in STRANGERS:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit(f'{__file__} was imported')\n")


def test_a_folder_with_modules_of_somebody_elses_changes_nothing(tmp_path: Path) -> None:
    write_pipeline(tmp_path, base={"processesPerNode": 2})
    folder = tmp_path / "somewhere"
    fill(folder)
    folder.chmod(0o555)
    only = [word for stage in ("dataset", "tokenizer", "tokens", "base") for word in ("--only", stage)]
    command = [*COMMAND, "run", str(tmp_path / "small.yaml"), *only]
    variables = variables_of(tmp_path, UNTRACKED)
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", ["", ":", "lib:", ":lib"])
def test_an_empty_entry_of_the_path_is_not_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", path)
    child = start_child(["-c", "import multiprocessing"], log=tmp_path / "child.log", variables={})
    child.communicate(timeout=60)
    assert child.returncode == 0, (tmp_path / "child.log").read_text()


def test_a_child_of_a_folder_that_is_gone_starts_beside_its_log(tmp_path: Path) -> None:
    (gone := tmp_path / "gone").mkdir()
    program = "import os, sys; sys.exit(print(os.getcwd(), sys.path[0]))"
    before = Path.cwd()
    os.chdir(gone)
    try:
        gone.rmdir()
        start_child(["-c", program], log=tmp_path / "child.log", variables={}).communicate(timeout=60)
    finally:
        os.chdir(before)
    folder, first = (tmp_path / "child.log").read_text().split()
    assert Path(folder) == tmp_path and Path(first) != tmp_path


def test_a_folder_that_is_gone_is_one_sentence(tmp_path: Path) -> None:
    (gone := tmp_path / "gone").mkdir()
    command = f"cd {gone} && rmdir {gone} && exec {' '.join(COMMAND)} status"
    done = subprocess.run(["sh", "-c", command], env=variables_of(tmp_path, {}), capture_output=True, text=True)
    assert done.returncode == 2 and "the folder that you are in is gone" in mistake(done)


def test_a_folder_that_goes_meanwhile_is_told(tmp_path: Path) -> None:
    write_pipeline(tmp_path)
    (gone := tmp_path / "gone").mkdir()
    arguments = ["--only", "dataset", "--only", "tokenizer", "--only", "tokens"]
    variables = {**UNTRACKED, "NANOCHAT_HOME": str(tmp_path / "state")}
    process = started(gone, "run", str(tmp_path / "small.yaml"), *arguments, log=tmp_path, **variables)
    wait_until(lambda: list(tmp_path.glob("state/work/*/*/plan.json")), process=process, home=tmp_path)
    gone.rmdir()
    assert process.wait(120) == 0, output(tmp_path)
    assert output(tmp_path).count("warning: the folder in which this run was started is gone") == 1
    assert nanochat(tmp_path, "status", "small", **variables).returncode == 0
