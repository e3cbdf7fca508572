"""Any bytes are a manifest that was written, or are recognised as damaged."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.storage import Damaged, FileRecord, Manifest
from nanochat.storage.manifest import LARGEST, _checksum

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)
DIGESTS = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
PATHS = st.lists(NAMES.filter(lambda name: name not in (".", "..")), min_size=1, max_size=3).map("/".join)
MANIFESTS = st.builds(
    Manifest,
    kind=NAMES,
    key=NAMES,
    launch=NAMES,
    recipe=st.dictionaries(st.text(), JSON, max_size=3),
    inputs=st.dictionaries(st.text(), st.text(), max_size=3),
    files=st.lists(
        st.builds(FileRecord, PATHS, st.integers(min_value=0, max_value=2**60), DIGESTS),
        max_size=3,
        unique_by=lambda record: record.path,
    ).map(tuple),
    metadata=st.dictionaries(st.text(), JSON, max_size=3),
    created=st.floats(min_value=0, max_value=1e11),
)


def _manifest() -> Manifest:
    return Manifest(
        kind="model",
        key="0" * 64,
        launch="launch-1",
        recipe={"depth": 4},
        inputs={"tokenizer/bpe": "1" * 64},
        files=(FileRecord("weights/model.safetensors", 12, "2" * 64),),
        metadata={"loss": 1.25},
        created=1e9,
    )


def _altered(**changes: object) -> bytes:
    """The manifest with other fields, and a checksum that agrees."""
    body = json.loads(_manifest().to_bytes()) | changes
    del body["checksum"]
    return json.dumps(body | {"checksum": _checksum(body)}).encode()


@given(MANIFESTS)
def test_what_was_written_is_read(manifest: Manifest) -> None:
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


@given(st.binary() | st.text().map(str.encode) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_other_bytes_are_damaged(data: bytes) -> None:
    with pytest.raises(Damaged):
        Manifest.from_bytes(data)


@settings(max_examples=150)
@given(st.data())
def test_any_change_of_a_byte_is_seen(data: st.DataObject) -> None:
    written = bytearray(_manifest().to_bytes())
    position = data.draw(st.integers(0, len(written) - 1))
    written[position] ^= data.draw(st.integers(1, 255))
    try:
        read = Manifest.from_bytes(bytes(written))
    except Damaged:
        return
    assert read == _manifest()  # it was white space


@given(st.integers(0, len(_manifest().to_bytes()) - 2))
def test_a_cut_manifest_is_damaged(length: int) -> None:
    with pytest.raises(Damaged):
        Manifest.from_bytes(_manifest().to_bytes()[:length])


@given(st.dictionaries(st.sampled_from(sorted(json.loads(_manifest().to_bytes()))), JSON, min_size=1))
def test_fields_of_any_type_are_read_or_damaged(changes: dict[str, object]) -> None:
    try:
        manifest = Manifest.from_bytes(_altered(**changes))
    except Damaged:
        return
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"extra": 1},
        {"kind": "a/b"},
        {"key": ".."},
        {"launch": ""},
        {"recipe": []},
        {"inputs": {"x": 1}},
        {"created": "now"},
        {"files": [{"path": "../../x", "size": 1, "sha256": "0" * 64}]},
        {"files": [{"path": "/x", "size": 1, "sha256": "0" * 64}]},
        {"files": [{"path": "x", "size": -1, "sha256": "0" * 64}]},
        {"files": [{"path": "x", "size": True, "sha256": "0" * 64}]},
        {"files": [{"path": "x", "size": 1, "sha256": "0"}]},
        {"files": [{"path": "x", "size": 1, "sha256": "0" * 64}] * 2},
        {"files": [{"path": "x"}]},
        {"files": {"path": "x"}},
    ],
)
def test_what_nobody_writes_is_damaged_although_its_checksum_agrees(changes: dict[str, object]) -> None:
    with pytest.raises(Damaged):
        Manifest.from_bytes(_altered(**changes))


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, b"NaN", b" " * (LARGEST + 1)])
def test_hostile_json_is_damaged(data: bytes) -> None:
    with pytest.raises(Damaged):
        Manifest.from_bytes(data)


def test_what_is_not_json_is_refused_when_written() -> None:
    manifest = _manifest()
    manifest.metadata["loss"] = math.nan
    with pytest.raises(ValueError, match="JSON"):
        manifest.to_bytes()
