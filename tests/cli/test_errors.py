"""Mistakes of a user and accidents of a machine: each is one clear sentence, and nothing is lost by it.

Every case ends in one `error:` or `Failed:` line without a traceback; put right, the run goes on with what was made.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from small_pipeline import UNTRACKED, called, lines, mistake, nanochat, output, started, wait_until
from store_servers import StoreServer

from nanochat.data.text import write_text_shard
from nanochat.storage.manifest import Manifest
from tasks.world.text import documents

PIPELINE = """
apiVersion: nanochat.dev/v1alpha1
kind: ChatPipeline
metadata: {name: tried}
spec:
  model: {depth: 1, width: 32, headDim: 16, sequenceLength: 64}
  sources:
    parallelDownloads: 1
    text: {base: mirror, path: "shard_{index}.parquet", charactersPerShard: 100000, shards: 1, validationShard: 1}
    encodings: {gpt2: mirror/absent, gpt4: mirror/absent}
  retries: {limit: 1, delaySeconds: 0.1}
  stages:
    tokenizer: {vocabSize: 300, maxChars: 100000}
    base: {steps: 20, totalBatchTokens: 320, deviceBatchSize: 2, compile: never, evalEvery: 0, sampleEvery: 0}
    mid: {enabled: false}
    sft: {enabled: false}
    rl: {enabled: false}
    evalBase: {enabled: false}
    evalChat: {enabled: false}
    report: {enabled: false}
    release: {enabled: false}
"""
CONVERSATION = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am small."}]
WITH_IDENTITY = [
    "stages.mid={identity: me.jsonl, mixture: [{task: identity}], validation: [{task: identity}]}",
    "stages.mid.totalBatchTokens=256",
    "stages.mid.steps=2",
]


def prepare(folder: Path) -> Path:
    """A pipeline whose text is in a mirror, and an identity file."""
    (folder / "tried.yaml").write_text(PIPELINE)
    (folder / "mirror").mkdir()
    for index in (0, 1):
        write_text_shard(folder / "mirror" / f"shard_{index}.parquet", documents(index, 300))
    (folder / "me.jsonl").write_text(f"{json.dumps(CONVERSATION)}\n" * 8)
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder in which nothing has run."""
    return prepare(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the pipeline has run to its end; tests leave it so."""
    folder = prepare(tmp_path_factory.mktemp("finished"))
    done = run(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def words(settings: Sequence[str]) -> list[str]:
    """`run tried.yaml` with settings."""
    return ["run", "tried.yaml", *(word for item in settings for word in ("--set", item))]


def run(home: Path, *settings: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return nanochat(home, *words(settings), **{**UNTRACKED, **environment})


def launches(state: Path) -> dict[str, str]:
    """The artifacts that were made: 'kind/name' -> the launch that made it."""
    manifests = [Manifest.from_bytes(path.read_bytes()) for path in state.glob("artifacts/*/*/manifest.json")]
    return {f"{manifest.kind}/{manifest.recipe['name']}": manifest.launch for manifest in manifests}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["modle.depth=3"], "unknown field 'spec.modle'. Did you mean 'model'?"),
        (["stages.base.batchSize=3"], "unknown field 'spec.stages.base.batchSize'. "),
        (["stages.base.totalBatchTokens=100"], "must be a multiple of model.sequenceLength (64): set it to 64 or 128"),
        (["stages.base.deviceBatchSize=0"], "'spec.stages.base.deviceBatchSize': input should be greater than"),
        (["model.headDim=24", "model.kvHeads=3"], "key-value heads"),
        ([*WITH_IDENTITY, "stages.mid.identity=absent.jsonl"], "stages.mid.identity: cannot read"),
        (["stages.mid.identity=me.jsonl"], "no mixture uses it: add {task: identity}"),
        ([*WITH_IDENTITY, "stages.mid.mixture.0.split=dev"], "task identity has no split 'dev': it has train"),
        ([*WITH_IDENTITY, "stages.rl={enabled: true, tasks: [{task: identity}]}"], "has no reward"),
        (["stages.rl={enabled: true, tasks: [{task: world-sums, split: dev}]}"], "task world-sums has no split 'dev'"),
        (
            ["stages.evalBase={enabled: true, bitsPerByteTokens: 63}"],
            "bitsPerByteTokens (63) must be at least model.sequenceLength (64)",
        ),
        (
            ["stages.base.evalEvery=5", "stages.base.evalTokens=63"],
            "stages.base.evalTokens (63) must be at least model.sequenceLength (64)",
        ),
        (["sources.text={kind: hub, path: corpus.parquet}"], "path must hold {index}, or all shards would be one file"),
        (["stages.base.steps=null", "stages.base.targetFlops=1"], "stages.base would train for no step"),
    ],
    ids=lambda value: value[-1][:40] if isinstance(value, list) else "",
)
def test_settings_that_cannot_be(home: Path, settings: list[str], sentence: str) -> None:
    assert sentence in mistake(called(home, *words(settings)))
    assert not (home / "state" / "artifacts").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"My name is nanochat.\n", "me.jsonl, line 1: not JSON"),
        (json.dumps(CONVERSATION, indent=1).encode(), "me.jsonl, line 1: not JSON"),
        (json.dumps(CONVERSATION).encode() + b"\n\xff\xfe\n", "me.jsonl, line 2: not UTF-8"),
        (
            json.dumps([*CONVERSATION, CONVERSATION[1]]).encode(),
            "message 3 is from 'assistant' and must be",
        ),
        (json.dumps(CONVERSATION[:1]).encode(), "the last message must be the assistant's"),
        (json.dumps([{"role": "user", "content": "\ud800"}, CONVERSATION[1]]).encode(), "half a surrogate pair"),
        (b"\n", "no conversation in this file"),
    ],
    ids=["prose", "indented", "latin", "no turns", "no answer", "surrogate", "empty"],
)
def test_identity_files_that_cannot_be_read(home: Path, content: bytes, sentence: str) -> None:
    (home / "me.jsonl").write_bytes(content)
    assert sentence in mistake(called(home, *words(WITH_IDENTITY)))
    assert not (home / "state" / "artifacts").exists()


def test_a_truncated_shard(home: Path) -> None:
    shard = home / "mirror" / "shard_1.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    sentence = mistake(run(home))
    assert "Failed: dataset:" in sentence and "shard_1.parquet is damaged" in sentence and "replace it" in sentence
    before = launches(home / "state")
    assert "text/shard_00000" in before and "text/shard_00001" not in before
    shard.write_bytes(whole)
    done = run(home)
    assert done.returncode == 0, done.stdout + done.stderr
    after = launches(home / "state")
    assert after["text/shard_00000"] == before["text/shard_00000"]
    assert "model/base" in after


def test_a_vocabulary_larger_than_the_text_supports(finished: Path) -> None:
    before = launches(finished / "state")
    sentence = mistake(run(finished, "stages.tokenizer.vocabSize=60000"))
    assert "Failed: tokenizer: the text supports a vocabulary of at most" in sentence and "vocabSize" in sentence
    assert launches(finished / "state") == before
    assert lines(run(finished).stdout)["base"].startswith("cached")


def test_a_corrupt_manifest(finished: Path) -> None:
    before = launches(finished / "state")
    (manifest,) = (finished / "state" / "artifacts" / "model").glob("*/manifest.json")
    weights = manifest.parent / before["model/base"] / "model.safetensors"
    content = weights.read_bytes()
    manifest.write_bytes(manifest.read_bytes().replace(b'"key"', b'"kez"'))
    done = run(finished)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is set aside" in done.stdout + done.stderr
    after = launches(finished / "state")
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"model/base"}
    assert (manifest.parent / after["model/base"] / "model.safetensors").read_bytes() == content
    assert list(manifest.parent.glob("manifest.json.damaged-*"))


def test_a_damaged_input_is_made_anew(finished: Path) -> None:
    before = launches(finished / "state")
    for tokens in (finished / "state" / "artifacts" / "text-tokens").glob("*/*/tokens.bin"):
        content = bytearray(tokens.read_bytes())
        content[len(content) // 2] ^= 1
        tokens.write_bytes(content)  # of the right size: only who reads it sees it
    done = run(finished, "stages.base.steps=21")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is damaged" in done.stdout + done.stderr
    after = launches(finished / "state")
    assert after["text/shard_00000"] == before["text/shard_00000"]
    assert after["text-tokens/shard_00000"] != before["text-tokens/shard_00000"]


def checkpoints(state: Path) -> list[Path]:
    """The folders of whole checkpoints, by step."""
    return sorted(path.parent for path in state.glob("checkpoints/base/*/*/manifest.json"))


def test_a_corrupt_checkpoint(finished: Path) -> None:
    settings = ["stages.base.steps=500", "stages.base.checkpointEvery=50", "stages.base.keepCheckpoints=4"]
    live = started(finished, *words(settings), **UNTRACKED)
    try:
        wait_until(lambda: len(checkpoints(finished / "state")) >= 3, process=live, home=finished)
        live.send_signal(signal.SIGINT)
        assert live.wait(120) == 130
    finally:
        live.kill()
    assert "Go on with: nanochat run tried.yaml" in output(finished)
    *_, before, newest = checkpoints(finished / "state")
    file = newest / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    done = run(finished, *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{newest.name} is damaged and passed over" in done.stdout
    log = nanochat(finished, "logs", "tried", "base").stdout
    assert f"resumed after step {int(before.name.split('-')[1]):,} of 500" in log
    assert f"{newest.name} is damaged" in nanochat(finished, "status", "tried").stdout


def test_credentials_that_are_refused(home: Path, own_server: StoreServer) -> None:
    wrong = own_server.refused[-1]
    done = run(home, **own_server.variables("refused") | wrong)
    first = next(iter(own_server.credentials))
    assert f"refuses these credentials for writing: correct {first}" in mistake(done)
    for secret in own_server.secrets:
        assert secret not in done.stdout + done.stderr
    assert not (home / "state" / "work").exists()


def test_a_port_in_use(home: Path) -> None:
    model = home / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"not read before the port is had")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        sentence = mistake(nanochat(home, "serve", str(model), "--port", port))
    assert f"Port {port} on 127.0.0.1 is in use" in sentence and "--port" in sentence


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 20 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("free", [4 << 10, 300 << 10], ids=["nothing", "little"])
def test_a_full_disk(home: Path, small_disk: Path, free: int) -> None:
    state = str(small_disk / "state")
    there = {"NANOCHAT_HOME": state, "MLFLOW_TRACKING_URI": ""}  # tracked, in a database on that disk
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - free))
    sentence = mistake(run(home, **there))
    assert "full" in sentence and "free space" in sentence
    before = launches(Path(state))
    filler.unlink()
    done = run(home, **there)
    assert done.returncode == 0, done.stdout + done.stderr
    after = launches(Path(state))
    assert "model/base" in after
    assert {name: after[name] for name in before} == before
