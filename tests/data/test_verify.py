"""What a whole file is, text shards, and the evaluation bundle in its forms."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import FakeHub

from nanochat.data.bundle import fetch_bundle
from nanochat.data.hub import Hub, Retry
from nanochat.data.text import read_text, until, write_text_shard
from nanochat.data.verify import DamagedFile, TextStatistics, check_parquet, check_text_shard, check_zip
from nanochat.spec.errors import UserError

BUNDLE = {
    "core.yaml": b"icl_tasks:\n- {label: a, dataset_uri: x/one.jsonl}\n- {label: b, dataset_uri: two.jsonl}\n",
    "eval_meta_data.csv": b"Eval Task\n",
    "eval_data/x/one.jsonl": b"{}\n",
    "eval_data/two.jsonl": b"{}\n",
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(retry=Retry(attempts=2), sleep=lambda seconds: None) as hub:
        yield hub


def test_text_shards_are_read_as_written(tmp_path: Path) -> None:
    texts = [f"text {i} é" for i in range(2500)]
    path = tmp_path / "shard.parquet"
    write_text_shard(path, texts)
    assert [text for group in read_text(path) for text in group] == texts
    assert check_text_shard(path) == TextStatistics(documents=2500, characters=sum(map(len, texts)))
    assert check_parquet(path) == 2500
    assert pq.ParquetFile(path).metadata.num_row_groups == 3


def test_documents_until_there_are_enough_characters() -> None:
    assert list(until(iter(["abc"] * 10), 7)) == ["abc"] * 3


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_shard_is_damaged(tmp_path: Path, share: float) -> None:
    path = tmp_path / "shard.parquet"
    write_text_shard(path, (f"text {i}" for i in range(3000)))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DamagedFile, match="no whole parquet file"):
        check_text_shard(path)
    with pytest.raises(DamagedFile, match="no whole parquet file"):
        check_parquet(path)


def test_a_shard_that_is_damaged_inside(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    write_text_shard(path, (f"text {i}" for i in range(3000)))
    data = bytearray(path.read_bytes())
    data[200:400] = bytes(200)  # the footer is whole
    path.write_bytes(data)
    with pytest.raises(DamagedFile):
        check_text_shard(path)


def test_a_shard_without_text(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet.part"
    for table in (pa.table({"body": ["a"]}), pa.table({"text": [1]})):
        pq.write_table(table, path)
        with pytest.raises(UserError, match=r"shard\.parquet has no string column 'text'"):
            check_text_shard(path)


def packed(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def found(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_in_a_zip(hub: Hub, hub_server: FakeHub, tmp_path: Path) -> None:
    extra = {"__MACOSX/eval_bundle/._core": b"?", "eval_bundle/readme": b"?"}
    hub_server.files["/b.zip"] = packed({f"eval_bundle/{name}": data for name, data in BUNDLE.items()} | extra)
    assert fetch_bundle(hub, f"{hub_server.base}/b.zip", tmp_path, setting="s") == 2
    assert found(tmp_path) == BUNDLE


def test_a_bundle_in_a_folder(hub: Hub, hub_server: FakeHub, tmp_path: Path) -> None:
    hub_server.files.update({f"/b/{name}": data for name, data in BUNDLE.items()})
    (tmp_path / "http").mkdir()
    assert fetch_bundle(hub, f"{hub_server.base}/b/", tmp_path / "http", setting="s") == 2
    (tmp_path / "local").mkdir()
    assert fetch_bundle(hub, str(tmp_path / "http"), tmp_path / "local", setting="s") == 2
    assert found(tmp_path / "http") == found(tmp_path / "local") == BUNDLE


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"other": b""}, r"has no core\.yaml"),
        ({"core.yaml": b"- 1"}, "names no tasks"),
        ({"core.yaml": BUNDLE["core.yaml"], "eval_meta_data.csv": b""}, r"has no eval_data/two\.jsonl"),
        ({"core.yaml": b"icl_tasks: [{dataset_uri: ../../x}]"}, "outside of its folder"),
        (BUNDLE | {"eval_data/../../x": b""}, "outside of its folder"),
    ],
)
def test_a_bundle_that_is_none(
    hub: Hub, hub_server: FakeHub, tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    hub_server.files["/b.zip"] = packed(files)
    with pytest.raises(UserError, match=message):
        fetch_bundle(hub, f"{hub_server.base}/b.zip", tmp_path, setting="sources.evalBundle.url")


def test_a_zip_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(packed(BUNDLE)[:-30])
    with pytest.raises(DamagedFile, match="no whole zip"):
        check_zip(path)
