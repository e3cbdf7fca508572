"""Every option and argument of every command has a bound: what is outside is refused in one sentence that names it."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import typer.main
from small_pipeline import called

import operators.main
from nanochat.cli.main import app
from nanochat.serving import command as serving

FLAGS = {
    "json",
    "cluster",
    "open",
    "probe",
    "mixed",
    "follow",
    "watch",
    "markdown",
    "dry-run",
    "champions",
    "unfinished",
    "imported",
    "keep-releases",
    "int8",
    "help",
}
# Refused by every parameter, whatever it takes; no program is given a NUL, but a test can.
NEVER = ["", " ", "x\0y", "x\udcff", "x\x1b[2J", "x" * 200_000]
NO_NUMBER = ["nan", "inf", "-inf", "1e999", "9" * 5000, "x", "1_0x", "\u0665x", "--", "1;2"]
FLOATS = {"temperature", "seconds", "rate"}


def commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


PARAMETERS = [
    pytest.param(words, param, id=f"{' '.join(words)} {param.name}")
    for words, command in commands(typer.main.get_command(app))
    for param in command.params
]


def names_of(param: Any) -> tuple[str, list[str]]:
    """A parameter as it is typed, without its value, and all that it may be called in an error."""
    if param.param_type_name == "argument":
        return "", [param.name, param.name.upper()]
    return max(param.opts, key=len), list(param.opts)


def bounds_of(param: Any) -> tuple[str, str] | None:
    """The bounds of a number, as help shows them; None for a text."""
    found = re.fullmatch(r"(-?[\d.e+]+)\.\.([\d.e+]+)", param.metavar or "", re.IGNORECASE)
    return (found[1], found[2]) if found else None


def is_flag(param: Any) -> bool:
    return bool(getattr(param, "is_flag", False))


def sentence(home: Path, words: tuple[str, ...], param: Any, value: str) -> str:
    """The one line that a command answers to a value of a parameter."""
    option, names = names_of(param)
    second = (words[0], param.name) in {("logs", "stage"), ("export", "folder"), ("pull", "folder"), ("compare", "b")}
    before = ["x"] if second and not option else []  # the name of the run comes before
    done = called(home, *words, *([f"{option}={value}"] if option else [*before, "--", value]))
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stdout == "" and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert any(f"'{name}'" in done.stderr for name in names) and done.stderr.isascii(), done.stderr
    assert len(done.stderr) < 300
    return done.stderr


@pytest.mark.parametrize(("words", "param"), PARAMETERS)
def test_what_is_out_of_bounds_is_refused(tmp_path: Path, words: tuple[str, ...], param: Any) -> None:
    if is_flag(param):
        assert max(param.opts, key=len).removeprefix("--") in FLAGS, "a flag that is not listed here"
        return
    bounds = bounds_of(param)
    for value in [*NEVER, *NO_NUMBER, *outside(param, *bounds)] if bounds else NEVER:
        sentence(tmp_path, words, param, value)
    assert not list(tmp_path.rglob("*")), "nothing was begun"


def outside(param: Any, low: str, high: str) -> list[str]:
    """Numbers just outside and far outside; for a whole number also what is none."""
    if param.name in FLOATS:
        return [str(value) for value in (float(low) - 1e-3, float(high) + 1e-3, 1e300, -1e300)]
    return [str(int(low) - 1), str(int(high) + 1), "9" * 25, f"{low}.5", "1e3"]


NUMBERS = [item for item in PARAMETERS if bounds_of(item.values[1])]


@pytest.mark.parametrize(("words", "param"), NUMBERS)
def test_the_bounds_themselves_are_taken(tmp_path: Path, words: tuple[str, ...], param: Any) -> None:
    assert len(NUMBERS) >= 10
    others = {"identity": "--model", "bench": "--store" if "serve" in words else "--set"}
    option, other = max(param.opts, key=len), others.get(words[0], "--store")
    for value in bounds_of(param) or ():
        done = called(tmp_path, *words, f"{option}={value}", f"{other}=")  # the second one is complained about
        assert done.returncode == 2 and f"'{other}'" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "value",
    ["ftp://host", "host:8000", "http://", "http://a b", "http://h:0", "http://h:99999", "http://[::1", "http:/x"],
)
def test_what_is_no_address_of_a_server_is_refused(tmp_path: Path, value: str) -> None:
    done = called(tmp_path, "chat", "--url", value)
    assert done.returncode == 2 and "is not an address like http://127.0.0.1:8000" in done.stderr


def test_a_password_in_an_address_is_not_repeated(tmp_path: Path) -> None:
    done = called(tmp_path, "chat", "--url", "http://me:secret@host")
    assert done.returncode == 2 and "password" in done.stderr and "secret" not in done.stderr


@pytest.mark.parametrize("line", ["", "identity"])
def test_a_command_without_words_shows_help(tmp_path: Path, line: str) -> None:
    done = called(tmp_path, *line.split())
    assert done.returncode == 2 and "Commands:" in done.stderr


@pytest.mark.parametrize(
    "line", ["frob", "run", "run --frob x.yaml", "serve a b", "chat --temperature", "identity frob"]
)
def test_a_mistake_in_the_command_line_is_one_sentence(tmp_path: Path, line: str) -> None:
    done = called(tmp_path, *line.split())
    assert done.returncode == 2
    assert re.fullmatch(r"error: [^\n]+ See: nanochat[ a-z]* --help\n", done.stderr), done.stderr


def test_what_the_shell_passes_on_as_bytes_is_refused_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nanochat.cli.main", "status", b"x\xff"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONIOENCODING": "ascii"}, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["--host", "--port", "--slots", "--linger"])
@pytest.mark.parametrize("value", ["", "-5", "99999999", "nan", "inf", "x\0", "x" * 300])
def test_the_server_of_a_cluster_bounds_its_options(option: str, value: str) -> None:
    refused(serving.main, option, value)


@pytest.mark.parametrize(("option", "value"), [("--port", "99999"), ("--config", ""), ("--log-level", "loud")])
def test_the_controller_bounds_its_options(option: str, value: str) -> None:
    refused(operators.main.main, option, value)


def refused(program: Any, option: str, value: str) -> None:
    if option == "--host" and value not in ("", "x\0", "x" * 300):
        return  # a name like any other, which the system then does not know
    said = io.StringIO()
    command = mock.patch.object(sys, "argv", ["program", f"{option}={value}"])
    with command, redirect_stderr(said), pytest.raises(SystemExit) as ended:
        program()
    assert ended.value.code == 2 and f"argument {option}" in said.getvalue()
