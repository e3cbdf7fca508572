"""What a whole file is, text shards, and the evaluation bundle in its forms."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import FakeHub

from nanochat.data.archive import unpack
from nanochat.data.bundle import fetch_bundle
from nanochat.data.hub import Hub, Retry
from nanochat.data.text import TextStatistics, check_text_shard, read_text, until, write_text_shard
from nanochat.data.verify import DamagedFile, WrongFile, check_parquet
from nanochat.spec.errors import UserError

BUNDLE = {
    "core.yaml": b"icl_tasks:\n"
    b"- {label: a, icl_task_type: schema, num_fewshot: [0], dataset_uri: x/one.jsonl}\n"
    b"- {label: b, icl_task_type: language_modeling, num_fewshot: [10], dataset_uri: two.jsonl}\n",
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


TEXTS = ["a", "bé", None, "a"]
STRINGS = {
    "string": pa.array(TEXTS, pa.string()),
    "large_string": pa.array(TEXTS, pa.large_string()),
    "string_view": pa.array(TEXTS, pa.string_view()),
    "dictionary": pa.array(TEXTS).dictionary_encode(),
    "large dictionary": pa.array(TEXTS, pa.large_string()).dictionary_encode(),
}


@pytest.mark.parametrize("kind", STRINGS)
def test_strings_of_every_kind_are_read_and_nulls_left_out(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "shard.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3, 4], "text": STRINGS[kind]}), path)
    assert list(read_text(path)) == [["a", "bé", "a"]]
    assert check_text_shard(path) == TextStatistics(documents=3, characters=4)


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view"])
def test_a_row_that_is_not_utf8_is_found_by_its_number(tmp_path: Path, kind: str) -> None:
    """Parquet's strings can hold any bytes."""
    path = tmp_path / "shard.parquet.part"
    raw = {"string": pa.binary(), "large_string": pa.large_binary(), "string_view": pa.binary_view()}[kind]
    texts = [b"x"] * 2000 + [b"caf\xe9", b"x"]
    pq.write_table(pa.table({"text": pa.array(texts, raw).view(STRINGS[kind].type)}), path)
    with pytest.raises(WrongFile, match=r"shard\.parquet: row 2000 \(the first is 0\) is not UTF-8 at its byte 3"):
        check_text_shard(path)


def test_a_dictionary_that_is_not_utf8_is_found(tmp_path: Path) -> None:
    """Arrow refuses to read it, without saying in which row."""
    path = tmp_path / "shard.parquet.part"
    values = pa.array([b"x", b"caf\xe9"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": pa.DictionaryArray.from_arrays(pa.array([0, 0, 1, 0]), values)}), path)
    with pytest.raises(DamagedFile, match="Invalid UTF8"):
        check_text_shard(path)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (pa.table({"body": ["a"]}), r"no string column 'text' \(it has body \(string\)\)"),
        (pa.table({"text": [1]}), r"no string column 'text' \(it has text \(int64\)\)"),
        (pa.table({"text": [b"a"]}), "no string column 'text'"),
        (pa.table({"text": [None]}), "no string column 'text'"),
        (pa.table({"text": [["a"]]}), "no string column 'text'"),
        (pa.table({"text": [{"text": "a"}]}), "no string column 'text'"),
        (pa.table({"text": pa.array([1, 2]).dictionary_encode()}), "no string column 'text'"),
        (pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"]), "2 columns 'text', and must have one"),
    ],
)
def test_a_column_that_is_no_text_is_refused_by_name(tmp_path: Path, table: pa.Table, problem: str) -> None:
    path = tmp_path / "shard.parquet.part"
    pq.write_table(table, path)
    with pytest.raises(WrongFile, match=rf"shard\.parquet: it has {problem}"):
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


LISTS = {name: BUNDLE[name] for name in ("core.yaml", "eval_meta_data.csv")}


def with_list(old: bytes, new: bytes) -> dict[str, bytes]:
    """A bundle whose core.yaml has other words."""
    assert old in BUNDLE["core.yaml"]
    return LISTS | {"core.yaml": BUNDLE["core.yaml"].replace(old, new, 1)}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"other": b""}, r"has no core\.yaml"),
        ({"core.yaml": b"- 1"}, "names no tasks"),
        ({"core.yaml": b"[" * 100_000}, "names no tasks"),
        ({"core.yaml": b"icl_tasks: []"}, "names no tasks"),
        (
            {
                "core.yaml": b"a: &a [x, x]\n"
                + b"".join(b"%c: &%c [*%c, *%c]\n" % (c, c, c - 1, c - 1) for c in range(98, 120))
                + b"icl_tasks: [{label: *w}]"
            },
            "core.yaml of",
        ),
        ({"core.yaml": b"icl_tasks: [1]"}, r"core\.yaml of .*: task 1 "),
        ({"core.yaml": b"\xff"}, "not UTF-8"),
        ({"core.yaml": b"#" * (1 << 20) + b"#"}, "more than 1 MiB"),
        (LISTS, r"has no eval_data/two\.jsonl"),
        (with_list(b"two.jsonl", b"../../x"), r"task 2 \(b\): .* outside of its folder"),
        (with_list(b"two.jsonl", b"/etc/x"), "outside of its folder"),
        (with_list(b"two.jsonl", b"'%2e%2e/x'"), "read differently"),
        (with_list(b"label: b", b"label: a"), r"task 2 \(a\) is there twice"),
        (with_list(b"[0]", b"[-1]"), r"task 1 \(a\): num_fewshot"),
        (with_list(b"schema", b"other"), r"task 1 \(a\): icl_task_type"),
    ],
    ids=range(15),
)
def test_a_bundle_that_is_none(
    hub: Hub, hub_server: FakeHub, tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    hub_server.files["/b.zip"] = packed(files)
    with pytest.raises(UserError, match=rf"(?s){message}.* correct sources\.evalBundle\.url"):
        fetch_bundle(hub, f"{hub_server.base}/b.zip", tmp_path, setting="sources.evalBundle.url")
    assert found(tmp_path).keys() <= files.keys()


def odd(name: str, mode: int = 0, method: int = zipfile.ZIP_DEFLATED) -> zipfile.ZipInfo:
    """A member with something that a zip can say and a folder must not hold."""
    member = zipfile.ZipInfo(name)
    member.compress_type, member.external_attr = method, mode << 16
    return member


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("eval_data/../../x", b"")], "outside of its folder"),
        ([("../core.yaml", b"")], "outside of its folder"),
        ([("/etc/passwd", b"")], "outside of its folder"),
        ([("eval_data\\..\\..\\x", b"")], "read differently"),
        ([("C:/x", b"")], "read differently"),
        ([("eval_data/a\nb", b"")], "read differently"),
        ([("eval_data//a", b"")], "a part that is empty"),
        ([("./core.yaml", b"")], "a part that is empty, a dot"),
        ([("eval_data/" + "a" * 300, b"")], "too long"),
        ([(odd("eval_data/link", 0o120777), b"/etc/passwd")], "no regular file but a link or a device"),
        ([(odd("eval_data/pipe", 0o010644), b"")], "no regular file but a link or a device"),
        ([("eval_data/a", b"1"), ("eval_data/a", b"2")], "is there twice"),
        ([("eval_data/a", b"1"), ("eval_data/a/b", b"2")], "is there twice"),
        ([(odd("eval_data/a", method=zipfile.ZIP_BZIP2), b"1")], "method 12"),
        ([("eval_data/bomb", bytes(50 << 20))], "grows to more than 200 times its size"),
        ([(f"eval_data/{i}", b"") for i in range(10_001)], "10,003 members, and at most 10,000"),
    ],
    ids=range(16),
)
def test_members_that_are_not_unpacked(
    hub: Hub, hub_server: FakeHub, tmp_path: Path, members: list[tuple[str | zipfile.ZipInfo, bytes]], message: str
) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of names that are there twice
        for member, data in [*LISTS.items(), *members]:
            archive.writestr(member, data)
    hub_server.files["/b.zip"] = out.getvalue()
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match=rf"b\.zip: .*{message}.* or correct sources\.evalBundle"):
        fetch_bundle(hub, f"{hub_server.base}/b.zip", tmp_path / "in", setting="sources.evalBundle.url")
    assert len(hub_server.requests) == 1  # what is wrong at its source is not fetched again
    assert found(tmp_path) == {}


@pytest.mark.parametrize(("field", "value", "message"), [("file_size", 3 << 30, "2 GiB"), ("flag_bits", 1, "encrypt")])
def test_sizes_and_marks_are_those_of_the_zips_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, value: int, message: str
) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(packed(BUNDLE))
    directory = zipfile.ZipFile.infolist

    def changed(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
        members = directory(archive)
        setattr(members[-1], field, value)
        return members

    monkeypatch.setattr(zipfile.ZipFile, "infolist", changed)
    with pytest.raises(WrongFile, match=message):
        unpack(path, tmp_path / "out")
    monkeypatch.setattr("nanochat.data.archive.TOTAL_BYTES", 100)
    with pytest.raises(WrongFile, match="in all"):
        unpack(path, tmp_path / "out")


def test_a_zip_that_is_damaged(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.zip", packed(BUNDLE)
    wrong = bytearray(whole)
    at = whole.index(b"core.yaml") + 12  # in what is packed
    wrong[at : at + 4] = bytes(4)
    shorter = whole.replace(len(BUNDLE["core.yaml"]).to_bytes(4, "little"), (20).to_bytes(4, "little"))
    assert shorter != whole
    for content in (whole[:-30], bytes(wrong), shorter, b"", b"<html>"):
        path.write_bytes(content)
        with pytest.raises(DamagedFile, match="no whole zip"):
            unpack(path, tmp_path / "out")
