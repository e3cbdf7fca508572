"""docs/from-nanochat.md: whatever its right columns name exists here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import doc_pages
import pytest
import typer.main
from doc_pages import ROOT, words
from test_commands import check_command, check_path, check_setting, check_value, schema

from nanochat.cli.main import app
from nanochat.pipeline.planner import STAGES
from nanochat.spec.environment import FOREIGN, hints
from nanochat.spec.pipeline import PipelineSpec

PAGE = ROOT / "docs" / "from-nanochat.md"
# What is ours and is neither a command nor a setting: values and fields in a pipeline's file, and routes of the API.
WORDS = {"modern", "rows", "epochs", "metadata.name", "POST /v1/chat/completions", "/v1"}


def rows() -> list[tuple[str, str]]:
    """(theirs, ours) of all tables."""
    lines = [line for line in doc_pages.prose(PAGE).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    assert all(len(row) == 2 for row in cells), [row for row in cells if len(row) != 2]
    return [(theirs, ours) for theirs, ours in cells if theirs != "there"]


def named() -> Iterator[str]:
    for _, ours in rows():
        yield from re.findall(r"`([^`]+)`", ours)


@cache
def options() -> frozenset[str]:
    """The options of all commands."""

    def of(command: Any) -> Iterator[str]:
        for inner in getattr(command, "commands", {}).values():
            yield from of(inner)
        yield from (name for parameter in command.params for name in parameter.opts)

    return frozenset(of(typer.main.get_command(app)))


@cache
def code() -> str:
    files = [path for folder in ("nanochat", "operators", "images") for path in (ROOT / folder).rglob("*")]
    return "\n".join(path.read_text("utf-8") for path in files if path.suffix == ".py" or path.name == "Dockerfile")


@pytest.mark.parametrize("name", sorted(set(named())))
def test_what_is_named_exists(name: str) -> None:
    sections = {info.alias or field for field, info in PipelineSpec.model_fields.items()}
    first = name.split(".")[0]
    if name.startswith(("nanochat ", "make ")):
        check_command(next(words(name)), where=PAGE.name)
    elif name.startswith("--"):
        assert name.split("=")[0].split()[0] in options() | {"--set"}
    elif re.fullmatch("[A-Z][A-Z_]+", name):
        assert f'"{name}"' in code() or f"{name}=" in code()
    elif "/" in name and name not in WORDS:
        assert name.rstrip("/") and (ROOT / name).exists(), name
        check_path(name, PAGE.name)
    elif name in WORDS or name in STAGES:
        return
    elif first in sections:
        check_setting(name, PAGE.name)
    else:
        assert first in schema()["properties"], f"{name}: it is nothing that this test knows"
        check_value(name, PAGE.name)


def test_every_row_has_both_sides() -> None:
    assert len(rows()) > 70
    assert [row for row in rows() if not all(row)] == []


def test_their_variables_are_answered_with_ours() -> None:
    for name, (here, _) in FOREIGN.items():
        (row,) = [ours for theirs, ours in rows() if f"`{name}`" in theirs]
        assert here.split()[0] in row
    (hint,) = hints({"NANOCHAT_BASE_DIR": "/data"})
    assert "NANOCHAT_BASE_DIR" in hint and "NANOCHAT_HOME" in hint
    assert list(hints({"NANOCHAT_BASE_DIR": "/data", "NANOCHAT_HOME": "/data/ours"})) == []
    assert list(hints({"NANOCHAT_BASE_DIR": "", "PATH": "/bin"})) == []
