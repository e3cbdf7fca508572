"""Fetching: whole or not at all, from servers that misbehave."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import FakeHub, cut, status

from nanochat.data.hub import Hub, Retry
from nanochat.data.verify import check_parquet
from nanochat.parse.address import shown
from nanochat.spec.errors import StorageError, UserError

BODY = bytes(range(256)) * 4000  # about a megabyte
LIMIT = len(BODY)


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def hub(waits: list[float]) -> Iterator[Hub]:
    with Hub(retry=Retry(attempts=3, timeout=5.0), sleep=waits.append) as hub:
        yield hub


@pytest.fixture
def parquet(tmp_path: Path) -> bytes:
    path = tmp_path / "source.parquet"
    pq.write_table(pa.table({"text": [f"document {i} " * 20 for i in range(500)]}), path)
    return path.read_bytes()


def test_fetches_a_file(hub: Hub, hub_server: FakeHub, tmp_path: Path) -> None:
    hub_server.files["/a"] = BODY
    assert hub.fetch(f"{hub_server.base}/a", tmp_path / "a", setting="sources.hub", limit=LIMIT) == len(BODY)
    assert (tmp_path / "a").read_bytes() == BODY
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_goes_on_where_a_transfer_was_cut(hub: Hub, hub_server: FakeHub, tmp_path: Path) -> None:
    hub_server.files["/a"] = BODY
    hub_server.answers["/a"] = [cut(0.6)]
    hub.fetch(f"{hub_server.base}/a", tmp_path / "a", setting="sources.hub", limit=LIMIT)
    assert (tmp_path / "a").read_bytes() == BODY
    assert hub_server.ranges("/a") == [None, f"bytes={int(len(BODY) * 0.6)}-"]


def test_begins_again_when_the_file_has_changed(hub: Hub, hub_server: FakeHub, tmp_path: Path) -> None:
    hub_server.files["/a"] = BODY
    hub_server.tag = '"2"'
    hub_server.answers["/a"] = [cut(0.6, tag='"1"')]
    hub.fetch(f"{hub_server.base}/a", tmp_path / "a", setting="sources.hub", limit=LIMIT)
    assert (tmp_path / "a").read_bytes() == BODY


def test_begins_again_where_the_server_names_no_version(hub: Hub, hub_server: FakeHub, tmp_path: Path) -> None:
    hub_server.files["/a"] = BODY
    hub_server.tag = None
    hub_server.answers["/a"] = [cut(0.6, tag=None)]
    hub.fetch(f"{hub_server.base}/a", tmp_path / "a", setting="sources.hub", limit=LIMIT)
    assert (tmp_path / "a").read_bytes() == BODY
    assert hub_server.ranges("/a") == [None, None]


def test_a_cut_without_content_length_is_found_by_the_check(
    hub: Hub, hub_server: FakeHub, tmp_path: Path, parquet: bytes
) -> None:
    hub_server.files["/a.parquet"] = parquet
    hub_server.answers["/a.parquet"] = [cut(0.5, length=False)]
    hub.fetch(f"{hub_server.base}/a.parquet", tmp_path / "a", setting="sources.hub", limit=LIMIT, check=check_parquet)
    assert (tmp_path / "a").read_bytes() == parquet


def test_a_whole_file_without_content_length(hub: Hub, hub_server: FakeHub, tmp_path: Path) -> None:
    hub_server.files["/a"] = BODY
    hub_server.answers["/a"] = [cut(1.0, length=False)]
    hub.fetch(f"{hub_server.base}/a", tmp_path / "a", setting="sources.hub", limit=LIMIT)
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_file_that_is_truncated_at_its_source_is_named(
    hub: Hub, hub_server: FakeHub, tmp_path: Path, parquet: bytes
) -> None:
    hub_server.files["/a.parquet"] = parquet[: len(parquet) // 2]
    with pytest.raises(UserError, match=r"/a\.parquet is damaged: it is no whole parquet file .* sources\.text"):
        hub.fetch(
            f"{hub_server.base}/a.parquet", tmp_path / "a", setting="sources.text", limit=LIMIT, check=check_parquet
        )
    assert not (tmp_path / "a").exists()
    assert len(hub_server.requests) == 2


def test_missing_files_name_address_and_setting(hub: Hub, hub_server: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{hub_server.base}/nothing does not exist .*: correct sources\.words\.url"):
        hub.fetch(f"{hub_server.base}/nothing", tmp_path / "a", setting="sources.words.url", limit=LIMIT)
    assert len(hub_server.requests) == 1


def test_retry_after_is_followed(hub: Hub, hub_server: FakeHub, tmp_path: Path, waits: list[float]) -> None:
    hub_server.files["/a"] = BODY
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    hub_server.answers["/a"] = [status(429, Retry_After="7"), status(503, Retry_After=date)]
    hub.fetch(f"{hub_server.base}/a", tmp_path / "a", setting="sources.hub", limit=LIMIT)
    assert 7 + 95 < sum(waits) <= 7 + 101


def test_delays_grow_and_end_in_a_storage_error(
    hub: Hub, hub_server: FakeHub, tmp_path: Path, waits: list[float]
) -> None:
    hub_server.answers["/a"] = [status(503)] * 3
    with pytest.raises(StorageError, match=r"could not be fetched in 3 attempts \(HTTP 503\)"):
        hub.fetch(f"{hub_server.base}/a", tmp_path / "a", setting="sources.hub", limit=LIMIT)
    assert 0.75 * 3 <= sum(waits) <= 1.25 * 3  # 1 and 2 seconds, give or take a quarter


def test_a_server_that_is_not_there(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="could not be fetched"):
        hub.fetch("http://127.0.0.1:9/a", tmp_path / "a", setting="sources.hub", limit=LIMIT)


def test_files_have_a_largest_size(hub: Hub, hub_server: FakeHub, tmp_path: Path) -> None:
    hub_server.files["/a"] = BODY
    hub_server.answers["/b"] = [cut(1.0, length=False)]
    hub_server.files["/b"] = BODY
    (tmp_path / "local").write_bytes(BODY)
    for address in (f"{hub_server.base}/a", f"{hub_server.base}/b", str(tmp_path / "local")):
        with pytest.raises(UserError, match=rf"{address} has more than 1,000,000 bytes: correct sources\.words\.url"):
            hub.fetch(address, tmp_path / "a", setting="sources.words.url", limit=1_000_000)


def test_a_watch_ends_a_transfer(hub_server: FakeHub, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def watch(count: int) -> None:
        raise Enough

    hub_server.files["/a"] = BODY
    with Hub(watch=watch) as hub, pytest.raises(Enough):
        hub.fetch(f"{hub_server.base}/a", tmp_path / "a", setting="sources.hub", limit=LIMIT)
    assert not (tmp_path / "a").exists()


def test_local_files(hub: Hub, tmp_path: Path) -> None:
    source = tmp_path / "with space"
    source.write_bytes(BODY)
    hub.fetch(str(source), tmp_path / "a", setting="sources.hub", limit=LIMIT)
    hub.fetch(source.as_uri(), tmp_path / "b", setting="sources.hub", limit=LIMIT)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == BODY
    with pytest.raises(UserError, match=r"there is no file .*/none: correct sources\.hub"):
        hub.fetch((tmp_path / "none").as_uri(), tmp_path / "c", setting="sources.hub", limit=LIMIT)


def test_unknown_schemes(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sources\.hub: it must be a path, or file:///"):
        hub.fetch("ftp://host/a", tmp_path / "a", setting="sources.hub", limit=LIMIT)


def test_addresses_are_shown_without_credentials() -> None:
    assert shown("https://user:secret@host/a?token=secret") == "https://host/a"
