"""What the chat page is made of, and what it is served with; tests/browser has what it does."""

from __future__ import annotations

import fnmatch
import hashlib
import re
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest

from nanochat.serving import vendored
from nanochat.serving.page import DOCUMENTS, POLICY
from nanochat.serving.settings import ServerSettings
from nanochat.serving.vendored import FOLDER, read_index, refresh
from nanochat.spec.errors import NanochatError, UserError

ROOT = Path(__file__).parents[2]
STATIC = FOLDER.parent
OWN = [path for path in STATIC.iterdir() if path.is_file()]


def test_the_page_allows_only_itself(start: Any) -> None:
    url = start(settings=ServerSettings(api_keys=frozenset({"secret"}))).url
    policies = {path: policy for path, (_, policy) in DOCUMENTS.items()}
    for path in ("/", "/docs", "/page/main.js", "/page/style.css", "/page/vendor/marked.js"):
        answer = httpx.get(url + path)
        assert answer.status_code == 200 and answer.headers["Content-Security-Policy"] == policies.get(path, POLICY)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        again = httpx.get(url + path, headers={"If-None-Match": answer.headers.get("ETag", "")})
        assert again.status_code == (304 if path.startswith("/page/") else 200)
    for policy in policies.values():
        assert "unsafe" not in policy and "http" not in policy and "*" not in policy
    assert "/javascript" in httpx.get(f"{url}/page/main.js").headers["Content-Type"]


@pytest.mark.parametrize("path", ["/page/none", "/page/..%2fapp.py", "/page/%2e%2e/app.py", "/page/", "/page/vendor"])
def test_nothing_else_is_served(server: Any, path: str) -> None:
    answer = httpx.get(server.url + path)
    assert answer.status_code == 404 and answer.json()["error"]["message"]


def test_a_key_is_asked_for_beside_the_page(start: Any) -> None:
    url = start(settings=ServerSettings(api_keys=frozenset({"secret"}))).url
    for path in ("/page", "/pages/main.js", "/v1/models"):
        assert httpx.get(url + path).status_code == 401, path


def test_the_page_makes_no_elements_of_text() -> None:
    assert len(OWN) > 15
    for path in OWN:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), path
        assert "http://" not in text and "https://" not in text, path
        assert not re.search(r"<(script|style)>|\son\w+=|\sstyle=", text), path


def test_every_file_is_installed() -> None:
    described = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = described["tool"]["setuptools"]["package-data"]["nanochat.serving"]
    files = [path.relative_to(STATIC.parent).as_posix() for path in STATIC.rglob("*") if path.is_file()]
    assert [name for name in files if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)] == []


def test_the_libraries_are_those_that_are_listed() -> None:
    index, notice = read_index(), (ROOT / "NOTICE").read_text(encoding="utf-8")
    files = {file["name"]: file["sha256"] for library in index for file in library["files"]}
    assert {path.name for path in FOLDER.iterdir()} == {*files, vendored.INDEX}
    for name, digest in files.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name
    for library in index:
        assert f"{library['package']} {library['version']}, " in notice
        assert sum(file["name"].endswith(".LICENSE") for file in library["files"]) == 1


def copied(folder: Path) -> Path:
    for path in FOLDER.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_library_is_refreshed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied(tmp_path)

    def fetch(library: dict[str, Any], version: str) -> list[bytes]:
        code, *others = [(FOLDER / file["name"]).read_bytes() for file in library["files"]]
        return [code + (b"// new" if version == "99.0.0" else b""), *others]

    monkeypatch.setattr(vendored, "_fetch", fetch)
    refresh(folder, {})
    assert read_index(folder) == read_index()
    refresh(folder, {"marked": "99.0.0"})
    marked = read_index(folder)[0]
    assert marked["version"] == "99.0.0" and (folder / "marked.js").read_bytes().endswith(b"// new")
    assert marked["files"][0]["sha256"] == hashlib.sha256((folder / "marked.js").read_bytes()).hexdigest()
    with pytest.raises(UserError, match="use no library 'left-pad'"):
        refresh(folder, {"left-pad": "1.0.0"})
    monkeypatch.setattr(vendored, "_fetch", lambda library, _version: [b"other"] * len(library["files"]))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(NanochatError, match="has another hash than"):
        refresh(folder, {})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
