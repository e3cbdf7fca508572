"""What stands around the code is true of it: the wheel's name, the licence, make's targets, the namespaces of kind."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import doc_pages
import yaml
from doc_pages import PAGES, ROOT, commands

from nanochat.spec.chatpipeline import TRAINING_OPERATOR

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FOLDERS = (".ci", ".github", "docs", "helm", "images", "k8s", "nanochat", "operators", "tasks")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def files() -> Iterator[Path]:
    """The project's files of text, without its tests."""
    yield from (path for path in ROOT.glob("*") if path.is_file() and path.name != ".git")
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix not in (".pyc", ".lock", ".png"):
                yield path


def test_nothing_installs_another_projects_wheel() -> None:
    """`nanochat` on the package index is not this project, so no requirement and no advice names it."""
    name = PROJECT["name"]
    requirement = re.compile(r"(?<![\w./-])nanochat\s*(?:\[|[=~<>!]=)|pip install\b[^\n|&;]*[\s'\"]nanochat(?![\w./-])")
    assert name != "nanochat" and requirement.search("pip install 'nanochat[train]'")
    assert [str(path) for path in files() if requirement.search(path.read_text(encoding="utf-8"))] == []
    own = [line for extra in PROJECT["optional-dependencies"].values() for line in extra if line.startswith("nanochat")]
    assert own and all(line.startswith(f"{name}[") for line in own)


def test_the_licence_is_the_one_that_is_named() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    for file in PROJECT["license-files"]:
        assert (ROOT / file).is_file()
    dockerfile = (ROOT / "images" / "Dockerfile").read_text(encoding="utf-8")
    for image in dockerfile.split("\nFROM ")[1:]:
        if "/code/nanochat /opt" in image:
            assert f"COPY {' '.join(PROJECT['license-files'])} /usr/share/nanochat/" in image


def test_make_lists_its_targets() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (phony,) = re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)$", MAKEFILE, re.MULTILINE)
    assert set(re.findall(r"^make (\S+) +\S", listed, re.MULTILINE)) == set(phony.replace("\\\n", " ").split())


def test_make_generate_runs_all_that_generate_files() -> None:
    """Modules that write a file of the project when they are run."""
    run = re.compile(r'__name__ == "__main__":\n(?:    .*\n)*    \w+\.write_text\(')
    python = (path for path in files() if path.suffix == ".py")
    writers = {path.relative_to(ROOT).as_posix() for path in python if run.search(path.read_text(encoding="utf-8"))}
    recipe = MAKEFILE.partition("\ngenerate:")[2].partition("\n\n")[0]
    named = re.findall(r"-m (\S+)", recipe)
    assert len(writers) > 3
    assert {f"{name.replace('.', '/')}.py" for name in named} | set(re.findall(r"docs/\S+\.py", recipe)) == writers


def test_one_training_operator_is_installed_everywhere() -> None:
    """By the controller's sentences and the doctor, by make, by the page and by the chart's notes."""
    (address,) = re.findall(r"https://\S+?ref=v[\d.]+", TRAINING_OPERATOR)
    for file in ("Makefile", "docs/install.md", "helm/nanochat/templates/NOTES.txt"):
        assert address in (ROOT / file).read_text(encoding="utf-8"), file


def test_namespaces_of_the_pages_exist_on_kind() -> None:
    """`make kind-up` makes those that `cluster` blocks name, and pipelines there find the store's keys."""
    documents = yaml.safe_load_all((ROOT / "k8s" / "namespaces.yaml").read_text(encoding="utf-8"))
    made = {document["metadata"]["name"] for document in documents}
    assert "k8s/namespaces.yaml" in MAKEFILE
    named = set()
    for page in PAGES:
        for block in doc_pages.read_blocks(page):
            for command in commands(block.text) if block.mark == "cluster" else ():
                if "helm template" not in command:
                    named |= set(re.findall(r" -n (\S+)", command))
    assert named == made
    values = yaml.safe_load((ROOT / "helm" / "nanochat" / "values-kind.yaml").read_text(encoding="utf-8"))
    assert {"nanochat", *values["devStore"]["namespaces"]} == made


def test_supported_versions_are_those_that_are_used() -> None:
    """docs/clouds.md against the chart, the Makefile and the project."""
    section = (
        doc_pages.prose(ROOT / "docs" / "clouds.md").partition("\n## Supported versions\n")[2].partition("\n## ")[0]
    )
    table = dict(re.findall(r"^\| (\w+)[^|]*\| (.*?) \|$", section, re.MULTILINE))
    chart = yaml.safe_load((ROOT / "helm" / "nanochat" / "Chart.yaml").read_text(encoding="utf-8"))
    assert table["Kubernetes"].startswith(re.findall(r">=(\d+\.\d+)", chart["kubeVersion"])[0])
    (operator,) = re.findall(r"^TRAINING_OPERATOR .*\?ref=v(\S+)$", MAKEFILE, re.MULTILINE)
    assert table["Kubeflow"].endswith(f"| {operator}")
    assert table["Python"].startswith(PROJECT["requires-python"].removeprefix(">="))
    (torch,) = re.findall(r"^TORCH_VERSION \?= (\S+)$", MAKEFILE, re.MULTILINE)
    assert table["PyTorch"] == f"{torch} | {torch}"
