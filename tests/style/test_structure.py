"""Rules for every module: imports make no circles, names and docstrings keep to the house's rules."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PRONOUNS = {"what", "that", "it", "its", "those", "these", "they"}
# Words of the project's own, where the field has standard ones.
CLASSES = {"Chunks", "Host", "LetGo", "Live", "Loop", "PipelineLoop", "Place", "Seen", "Talk", "Ticket", "Told", "View"}
PARTS_OF_CLASSES = ("Keeper", "Speaker", "Vault")
FUNCTIONS = {"explained", "explaining", "full", "tried"}
MODULES = {"accept", "follower", "projector", "signals"}


def parse() -> Iterator[tuple[str, ast.Module]]:
    for package in ("nanochat", "operators", "tasks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield name, ast.parse(path.read_text(encoding="utf-8"))


TREES = dict(parse())


def imported(name: str) -> Iterator[str]:
    """Whatever a module imports anywhere: at its head, in functions, for type checkers."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{name}: imports are absolute"
            whole = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (item if item in TREES else node.module for item in whole)


def definitions() -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield name, node


def test_imports_make_no_circle() -> None:
    try:
        TopologicalSorter({name: {*imported(name)} & TREES.keys() for name in TREES}).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_modules_have_names_of_their_own() -> None:
    """The standard library has other ones; `__main__` is its name for what is run."""
    taken = (sys.stdlib_module_names | MODULES) - {"__main__"}
    assert [name for name in TREES if name.rpartition(".")[2] in taken] == []


def test_docstrings_name_their_subject() -> None:
    found = [*TREES.items(), *definitions()]
    docstrings = [(name, text) for name, node in found if (text := ast.get_docstring(node))]
    assert len(docstrings) > 500
    assert [item for item in docstrings if re.findall(r"[a-z]+", item[1].lower())[0] in PRONOUNS] == []


def test_words_are_the_fields() -> None:
    wrong = []
    for module, node in definitions():
        plain = node.name.lstrip("_")
        if isinstance(node, ast.ClassDef):
            wrong += [(module, plain)] if plain in CLASSES or plain.endswith(PARTS_OF_CLASSES) else []
        else:
            wrong += [(module, plain)] if plain in FUNCTIONS else []
    assert wrong == []
