"""`nanochat report --open`: the report in the browser, or where to find it."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from types import SimpleNamespace

import pytest

from nanochat.cli import runs
from nanochat.spec.errors import UserError


def test_the_report_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = SimpleNamespace(place="here", name="demo", report=lambda folder, markdown: None)
    monkeypatch.setattr(runs, "find_handle", lambda *_, **__: run)
    monkeypatch.setattr(runs, "resolve_profile", lambda store: SimpleNamespace(home=tmp_path))
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: not opened.append(url))
    runs.report("demo")
    assert opened == [], "without --open no browser is asked"
    runs.report("demo", open_=True)
    assert len(opened) == 1 and opened[0].startswith("file:///") and opened[0].endswith("/report.html")
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    with pytest.raises(UserError, match=r"no browser was found .* open .*report\.html in one yourself"):
        runs.report("demo", open_=True)
