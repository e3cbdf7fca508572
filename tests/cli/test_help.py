"""What help ends with, the version, and what a shell completes."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from small_pipeline import called

from nanochat import __version__
from nanochat.cli.examples import HELP
from nanochat.cli.main import app

ROOT = Path(__file__).parents[2]


def commands(group: Any, words: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        path = f"{words} {name}".strip()
        yield from commands(command, path) if hasattr(command, "commands") else [(path, command)]


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_every_command_has_examples_and_no_other_has() -> None:
    assert set(HELP) == set(COMMANDS)
    for name, command in COMMANDS.items():
        assert all(line in command.epilog for line in HELP[name][0]), name


@pytest.mark.parametrize("name", HELP)
def test_examples_can_be_typed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for line in HELP[name][0]:
        words = shlex.split(line.removeprefix("source <(").removesuffix(")"))
        words = words[: words.index(">")] if ">" in words else words
        assert words[0] == "nanochat" and words[1:][: len(name.split())] == name.split(), line
        command = COMMANDS[name]
        command.make_context(name, words[1 + len(name.split()) :])  # which reads every argument and option
        for word in words:
            assert not word.startswith("k8s/") or Path(word).is_file(), line


def test_the_variables_that_help_names_are_read_somewhere() -> None:
    code = "".join(path.read_text() for path in (ROOT / "nanochat").rglob("*.py") if path.name != "examples.py")
    code += "".join(path.read_text() for path in (ROOT / "operators").rglob("*.py"))
    for _, variables in HELP.values():
        assert [name for name in variables if f'"{name}"' not in code] == []


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert __version__ == declared
    done = called(tmp_path, "--version")
    assert done.returncode == 0 and done.stdout.startswith(f"nanochat {declared}"), done.stderr
    module = subprocess.run(
        [sys.executable, "-m", "nanochat", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert module.stdout == done.stdout


@pytest.mark.parametrize(
    ("typed", "found"),
    [("nanochat stat", ["status"]), ("nanochat bench in", ["infer"]), ("nanochat status --js", ["--json"])],
)
def test_bash_completes_commands_and_options(tmp_path: Path, typed: str, found: list[str]) -> None:
    program = tmp_path / "nanochat"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m nanochat "$@"\n')
    program.chmod(0o755)
    words = typed.split()
    script = (
        f"source <({program} completion bash); COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
        f"_nanochat_completion {program}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == found, done.stderr


@pytest.mark.parametrize(("shell", "first"), [("zsh", "#compdef nanochat"), ("fish", "complete --command nanochat")])
def test_other_shells_have_a_script_too(tmp_path: Path, shell: str, first: str) -> None:
    assert called(tmp_path, "completion", shell).stdout.startswith(first)
