"""Own text in object storage: a file, a folder and a pattern mean there what they mean on this machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from s3_server import S3Server
from store_servers import OURS

from nanochat.data.hub import Hub
from nanochat.data.text_files import local_files, stored_files
from nanochat.spec.errors import UserError
from nanochat.storage import Profile, open_store

NAMES = [
    "a.jsonl", "b.jsonl.gz", "more/c.parquet", "more/deep/d.txt", "a b.md", "50%.txt", "e[1].txt", "notes.pdf",
    ".hidden.jsonl", ".tmp-17-0123456789ab", ".tmp-17-0123456789ab.jsonl", "more/.d.txt", ".trash/e.jsonl",
    ".trash/.f.jsonl", "folder.jsonl/g.jsonl",
]  # fmt: skip
PLACES = [
    "", "a.jsonl", "e[1].txt", "*.jsonl*", "[ab].jsonl", "more", "more/*", "**/*.txt", "**/*.parquet", "*/deep/?.txt",
    ".hidden.jsonl", ".hid*", ".trash", ".trash/*", ".trash/.*", "*.zip", "none", "notes.pdf", "*.pdf", ".*/none",
]  # fmt: skip


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> Profile:
    return s3_server.profile("own-text")


@pytest.fixture(autouse=True)
def credentials(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_server.credentials.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def letters(bucket: Profile, tmp_path: Path) -> Path:
    """The files in a folder, and in the bucket with those of a neighbour whose name begins alike."""
    store, folder = open_store(bucket), tmp_path / "letters"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
        store.write(f"letters/{name}", name.encode())
    store.write("letters-of-others/x.jsonl", b"x")
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_a_place_means_the_same_files_as_on_this_machine(bucket: Profile, letters: Path, place: str) -> None:
    def meant(found: list[str], top: str) -> list[str]:
        assert all(name.startswith(f"{top}/") for name in found)
        return [name.removeprefix(f"{top}/") for name in found]

    address = f"{bucket.root}/letters"
    try:
        here = meant([str(path) for path in local_files(letters / place)], str(letters))
    except UserError:
        with pytest.raises(UserError, match=r"correct sources\.text\.files"):
            stored_files(f"{address}/{place}", bucket)
        return
    assert meant(stored_files(f"{address}/{place}", bucket), address) == here
    assert place.startswith(".") or not any(part.startswith(".") for name in here for part in name.split("/"))


def test_all_that_is_listed_can_be_fetched(bucket: Profile, letters: Path, tmp_path: Path) -> None:
    with Hub(store=bucket) as hub:
        for address in stored_files(f"{bucket.root}/letters/", bucket):
            target = tmp_path / "fetched"
            hub.fetch(address, target, setting="sources.text.files", limit=100)
            assert address.endswith(f"/letters/{target.read_text()}")


@pytest.mark.parametrize("name", ["a #1.txt", "a?.txt"])
def test_a_file_that_no_address_names_is_to_be_renamed(bucket: Profile, name: str) -> None:
    store = open_store(bucket)
    store.write(f"odd/{name}", b"x")
    with pytest.raises(UserError, match=f"^rename bucket/own-text/odd/{re.escape(name)} in s3://bucket/own-text/odd: "):
        stored_files(f"{bucket.root}/odd", bucket)
    store.delete("odd")
