"""docs/architecture.md and its picture tell of the code that is there."""

from __future__ import annotations

import re
import runpy
import tomllib
import xml.etree.ElementTree as ElementTree

import doc_pages
from doc_pages import ROOT

PAGE = ROOT / "docs" / "architecture.md"

PICTURE = runpy.run_path(str(ROOT / "docs" / "pictures" / "architecture.py"))


def test_the_picture_is_fresh() -> None:
    assert PICTURE["FILE"].read_text(encoding="utf-8") == PICTURE["text"](), "run make generate"


def test_the_picture_names_what_there_is() -> None:
    ElementTree.fromstring(PICTURE["text"]())
    for box in PICTURE["BOXES"]:
        assert not box.file or (ROOT / box.file).exists(), box.file


def test_files_that_the_page_names_exist() -> None:
    """Whatever stands between backticks and looks like a file or folder of the project, and is not one of a store's."""
    named = {span for span in doc_pages.inline_code(PAGE) if re.fullmatch(r"[\w.-]+(/[\w.*-]+)*/?", span)}
    named = {span for span in named if "/" in span or span.endswith(".py")} - {"kind/name"}
    assert len(named) > 50
    assert sorted(span for span in named if not list(ROOT.glob(span))) == []


def test_the_layers_are_those_that_the_linter_holds() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["name"] == "layers point down")
    section = doc_pages.prose(PAGE).partition("\n## Layers\n")[2].partition("\n## ")[0]
    assert [name.replace("/", ".") for name in re.findall(r"^\| `(\S+)` \|", section, re.MULTILINE)] == layers
