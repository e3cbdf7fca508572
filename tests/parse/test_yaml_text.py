"""YAML is read as kubectl reads it, but for keys that are given twice; what is refused is one phrase with its line."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nanochat.parse import Malformed
from nanochat.parse.yaml_text import DEEPEST, LARGEST, read_yaml

# What kubectl 1.34 makes of a value: {"text", "value"}, or {"text", "refused": its words}.
TABLE = json.loads((Path(__file__).parent / "kubectl_values.json").read_text())
HEAD = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n"


def as_sent(value: Any) -> Any:
    """A value as the API server keeps it: integers beyond 64 bits as floats."""
    if isinstance(value, list):
        return [as_sent(item) for item in value]
    if isinstance(value, dict):
        return {name: as_sent(item) for name, item in value.items()}
    return float(value) if isinstance(value, int) and not -(2**63) <= value < 2**63 else value


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["text"])
def test_values_are_kubectls(row: dict[str, Any]) -> None:
    text = f"v: {row['text']}\n"
    if "refused" in row:
        with pytest.raises(Malformed, match="line "):
            read_yaml(text)
        return
    found, wanted = read_yaml(text)["v"], as_sent(row["value"])
    assert json.dumps(found, sort_keys=True) == json.dumps(wanted, sort_keys=True)  # which tells 1 from 1.0 and true


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_the_table_is_kubectls(tmp_path: Path) -> None:
    def kubectl(text: str) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "object.yaml"
        path.write_text(HEAD + text)
        command = ["kubectl", "label", "--local", "-o", "json", "-f", str(path), "x=y"]
        return subprocess.run(command, capture_output=True, text=True)

    taken = [row for row in TABLE if "value" in row]
    done = kubectl("data:\n" + "".join(f"  v{number}: {row['text']}\n" for number, row in enumerate(taken)))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["data"]
    assert [found[f"v{number}"] for number in range(len(taken))] == [row["value"] for row in taken]
    refused = [row["text"] for row in TABLE if "refused" in row]
    assert [text for text in refused if kubectl(f"data:\n  v: {text}\n").returncode == 0] == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing\n", None),
        ("\ufeffa: 1\n", {"a": 1}),
        ("a: yes\r\nb:\r\n- 1\r\n", {"a": True, "b": [1]}),
        ("a: 1\t# x\n", {"a": 1}),
        ("a: {\n\tb: 1}\n", {"a": {"b": 1}}),
        ('{\n\t"a": 1e3,\n\t"b": "\\/"}', {"a": 1000, "b": "/"}),
        ("---\na: 1\n", {"a": 1}),
        ("a: 1\n---\n# nothing\n---\n", {"a": 1}),
        ("a: 1\n...\n", {"a": 1}),
        ("%YAML 1.1\n---\na: 010\n", {"a": 8}),
    ],
)
def test_documents(text: str, value: Any) -> None:
    assert read_yaml(text) == read_yaml(text.encode()) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", "line 5, b: 'c' is given twice, in lines 3 and 5"),
        ('a: 1\n"a": 1\n', "line 2: 'a' is given twice, in lines 1 and 2"),
        ("yes: 1\ntrue: 2\n", "line 2: 'true' is given twice, in lines 1 and 2"),
        ("1: a\n01: b\n", "line 2: '1' is given twice, in lines 1 and 2"),
        ("- {a: 1, a: 1}\n", "line 1, 0: 'a' is given twice, in lines 1 and 1"),
        ("a:\n\tb: 1\n", "line 2 is indented with a tab: use blanks"),
        ("a:\n  b:\n  \tc: 1\n", "line 3 is indented with a tab: use blanks"),
        ("a: [\n", "line 2 is not YAML: did not find expected node content"),
        ("a: 1\n---\nb: 1\n", "line 2 begins a second document: give one a file"),
        ("a: 1\n...\nb: 1\n", "line 3 is not YAML: did not find expected <document start>"),
        (b"a: 1\nb: \xf6\n", "line 2 is not UTF-8: save the file in that encoding"),
        ("a: 1\n".encode("utf-16"), "line 1 is not UTF-8: save the file in that encoding"),
        ("a: \udcf6\n", "not UTF-8"),
        ('a: 1\nb: "\x00"\n', "line 2 holds the control character 0x00"),
        ("a: .inf\n", "line 1, a: .inf is no number here: give a finite one"),
        ("a: [1, -.inf]\n", "line 1, a.1: -.inf is no number here: give a finite one"),
        ("~: 1\n", "line 1: a key must be a text, and this is null: put it in quotes"),
        ("[1]: 1\n", "line 1: a key must be a text, and this is a list or map"),
        ("a: &x [1]\n*x : 2\n", "line 2: a key must be a text"),
        ("a: *x\n", "line 1, a: the anchor of *x is not above it"),
        ("a: &x [*x]\n", "line 1, a.0: *x stands inside of what it repeats"),
        ("<<: 1\n", "line 1: << needs a map, or a list of maps"),
        ("a" * (LARGEST + 1), "more than 1,048,576 bytes"),
    ],
)
def test_what_is_refused(text: str | bytes, problem: str) -> None:
    with pytest.raises(Malformed) as caught:
        read_yaml(text)
    assert str(caught.value).startswith(problem)


def test_a_repeated_value_is_a_copy() -> None:
    found = read_yaml("a: &x {b: [1]}\nc: *x\n")
    found["c"]["b"].append(2)
    assert found["a"] == {"b": [1]}


def test_depth_is_bounded() -> None:
    value: Any = None
    for _ in range(DEEPEST):
        value = [value]
    assert read_yaml(json.dumps(value)) == value
    for deep in (json.dumps([value]), "[" * 20_000, "{a: " * 20_000, "- " * 20_000, "? " * 20_000, "{" * 20_000):
        with pytest.raises(Malformed, match=r"deep|nesting depth|a list or map"):
            read_yaml(deep)


def test_repetition_is_bounded() -> None:
    lists = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    maps = ["a0: &a0 {k: x}"] + [
        f"a{n}: &a{n} {{{', '.join(f'k{m}: *a{n - 1}' for m in range(9))}}}" for n in range(1, 12)
    ]
    text = [f"a: &a {'x' * 100_000}", f"b: [{', '.join(['*a'] * 1000)}]"]
    for lines in (lists, maps, text):
        with pytest.raises(Malformed, match="aliases make it too large"):
            read_yaml("\n".join(lines))
