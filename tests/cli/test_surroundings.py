"""Where nanochat is started: what lies in the folder, whether it can be written to, and whether it is still there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_pipeline import (
    UNTRACKED,
    called,
    mistake,
    nanochat,
    output,
    started,
    variables_of,
    wait_until,
    write_pipeline,
)

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
    variables = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "NANOCHAT_HOME": str(tmp_path / "state")}
    process = started(gone, "run", str(tmp_path / "small.yaml"), *arguments, log=tmp_path, **variables)
    wait_until(lambda: list(tmp_path.glob("state/work/*/*/plan.json")), process=process, home=tmp_path)
    gone.rmdir()
    assert process.wait(120) == 0, output(tmp_path)
    assert output(tmp_path).count("warning:") == 1, "MLflow is told all the same"
    assert "warning: the folder in which this run was started is gone" in output(tmp_path)
    assert nanochat(tmp_path, "status", "small", **variables).returncode == 0


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        (".", ". is a folder: name a file in it"),
        ("/proc/me.jsonl", "/proc/me.jsonl cannot be written: No such file or directory"),
        ("/dev/null/me.jsonl", "/dev/null/me.jsonl cannot be written: File exists"),
        ("a" * 300, "cannot be written: File name too long"),
    ],
)
def test_an_identity_file_that_cannot_be_written(tmp_path: Path, file: str, sentence: str) -> None:
    done = called(tmp_path, "identity", "generate", file, "--count", "5")
    assert done.returncode == 2 and sentence in mistake(done)


@pytest.mark.parametrize(
    "variables", [{"NANOCHAT_ROOT": "/tmp/what?"}, {"MLFLOW_TRACKING_URI": "sqlite:////tmp/what.db?timeout=5"}]
)
def test_a_question_mark_in_the_path_of_a_database(tmp_path: Path, variables: dict[str, str]) -> None:
    write_pipeline(tmp_path)
    done = called(tmp_path, "run", "small.yaml", **variables)
    assert done.returncode == 2 and "SQLite's addresses take no '?': name another folder" in mistake(done)


@pytest.mark.parametrize("line", [f"chat {'a' * 300} -p Hi", f"serve {'a' * 300}", f"doctor {'a' * 300}"])
def test_a_name_that_no_file_has(tmp_path: Path, line: str) -> None:
    done = called(tmp_path, *line.split())
    assert done.returncode == 2 and "File name too long" in mistake(done)


@pytest.mark.parametrize(
    ("module", "line", "sentence"),
    [
        ("torch", "run small.yaml", "PyTorch is not installed: run 'make setup'"),
        ("torch", "chat small -p Hi", "PyTorch is not installed: run 'make setup'"),
        ("torch", "serve small", "PyTorch is not installed: run 'make setup'"),
        ("mlflow", "chat champion -p Hi", "the Python module 'mlflow' is missing: install"),
        ("mlflow", "rollback", "the Python module 'mlflow' is missing: install"),
        ("mlflow", "gc", "so nothing is removed (the Python module 'mlflow' is missing: install"),
        ("sqlalchemy", "rollback", "the Python module 'sqlalchemy' is missing: install"),
    ],
)
def test_a_small_install_is_told_what_to_install(home: Path, module: str, line: str, sentence: str) -> None:
    blocker = home / "without"
    blocker.mkdir(exist_ok=True)
    program = "import sys\nclass Without:\n    def find_spec(self, name, path=None, target=None):\n"
    program += f"        if name == '{module}':\n            raise ModuleNotFoundError(name=name)\n"
    (blocker / "sitecustomize.py").write_text(program + "sys.meta_path.insert(0, Without())\n")
    tracked = {"MLFLOW_TRACKING_URI": f"sqlite:///{home}/registry.db"}
    (home / "registry.db").touch()
    variables = variables_of(home, UNTRACKED) | tracked | {"PYTHONPATH": str(blocker)}
    done = subprocess.run(
        [*COMMAND, *line.split()], cwd=home, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and sentence in mistake(done)


@pytest.mark.parametrize("line", ["status small", "run small.yaml", "gc", "report small", "chat small", "doctor"])
def test_a_machine_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    write_pipeline(tmp_path)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where the system knows of no home
    done = called(tmp_path, *line.split(), NANOCHAT_HOME="")
    assert done.returncode == 2 and "set HOME, or NANOCHAT_HOME to a folder" in mistake(done)
    done = called(tmp_path, "status", "small")
    assert "nothing has run in this store yet" in mistake(done), "NANOCHAT_HOME is enough"


@pytest.mark.parametrize("line", ["status small", "run small.yaml --only dataset", "report small", "chat small -p Hi"])
@pytest.mark.parametrize("place", ["/proc/nothing", "/dev/null/home"])
@pytest.mark.parametrize("stored", [False, True])
def test_a_home_that_cannot_be_written(tmp_path: Path, line: str, place: str, stored: bool) -> None:
    write_pipeline(tmp_path)
    variables = {"NANOCHAT_HOME": place, **({"NANOCHAT_ROOT": str(tmp_path / "store")} if stored else {})}
    mistake(called(tmp_path, *line.split(), **variables))


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["PYTHON=nothing-like-it"], "make: nothing-like-it is missing or older than 3.11: install Python 3.11"),
        (["PYTHON=python3", "VENV=/proc/nothing"], "make: the virtual environment could not be made: install"),
    ],
)
def test_a_step_of_make_that_fails_says_what_to_do(tmp_path: Path, settings: list[str], sentence: str) -> None:
    command = ["make", "setup", f"VENV={tmp_path}/none/venv", *settings]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and sentence in done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    ("target", "found", "sentence"),
    [
        ("images", {}, "make: Docker is missing: install it; docs/install.md says what is needed"),
        ("images", {"docker": 1}, "make: the image trainer could not be built: see above"),
        ("kind-up", {"docker": 0, "kubectl": 0, "helm": 0}, "make: kind is missing: install it"),
        (
            "kind-up",
            {"docker": 0, "kind": 1, "kubectl": 0, "helm": 0},
            "make: the cluster could not be made: see above",
        ),
        ("kind-up", {"docker": 0, "kind": 0, "kubectl": 1, "helm": 0}, "make: the cluster nanochat does not answer:"),
        ("kind-up", {"docker": 0, "kind": 0, "kubectl": 0, "helm": 1}, "make: the chart was not installed: see above"),
        ("kind-down", {}, "make: kind is missing: install it"),
    ],
)
def test_what_a_local_cluster_lacks_is_said(tmp_path: Path, target: str, found: dict[str, int], sentence: str) -> None:
    """`found` are the programs that there are, with what they exit with."""
    for name in ("make", "sh", "grep", "git"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    for name, code in found.items():
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    command, folder = ["make", target], Path(__file__).parents[2]
    variables = {"PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and sentence in done.stderr


def test_what_is_not_done_is_not_told_as_done(tmp_path: Path) -> None:
    """After the dataset alone no model to chat with, no pretraining in the report; each store has its own report."""
    write_pipeline(tmp_path)
    reports: set[str] = set()
    for root in ("one", "two"):
        variables = {**UNTRACKED, "NANOCHAT_ROOT": str(tmp_path / root)}
        done = called(tmp_path, "run", "small.yaml", "--only", "dataset", **variables)
        assert done.returncode == 0 and "Done in" in done.stdout and "Chat:" not in done.stdout
        done = called(tmp_path, "report", "small", **variables)
        assert done.returncode == 0 and "tokens of text" not in done.stdout
        page = done.stdout.rsplit("The whole report: ", 1)[1].strip()
        assert "- Pretraining: " not in Path(page).with_name("report.md").read_text(encoding="utf-8")
        reports.add(page)
    assert len(reports) == 2


def test_a_terminal_that_knows_ascii_alone_gets_the_rest_replaced(home: Path) -> None:
    done = nanochat(home, "report", "small", "--markdown", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and " ? " in done.stdout, "a mean and its error have a sign between them"
    words = ["chat", "small", "-p", "Hi", "--temperature", "2", "--top-k", "0", "--max-tokens", "40"]
    done = nanochat(home, *words, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stdout.isascii() and "Traceback" not in done.stderr, done.stderr
