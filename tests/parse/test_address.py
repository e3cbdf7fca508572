"""Addresses mean one thing everywhere; what is none is refused in a sentence that says what to write."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nanochat.parse import Malformed
from nanochat.parse.address import BASE, FILE, IDENTITY, SERVER, STORE, TRACKING, Kind, absolute, resolve, shown

HOME = str(Path.home())
# Text, use, and the path it means (None: it is elsewhere).
TAKEN: list[tuple[str, Kind, str | None]] = [
    ("me.jsonl", FILE, "me.jsonl"),
    ("my folder/me.jsonl", FILE, "my folder/me.jsonl"),
    ("/100% mine/#1?.jsonl", FILE, "/100% mine/#1?.jsonl"),
    ("./a:b", FILE, "a:b"),
    ("~/me.jsonl", FILE, f"{HOME}/me.jsonl"),
    ("file:///my%20folder/me.jsonl", FILE, "/my folder/me.jsonl"),
    ("file:///100%25/%23%3F", FILE, "/100%/#?"),
    ("file:///f%C3%B6%C3%B6", FILE, "/föö"),
    ("file:///föö", FILE, "/föö"),
    ("file://localhost/a", FILE, "/a"),
    ("file:/a", FILE, "/a"),
    ("FILE:///a%20b", FILE, "/a b"),
    ("https://host/a%20b?token=x", FILE, None),
    ("HTTPS://host/a", FILE, None),
    ("http://[::1]:8000/a", FILE, None),
    ("s3://bucket/a b/c%20d", FILE, None),
    ("https://huggingface.co", BASE, None),
    ("s3://bucket", BASE, None),
    ("mirror", BASE, "mirror"),
    ("configmap://name/key.jsonl", IDENTITY, None),
    ("s3://bucket/prefix/", STORE, None),
    ("gs://bucket", STORE, None),
    ("abfs://container/prefix", STORE, None),
    ("file:///my%20store", STORE, "/my store"),
    ("http://127.0.0.1:9000", SERVER, None),
    ("https://host:443/v1/", SERVER, None),
    ("http://bücher.example", SERVER, None),
    ("sqlite:////a/mlflow.db", TRACKING, None),
    ("http://mlflow:5000", TRACKING, None),
]
REFUSED: list[tuple[str, Kind, str]] = [
    ("", FILE, "empty"),
    (" a", FILE, "begins or ends with a blank"),
    ("a\n", FILE, "control character"),
    ("a\0b", FILE, "control character"),
    ("a" * 1025, FILE, "longer than 1,024"),
    ("~nobody-has-this-name/a", FILE, "home folder"),
    (r"C:\data\me.jsonl", FILE, "path of Windows"),
    ("C:/data/me.jsonl", FILE, "path of Windows"),
    (r"\\server\share", FILE, "path of Windows"),
    ("127.0.0.1:9000/a", FILE, "write http://127.0.0.1:9000/a"),
    ("127.0.0.1:9000", SERVER, "no scheme: write http://127.0.0.1:9000"),
    ("localhost:9000", SERVER, "write http://localhost:9000"),
    ("s3.example.org", SERVER, "write http://s3.example.org"),
    ("mlflow:5000", TRACKING, "write http://mlflow:5000"),
    ("/a/b", SERVER, "must be http://host:port"),
    ("s3://bucket", SERVER, "must be http://host:port"),
    ("s3:/bucket/a", FILE, "lacks a slash: it begins with s3://"),
    ("https:host", SERVER, "must be http://host:port"),
    ("s3a://bucket/a", STORE, "write s3://"),
    ("s3n://bucket/a", FILE, "write s3://"),
    ("gcs://bucket/a", STORE, "write gs://"),
    ("abfss://container@account.dfs.core.windows.net/a", STORE, "write abfs://"),
    ("abfs://box@account.dfs.core.windows.net/a", STORE, "endpoint, https://account.dfs.core.windows.net"),
    ("ftp://host/a", FILE, "must be a path"),
    ("hf://datasets/a", FILE, "must be a path"),
    ("https://host/a", STORE, "must be a folder"),
    ("file://folder/a", FILE, "file:///folder/file"),
    ("file://~/a", FILE, "file:///folder/file"),
    ("file:///a%2", FILE, "% is %25"),
    ("file:///a%00", FILE, "% is %25"),
    ("file:///a?b", FILE, "? is written %3F"),
    ("file:///a#b", FILE, "# is %23"),
    ("http://", FILE, "host or port"),
    ("http:///a", FILE, "host or port"),
    ("http://host:99999", SERVER, "host or port"),
    ("http://host:0", SERVER, "host or port"),
    ("http://host:http", SERVER, "host or port"),
    ("http://[::1", SERVER, "host or port"),
    ("http://host/a b", FILE, "write %20"),
    ("http://host/a#b", FILE, "must be a path"),
    ("http://host/?a=b", BASE, "must be a folder"),
    ("http://host/?a=b", SERVER, "must be http://host:port"),
    ("s3://", STORE, "name of a bucket"),
    ("s3:///a", STORE, "name of a bucket"),
    ("s3://bucket:9000/a", STORE, "the profile's endpoint"),
    ("s3://bucket/a?b", STORE, "no ? and no #"),
    ("s3://bucket/../a", STORE, "an empty part, . or .."),
    ("s3://bucket//a", STORE, "an empty part, . or .."),
    ("s3://bucket", FILE, "must be a path"),
    ("configmap://name/key", FILE, "must be a path"),
    ("configmap://name", IDENTITY, "configmap://NAME/KEY"),
    ("postgresql://host/a", TRACKING, "sqlite:///path"),
    ("sqlite://a", TRACKING, "sqlite:///path"),
]
SECRETS = [
    "http://user:hunter2@host:80/a",
    "https://hunter2@host/a",
    "http://user:hunter2/3@host/a",
    "http://user:hunter2@host:port/a",
    r"http://host\@hunter2@b",
    "s3://key:hunter2@bucket/a",
    "user:hunter2@host:80",
    "http:/user:hunter2@host",
    "abfs://key:hunter2@container/a",
    "ftp://user:hunter2@host/a",
    "postgresql://user:hunter2@host/a",
    "file://user:hunter2@host/a",
]


@pytest.mark.parametrize(("text", "kind", "path"), TAKEN)
def test_what_addresses_mean(text: str, kind: Kind, path: str | None) -> None:
    address = resolve(text, kind)
    assert address.path == (None if path is None else Path(path))
    assert re.fullmatch(kind.pattern, address.text)
    if kind is not TRACKING:
        assert absolute(address.text) == (address.text if path is None else str(Path(path).absolute()))


@pytest.mark.parametrize(("text", "kind", "problem"), REFUSED)
def test_what_is_refused(text: str, kind: Kind, problem: str) -> None:
    with pytest.raises(Malformed) as caught:
        resolve(text, kind)
    assert problem in str(caught.value)


@pytest.mark.parametrize("text", SECRETS)
@pytest.mark.parametrize("kind", [FILE, BASE, IDENTITY, STORE, SERVER, TRACKING])
def test_credentials_are_refused_and_never_told(text: str, kind: Kind) -> None:
    with pytest.raises(Malformed) as caught:
        resolve(text, kind)
    assert "hunter2" not in str(caught.value)
    assert not re.search(kind.pattern, text)


def test_patterns_refuse_what_they_can() -> None:
    """Go has no look-around; all but these are refused by the patterns alone, in the API server and the chart."""
    by_the_reader_alone = re.compile(r"^~nobody|:99999|:0$|^s3://bucket/\.\.|^s3://bucket//|%00$| a$|^a+$|a\n|\0")
    missed = [text for text, kind, _ in REFUSED if text and re.search(kind.pattern, text)]
    assert [text for text in missed if not by_the_reader_alone.search(text)] == []


def test_what_is_shown_has_no_credentials_and_no_query() -> None:
    assert shown("https://user:hunter2@host:5000/x?token=hunter2#a") == "https://host:5000/x"
    assert shown("/a?b") == "/a?b"
    assert shown("http://[::1") == "the address"
