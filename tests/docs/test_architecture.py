"""docs/architecture.md and its picture tell of the code that is there."""

from __future__ import annotations

import runpy
import xml.etree.ElementTree as ElementTree

from doc_pages import ROOT

PICTURE = runpy.run_path(str(ROOT / "docs" / "pictures" / "architecture.py"))


def test_the_picture_is_fresh() -> None:
    assert PICTURE["FILE"].read_text(encoding="utf-8") == PICTURE["text"](), "run make generate"


def test_the_picture_names_what_there_is() -> None:
    ElementTree.fromstring(PICTURE["text"]())
    for box in PICTURE["BOXES"]:
        assert not box.file or (ROOT / box.file).exists(), box.file
