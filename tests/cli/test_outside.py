"""Files, profiles and addresses that others wrote: each mistake in them is one sentence, and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_pipeline import called, mistake

HEAD = "apiVersion: nanochat.dev/v1alpha1\nkind: ChatPipeline\nmetadata: {name: tried}\n"
WORLD = "  sources: {text: {kind: world, charactersPerShard: 200000, shards: 1, validationShard: 9}}\n"
ROW = json.dumps([{"role": "user", "content": "Who speaks?"}, {"role": "assistant", "content": "A small model."}])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {
        "rate": f"spec:\n{WORLD}  stages:\n    base: {{matrixLr: 1e-3, steps: 2}}\n",
        "dates": "spec:\n  stages: {base: {2025-11-02: 1}}\n",
        "empty": "spec:\n",
        "written": "spec: {}\n",
        "old": "spec:\n  model: {depth: 1:30}\n  seed: 010\n",
        "twice": "spec:\n  seed: 1\n  seed: 2\n",
        "two": "spec: {}\n---\nspec: {}\n",
        "plain": f"spec:\n{WORLD}",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(HEAD + text)
    return tmp_path


def test_numbers_are_kubectls(folder: Path) -> None:
    done = called(folder, "doctor", "rate.yaml")
    assert "2 steps of base" in done.stdout, done.stderr
    done = called(folder, "doctor", "written.yaml", "--set", "model.depth=1", "--set", "sources.text.kind=world")
    assert "pipeline" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["dates.yaml"], "unknown field 'spec.stages.base.2025-11-02'"),
        (["empty.yaml", "--only", "dataset"], "'spec' is missing or empty: write its fields, or 'spec: {}'"),
        (["empty.yaml", "--only", "dataset", "--set", "model.depth=1"], "'spec' is missing or empty: write its fields"),
        (["old.yaml"], "'spec.model.depth': input should be a valid integer (given: '1:30')"),
        (["twice.yaml"], "line 6, spec: 'seed' is given twice, in lines 5 and 6"),
        (["two.yaml"], "line 5 begins a second document"),
        (["plain.yaml", "--set", "stages.base.matrixLr=.inf"], "--set stages.base.matrixLr: .inf is no number here"),
        (["plain.yaml", "--set", "stages.base.gradClip=.nan"], "--set stages.base.gradClip: .nan is no number here"),
        (["plain.yaml", "--set", "stages.base.matrixLr=1e400"], "'spec.stages.base.matrixLr': input should be a valid"),
        (["plain.yaml", "--set", "seed=9223372036854775808"], "'spec.seed': input should be a valid integer"),
        (["plain.yaml", "--set", "suspend='false'"], "leave out the quotes"),
        (["plain.yaml", "--set", "sources.hubRevision=010"], "(given: 8; put it in quotes)"),
        (["plain.yaml", "--set", "seed=" + "[" * 5000], "nest"),
        (["plain.yaml", "--set", ".".join(["a"] * 5000) + "=1"], "a path has at most 16 names"),
        (["plain.yaml", "--set", "stages.mid.identity=s3a://b/me.jsonl"], "write s3://"),
        (
            ["plain.yaml", "--set", "sources.mirror=https://user:hunter2@host/x"],
            "'spec.sources.mirror': it holds a user",
        ),
    ],
)
def test_mistakes_in_pipelines(folder: Path, words: list[str], sentence: str) -> None:
    done = called(folder, "run", *words)
    assert sentence in mistake(done) and "hunter2" not in done.stderr + done.stdout
    assert done.returncode == 2


def test_an_identity_file_is_where_its_address_says(folder: Path) -> None:
    place = folder / "my folder"
    place.mkdir()
    (place / "me.jsonl").write_text("\n".join([ROW] * 12))
    (place / "deep.jsonl").write_text("\n".join([ROW] * 12 + ["[" * 20_000]))
    address = f"file://{str(place).replace(' ', '%20')}"
    done = called(folder, "doctor", "plain.yaml", "--set", f"stages.mid.identity={address}/me.jsonl")
    assert f"ok    sources     {place}/me.jsonl" in done.stdout, done.stdout
    done = called(folder, "run", "plain.yaml", "--set", f"stages.mid.identity={address}/deep.jsonl")
    assert "deep.jsonl, line 13: nested more than 200 deep" in mistake(done)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"team:\n\troot: /srv/models\n", "line 2 is indented with a tab"),
        (b"team: {root: /srv/mod\xf6les}\n", "line 1 is not UTF-8"),
        (
            b'default: {root: s3://bucket/x, anonymous: "false"}\n',
            "'default.anonymous': input should be a",
        ),
        (None, "no such file"),
    ],
)
def test_mistakes_in_profiles(folder: Path, content: bytes | None, sentence: str) -> None:
    path = folder / "profiles.yaml"
    if content is not None:
        path.write_bytes(content)
    done = called(folder, "status", "tried", NANOCHAT_PROFILES=str(path))
    assert sentence in mistake(done) and done.returncode == 2


def test_an_endpoint_without_a_scheme(folder: Path) -> None:
    for words in (["status", "tried"], ["run", "plain.yaml", "--only", "dataset"]):
        assert "NANOCHAT_ENDPOINT: it has no scheme: write http://127.0.0.1:9000" in mistake(
            called(folder, *words, NANOCHAT_ENDPOINT="127.0.0.1:9000")
        )


def test_the_address_of_a_server_to_talk_to(folder: Path) -> None:
    done = called(folder, "chat", "--url", "127.0.0.1:8000", "--prompt", "Hi")
    assert "it has no scheme: write http://127.0.0.1:8000" in mistake(done)
    done = called(folder, "chat", "--url", "http://user:hunter2@127.0.0.1:8000", "--prompt", "Hi")
    assert "it holds a user name or password" in mistake(done) and "hunter2" not in done.stderr
