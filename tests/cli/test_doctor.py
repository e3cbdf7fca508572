"""`nanochat doctor`: what is fine is said, what is not comes with what to do, and it is quick."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_pipeline import called

from nanochat.cli.doctor import experiment_check
from nanochat.tracking.client import connect, experiment_id
from nanochat.tracking.mlflow import EXPERIMENT

WORLD = """
apiVersion: nanochat.dev/v1alpha1
kind: ChatPipeline
metadata: {name: examined}
spec:
  model: {depth: 1, width: 32, headDim: 16, sequenceLength: 64}
  sources: {text: {kind: world, charactersPerShard: 200000, shards: 1, validationShard: 9}}
  stages:
    tokenizer: {vocabSize: 400, maxChars: 200000}
    base: {steps: 4, totalBatchTokens: 256}
    mid: {mixture: [{task: world-facts}], validation: [{task: world-facts, split: test}], totalBatchTokens: 256}
    sft: {mixture: [{task: world-facts}], validation: [{task: world-facts, split: test}]}
    rl: {enabled: false}
    evalBase: {core: false}
    evalChat: {tasks: [{task: world-facts}]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "world.yaml").write_text(WORLD)
    return tmp_path


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str]]:
    """Check -> (level, what was found with the advice below it); of several the first that is not fine."""
    found: dict[str, tuple[str, str]] = {}
    name = ""
    for line in done.stdout.splitlines():
        if line.startswith(" "):
            level, text = found[name]
            found[name] = level, f"{text}\n{line.strip()}"
            continue
        level, name, text = line.split(maxsplit=2)
        if name in found and found[name][0] != "ok":
            name = f"{name} more"
        found[name] = level, text
    return found


def test_a_machine_that_is_fine(folder: Path) -> None:
    done = called(folder, "doctor", "world.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    found = findings(done)
    for check in ("pipeline", "torch", "device", "memory", "disk", "storage", "tracking", "sources"):
        assert found[check][0] == "ok", done.stdout


def test_it_imports_no_torch(folder: Path) -> None:
    program = (
        "import sys\n"
        "sys.argv = ['nanochat', 'doctor', 'world.yaml']\n"
        "from nanochat.cli.main import app\n"
        "app(standalone_mode=False)\n"
        "assert not {'torch', 'mlflow', 'pyarrow'} & set(sys.modules)\n"
    )
    environment = dict(os.environ, NANOCHAT_HOME=str(folder / "state"))
    subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, check=True, capture_output=True)


def test_a_file_where_the_store_should_be(folder: Path) -> None:
    (folder / "taken").write_text("mine")
    done = called(folder, "doctor", NANOCHAT_ROOT=str(folder / "taken"))
    assert done.returncode == 1
    level, text = findings(done)["storage"]
    assert level == "fail" and "is a file where a folder should be" in text and "move it away" in text
    assert (folder / "taken").read_text() == "mine"


def test_a_store_that_cannot_be_written(folder: Path) -> None:
    if os.geteuid() == 0:  # whom no mode of a folder keeps out
        root = Path("/sys/nanochat")
        if not root.parent.is_dir():
            pytest.skip("there is no folder here that root cannot write to")
    else:
        root = folder / "closed"
        root.mkdir(mode=0o555)
    done = called(folder, "doctor", NANOCHAT_ROOT=str(root))
    assert done.returncode == 1
    level, text = findings(done)["storage"]
    assert level == "fail" and f"no right for writing in {root}" in text and "change its owner or mode" in text


def test_servers_that_do_not_answer(folder: Path) -> None:
    done = called(
        folder, "doctor",
        NANOCHAT_ROOT="s3://bucket/prefix", NANOCHAT_ENDPOINT="http://127.0.0.1:9", AWS_ACCESS_KEY_ID="a",
        AWS_SECRET_ACCESS_KEY="b", MLFLOW_TRACKING_URI="http://127.0.0.1:9",
    )  # fmt: skip
    assert done.returncode == 1
    found = findings(done)
    level, text = found["storage"]
    assert level == "fail" and "http://127.0.0.1:9 does not answer: check the endpoint" in text
    level, text = found["tracking"]
    assert level == "warn" and "does not answer" in text and "set MLFLOW_TRACKING_URI" in text


def test_tracking_alone_stops_nothing(folder: Path) -> None:
    done = called(folder, "doctor", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 0
    assert findings(done)["tracking"][0] == "warn"


def test_sources_that_are_not_there(folder: Path) -> None:
    arguments = ("--set", "sources.text.kind=hub", "--set", f"sources.mirror={folder}/absent")
    done = called(folder, "doctor", "world.yaml", *arguments, "--set", "stages.evalBase.core=true")
    assert done.returncode == 1
    found = findings(done)
    level, text = found["sources"]
    assert level == "fail" and "shard_00009.parquet does not exist" in text and "sources.mirror" in text
    level, text = found["sources more"]
    assert level == "fail" and "absent/eval_bundle does not exist" in text and "stages.evalBase.core=false" in text


def test_a_pipeline_that_does_not_hold_together(folder: Path) -> None:
    (folder / "me.jsonl").write_text("not JSON\n")
    done = called(folder, "doctor", "world.yaml", "--set", "stages.mid.identity=me.jsonl")
    assert done.returncode == 1
    level, text = findings(done)["pipeline"]
    assert level == "fail" and "me.jsonl, line 1: not JSON" in text


@pytest.mark.filterwarnings("ignore::Warning:mlflow", "ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_deleted_experiment_is_known(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = connect(uri)
    identity = experiment_id(client, uri, EXPERIMENT)
    assert experiment_check(uri).level == "ok"
    client.delete_experiment(identity)
    found = experiment_check(uri)
    assert (found.level, found.advice) == ("warn", "the next run restores it, with all its runs")
    assert "its experiment 'nanochat' was deleted" in found.found
    assert experiment_id(client, uri, EXPERIMENT) == identity and experiment_check(uri).level == "ok"
