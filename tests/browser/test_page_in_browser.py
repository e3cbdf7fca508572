"""The pages of chat and API and the report in a browser: `make test-browser` installs what drives it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.browser

SUITES = ["markdown", "chats", "branches", "writing", "trouble", "examples", "docs", "report"]


def test_all_suites_are_run() -> None:
    assert sorted(path.name for path in HERE.glob("*.test.mjs")) == sorted(f"{name}.test.mjs" for name in SUITES)


@pytest.mark.parametrize("suite", SUITES)
def test_page(suite: str) -> None:
    command = ["node", "--test", "--test-reporter=spec", str(HERE / f"{suite}.test.mjs")]
    ran = subprocess.run(command, capture_output=True, text=True)
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout + ran.stderr
