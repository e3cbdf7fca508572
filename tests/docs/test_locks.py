"""What images are made of is pinned by hashes, but for what only its own registry knows: there is a target for that."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "images" / "Dockerfile").read_text(encoding="utf-8")
LOCKS = sorted((ROOT / "images").glob("*.lock"))
DIGEST = f"sha256:{'0123456789abcdef' * 4}"


def packages(path: Path) -> dict[str, str]:
    """The packages of a lock, each with what follows its name."""
    items = re.split(r"^(?=\S)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(item.split("==", 1) for item in items if item.strip())


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_package_has_a_version_and_hashes(path: Path) -> None:
    assert packages(path)
    for name, rest in packages(path).items():
        assert re.match(r"[\w.+]+ (?:\\\n    --hash=sha256:[0-9a-f]{64}\s*)+$", rest), name


def test_cuda_builds_of_pytorch_are_pinned_whole() -> None:
    found = packages(ROOT / "images" / "torch-cuda.lock")
    (version,) = re.findall(r"^TORCH_VERSION \?= (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert found["torch"].startswith(f"{version} ") and "triton" in found
    assert sum(name.startswith("nvidia-") for name in found) > 10


def test_images_install_only_what_is_pinned() -> None:
    installs = re.findall(r"pip install [^;\n]*", DOCKERFILE)
    assert len(installs) >= 6 and [line for line in installs if "--require-hashes" not in line] == []


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what the target works on, with a Docker and a uv that answer from files."""
    (tmp_path / "images").mkdir()
    for name in ("Dockerfile", "lock-upstream.sh"):
        shutil.copy(ROOT / "images" / name, tmp_path / "images")
    programs = {
        "docker": '#!/bin/sh\necho "$@" >>asked\ncat digest\n',
        "python": '#!/bin/sh\necho "$@" >>asked\nwhile [ "$1" != -o ]; do shift; done\ncp lock "$2"\n',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "digest").write_text(f"{DIGEST}\n")
    (tmp_path / "lock").write_text("torch==2.13.0+cpu \\\n    --hash=sha256:00\n")
    return tmp_path


def lock_upstream(project: Path) -> subprocess.CompletedProcess[str]:
    command = ["sh", "images/lock-upstream.sh", str(project / "python"), "2.13.0", "https://index.example/cpu"]
    path = f"{project}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(command, cwd=project, env={"PATH": path}, capture_output=True, text=True, check=False)


def test_the_registries_own_are_pinned_where_they_are_reached(project: Path) -> None:
    for _ in range(2):  # again, it is pinned anew by its tag
        done = lock_upstream(project)
        assert done.returncode == 0, done.stderr
        dockerfile = (project / "images" / "Dockerfile").read_text()
        (image,) = re.findall(r"^ARG PYTHON=(.*)$", dockerfile, re.MULTILINE)
        assert re.fullmatch(rf"python:[\w.-]+@{DIGEST}", image)
        assert dockerfile.splitlines()[-1] == DOCKERFILE.splitlines()[-1]
        assert (project / "images" / "torch-cpu.lock").read_text() == (project / "lock").read_text()
    asked = (project / "asked").read_text()
    assert f"inspect {image.partition('@')[0]} " in asked and "--default-index https://index.example/cpu" in asked


@pytest.mark.parametrize(("file", "words"), [("digest", "gave no digest"), ("lock", "cannot be reached")])
def test_where_one_is_not_reached_nothing_is_changed(project: Path, file: str, words: str) -> None:
    if file == "digest":
        (project / file).write_text("")
    else:
        (project / file).unlink()
    done = lock_upstream(project)
    assert done.returncode == 1 and words in done.stderr
    assert (project / "images" / "Dockerfile").read_text() == DOCKERFILE
    assert not (project / "images" / "torch-cpu.lock").exists()


def check_locks(project: Path, **answers: str) -> subprocess.CompletedProcess[str]:
    """The check with a uv that answers from files: `said` is what it says where it fails."""
    for name in ("check-locks.sh", "torch-cuda.lock", "trainer.lock", "server.lock"):
        shutil.copy(ROOT / "images" / name, project / "images")
    shutil.copy(ROOT / "images" / "torch-cuda.lock", project / "lock")
    for name, text in answers.items():
        (project / name).write_text(text)
    uv = """#!/bin/sh
echo "$@" >>asked
if [ "$4" = "$(cat fails 2>/dev/null)" ]; then cat said >&2; exit 2; fi
if [ "$4" = compile ]; then while [ "$1" != -o ]; do shift; done; cp lock "$2"; fi
"""
    (project / "python").write_text(uv)
    command = ["sh", "images/check-locks.sh", str(project / "python")]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)


def test_locks_with_cuda_are_resolved_anew(project: Path) -> None:
    done = check_locks(project)
    assert done.returncode == 0 and done.stdout.count("\n") == 3, done.stderr
    asked = (project / "asked").read_text().splitlines()
    assert [line.split()[3] for line in asked] == ["compile", "install", "install"]
    assert all("--dry-run --require-hashes" in line for line in asked[1:])


@pytest.mark.parametrize(
    ("answers", "code", "words"),
    [
        ({"lock": "torch==2.13.0 \\\n    --hash=sha256:00\n"}, 1, "images/torch-cuda.lock does not hold"),
        ({"fails": "install", "said": "error: no trusted hash"}, 1, "images/trainer.lock does not hold"),
        ({"fails": "compile", "said": "error: Failed to fetch: https://index.example"}, 0, "is not checked, for the"),
    ],
)
def test_a_lock_that_is_not_whole_is_told(project: Path, answers: dict[str, str], code: int, words: str) -> None:
    done = check_locks(project, **answers)
    assert done.returncode == code and words in done.stdout + done.stderr
