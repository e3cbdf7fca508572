"""Requests that schemathesis makes from the published /openapi.json: all paths and methods, valid and not."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

pytestmark = pytest.mark.clients

PROGRAM = Path(__file__).parent / ".venv/bin/schemathesis"
# Left out are those for which more or less has to be taken than the schema can say: numbers that are sent as texts are
# taken, and messages have to end with one that can be answered.
CHECKS = [
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "unsupported_method",
    "allow_header_conformance", "missing_required_header",
]  # fmt: skip


def test_what_the_schema_allows_is_understood_and_nothing_fails(url: str, tmp_path: Path) -> None:
    report = tmp_path / "requests.har"
    # One worker: below Python 3.12 two threads that read syntax trees, as hypothesis does, can end each other's
    # (python/cpython#106905).
    options = ["--max-examples=100", "--seed=7", "--workers=1", "--no-color", f"--checks={','.join(CHECKS)}"]
    command = [str(PROGRAM), "run", f"{url}/openapi.json", *options, "--report=har", f"--report-har-path={report}"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr

    entries = json.loads(report.read_text())["log"]["entries"]
    statuses = Counter(entry["response"]["status"] for entry in entries)
    print(f"\n{subprocess.check_output([PROGRAM, '--version'], text=True).strip()}: {dict(statuses)}")
    assert len(entries) > 500 and max(statuses) < 500
    assert statuses[404] < len(entries) / 10 and statuses[200] > len(entries) / 10
    asked = {(entry["request"]["method"], urlsplit(entry["request"]["url"]).path) for entry in entries}
    for path, methods in httpx.get(f"{url}/openapi.json").json()["paths"].items():
        begin = path.partition("{")[0]
        for method in methods:
            assert any(tried == method.upper() and to.startswith(begin) for tried, to in asked), (method, path)
