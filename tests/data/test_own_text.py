"""One's own text: which files are meant, how they are read, what is held out, what is said of wrong ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from nanochat.data.hub import Hub
from nanochat.data.own_text import HELD_OUT, LONG_PIECE, Part, dealt, read_documents
from nanochat.data.text import read_text
from nanochat.data.text_files import local_files
from nanochat.data.verify import WrongFile
from nanochat.pipeline.graph import build_graph
from nanochat.pipeline.preflight import check_inputs
from nanochat.spec.errors import UserError
from nanochat.spec.pipeline import PipelineSpec
from nanochat.stages.dataset import make_files


def spec_of(files: Any, **text: Any) -> PipelineSpec:
    stages = {name: {"enabled": False} for name in ("mid", "sft", "rl", "evalChat")}
    source = {"kind": "files", "files": str(files), **text}
    return PipelineSpec.model_validate(
        {"model": {"depth": 1}, "sources": {"text": source}, "stages": {**stages, "evalBase": {"core": False}}}
    )


def shards(spec: PipelineSpec, folder: Path) -> dict[str, list[str]]:
    """The documents of each shard that the dataset stage makes."""
    found = {}
    for output in build_graph(spec).node("dataset").outputs:
        place = folder / output.name
        place.mkdir(parents=True)
        made = make_files(spec, spec.sources, Hub(), output, place)
        found[output.name] = [text for texts in read_text(place / "shard.parquet") for text in texts]
        assert made["documents"] == len(found[output.name]) and list(place.iterdir()) == [place / "shard.parquet"]
    return found


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """Forty-two documents: lines in two files, one of them packed, and rows; beside others that are none."""
    folder = tmp_path / "letters"
    (folder / "more").mkdir(parents=True)
    lines = [json.dumps({"body": f"line {n} äö", "title": "x"}) for n in range(20)]
    (folder / "a.jsonl").write_text("\ufeff" + "\n".join([*lines[:10], "", '{"body": null}']), encoding="utf-8")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[10:]).encode()))
    pq.write_table(pa.table({"body": [f"row {n}" for n in range(22)], "n": list(range(22))}), folder / "more/c.parquet")
    (folder / "notes.pdf").write_text("no text")
    (folder / ".hidden.jsonl").write_text("no JSON")
    return folder


def test_a_folder_of_several_kinds_is_dealt_into_shards(letters: Path, tmp_path: Path) -> None:
    found = shards(spec_of(letters, column="body", shards=2, validationShard=7), tmp_path / "made")
    whole = [*(f"line {n} äö" for n in range(20)), *(f"row {n}" for n in range(22))]
    assert found["shard_00007"] == [whole[0], whole[20], whole[40]]
    rest = [text for text in whole if text not in found["shard_00007"]]
    assert (found["shard_00000"], found["shard_00001"]) == (rest[::2], rest[1::2])


def test_a_file_a_pattern_and_a_folder_mean_files_in_order(letters: Path) -> None:
    names = lambda place: [path.name for path in local_files(place)]  # noqa: E731
    assert names(letters) == ["a.jsonl", "b.jsonl.gz", "c.parquet"]
    assert names(letters / "a.jsonl") == ["a.jsonl"]
    assert names(letters / "*.jsonl*") == ["a.jsonl", "b.jsonl.gz"]
    assert names(letters / "**" / "*.parquet") == ["c.parquet"]


def test_one_plain_text_is_cut_where_paragraphs_end(tmp_path: Path) -> None:
    book = "".join(f"Paragraph {n}.\n{'word ' * 300}\n\n" for n in range(20))
    (tmp_path / "book.txt").write_text(book)
    found = shards(spec_of(tmp_path / "book.txt"), tmp_path / "made")
    (held_out,) = found["shard_01822"]
    assert held_out + "".join(found["shard_00000"]) == book
    assert all(text.startswith("Paragraph") for text in found["shard_00000"]) and len(found["shard_00000"]) > 5


@pytest.mark.parametrize(
    "text", ["é" * 100_000, "a line of a list\r\n" * 10_000, "é" * 90_000 + "\n\n" + "ö\n" * 50_000]
)
def test_a_plain_text_without_empty_lines_is_cut_all_the_same(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.txt").write_bytes(text.encode())
    found = list(read_documents([tmp_path / "list.txt"], column="text"))
    assert "".join(found) == text and len(found) > 2
    assert all(len(piece) <= 2 * LONG_PIECE for piece in found)


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    place = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"row {n}" for n in range(100)]}), place)
    whole = place.read_bytes()
    for damaged in (whole[:-20], whole[:20] + b"\xff" * 40 + whole[60:], whole[:-60] + b"\xff" * 40 + whole[-20:]):
        place.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.parquet: it is no whole parquet file.*correct it"):
            shards(spec_of(place), tmp_path / str(hash(damaged)))


def test_links_in_circles_are_not_followed(letters: Path) -> None:
    (letters / "up").symlink_to("..")
    (letters / "more" / "self").symlink_to(".")
    (letters / "itself.txt").symlink_to("itself.txt")
    names = ["a.jsonl", "b.jsonl.gz", "c.parquet"]
    for place in (letters, letters / "**" / "*.[jp]*[!f]"):
        assert [path.name for path in local_files(place)] == names


def test_hidden_files_match_where_the_pattern_names_them(letters: Path) -> None:
    assert [path.name for path in local_files(letters / ".h*.jsonl")] == [".hidden.jsonl"]
    with pytest.raises(UserError, match=r"'let\*\*' is no pattern.*correct sources\.text\.files"):
        local_files(letters.parent / "let**" / "*.jsonl")
    with pytest.raises(UserError, match=r"in a pattern \[\[\] means the sign \["):
        local_files(letters.parent / "letters[1]" / "*.jsonl")


def test_no_more_is_held_out_than_is_needed() -> None:
    documents = ["x" * (HELD_OUT // 2)] * 100
    held = list(dealt(documents, Part(held_out=True)))
    assert len(held) == 2 and len(list(dealt(documents, Part()))) == 98


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"title": "y"}', "line 2 has no text 'text' (it has title)"),
        ("a.jsonl", b'{"text": 5}', "line 1 has in 'text' another thing than text"),
        ("a.jsonl", b'["x"]', "line 1 has no text 'text' (it is no object with fields)"),
        ("a.jsonl", b"{", "line 1 is not JSON"),
        ("a.ndjson", b'{"text": "\xff"}', "line 1 is not JSON"),
        ("a.txt", b"fine\nnot \xff", "line 2 is not UTF-8 at its byte 4"),
        ("a.txt.gz", gzip.compress(b"x" * 5000, mtime=0)[:-20], "it is no whole gzip file"),
        ("a.txt.gz", b"plain", "it is no whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b"x", mtime=0)[:10] + b"\xff" * 40, "it is no whole gzip file"),
        ("a.txt", b"x" * (2 * LONG_PIECE + 5) + b"\xff\n", f"line 1 is not UTF-8 at its byte {2 * LONG_PIECE + 5}"),
        ("a.txt", "é".encode()[:1], "line 1 is not UTF-8 at its byte 0"),
        ("a.parquet", b"no rows at all", "it is no whole parquet file"),
        ("a.parquet", b"", "it is no whole parquet file"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WrongFile) as caught:
        list(read_documents([tmp_path / name], column="text"))
    assert f"{name}: {problem}" in caught.value.message
    with pytest.raises(UserError, match=r"correct it, sources\.text\.files or sources\.text\.column"):
        shards(spec_of(tmp_path / name), tmp_path / "made")


def test_files_that_are_not_there_are_told_before_anything_runs(letters: Path, tmp_path: Path) -> None:
    for place, problem in {
        tmp_path / "absent.txt": "there is no file",
        tmp_path / "*.csv": "has no file that ends in .jsonl",
        letters / "notes.pdf": "notes.pdf is none of .jsonl",
        "https://example.org/letters/": "is no file that ends in .jsonl",
    }.items():
        with pytest.raises(UserError, match=problem):
            check_inputs(spec_of(place))
    check_inputs(spec_of(letters))


def test_too_few_documents_are_told_with_the_number_that_would_do(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"text": "three"}\n')
    with pytest.raises(UserError, match=r"has too few documents.*give at least 4, or lower sources\.text\.shards"):
        shards(spec_of(tmp_path / "a.jsonl", shards=3), tmp_path / "made")
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{n}"}}\n' for n in range(4)))
    assert len(shards(spec_of(tmp_path / "a.jsonl", shards=3), tmp_path / "enough")) == 4


def test_the_address_column_and_revision_are_in_keys() -> None:
    keys = {
        build_graph(spec).by_ref["text/shard_00000"].key  # type: ignore[index]
        for spec in (spec_of("/a"), spec_of("/b"), spec_of("/a", column="body"), spec_of("/a", revision="2"))
    }
    assert len(keys) == 4


@pytest.mark.parametrize("text", [{"kind": "files"}, {"files": "/a"}, {"kind": "world", "files": "/a"}])
def test_files_and_their_kind_belong_together(text: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="give both, or neither"):
        PipelineSpec.model_validate({"sources": {"text": text}})
