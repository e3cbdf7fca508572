"""The whole pipeline with its store on an S3 server, which now and then is away."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from s3_server import S3Server
from small_pipeline import PIPELINE, UNTRACKED, called, lines, nanochat, output, started, wait_until, write_pipeline
from store_servers import StoreServer

from nanochat.storage import Store, open_store


def keys(names: list[str]) -> set[str]:
    """kind/key of what has a manifest."""
    return {"/".join(name.split("/")[-3:-1]) for name in names if name.count("/") == 3 and "manifest.json" in name}


@pytest.fixture(scope="module")
def remote(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A home whose pipeline has run once, with nothing but the cache in it."""
    folder = tmp_path_factory.mktemp("remote")
    (folder / "small.yaml").write_text(PIPELINE)
    environment = s3_server.variables("whole/store")
    done = nanochat(folder, "run", "small.yaml", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, environment


@pytest.fixture
def store(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return open_store(s3_server.profile("whole/store"))


def test_the_commands_work_and_a_second_run_does_nothing(remote: tuple[Path, dict[str, str]]) -> None:
    folder, environment = remote
    again = nanochat(folder, "run", "small.yaml", **environment)
    assert again.returncode == 0
    assert all(said.startswith("cached") for stage, said in lines(again.stdout).items() if stage in ("base", "release"))
    status = called(folder, "status", "small", **environment)
    assert "Succeeded" in status.stdout
    assert "the model is in s3://" in called(folder, "logs", "small", "base", **environment).stdout
    report = called(folder, "report", "small", **environment)
    assert report.returncode == 0 and "report.html" in report.stdout, report.stderr
    chat = called(folder, "chat", "small", "--prompt", "Who are you?", "--max-tokens", "4", **environment)
    assert chat.returncode == 0, chat.stderr
    assert called(folder, "gc", **environment).returncode == 0
    again = nanochat(folder, "run", "small.yaml", **environment)
    assert lines(again.stdout)["release"].startswith("cached")
    assert not (folder / "state" / "artifacts").exists() and not list((folder / "state" / "work").glob("*/*"))


def test_the_artifacts_are_those_of_a_folder(trained: Path, remote: object, store: Store) -> None:
    state = trained / "state"
    local = [str(path.relative_to(state)) for path in state.glob("artifacts/*/*/manifest.json")]
    there = {entry.path: entry for entry in store.list("artifacts")}
    assert keys(list(there)) == keys(local)
    for path in (name for name in there if name.count("/") == 3):
        mine, its = json.loads((state / path).read_text()), store.read_json(path, 1 << 20)
        assert (mine["recipe"], mine["inputs"]) == (its["recipe"], its["inputs"])
        if mine["kind"] in ("text", "text-tokens", "chat-tokens", "tokenizer", "model"):
            digests = [{f["path"]: f["sha256"] for f in manifest["files"]} for manifest in (mine, its)]
            assert digests[0] == digests[1], path


def test_training_bears_a_server_that_hangs_and_one_that_is_gone(
    own_server: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in own_server.credentials.items():
        monkeypatch.setenv(name, value)
    write_pipeline(
        tmp_path,
        retries={"delaySeconds": 0.5},
        base={"steps": 2500, "checkpointEverySeconds": 1, "evalEvery": 0, "sampleEvery": 0},
        evalBase={"enabled": False},
        mid={"enabled": False},
        sft={"enabled": False},
        rl={"enabled": False},
        evalChat={"enabled": False},
        report={"enabled": False},
        release={"enabled": False},
    )
    process = started(tmp_path, "run", "small.yaml", **own_server.variables("away"), **UNTRACKED)
    try:
        store = open_store(own_server.profile("away"))
        wait_until(
            lambda: [entry for entry in store.list("checkpoints/base") if entry.path.endswith("/manifest.json")],
            process=process,
            home=tmp_path,
        )
        own_server.pause()
        time.sleep(3)
        own_server.resume()
        time.sleep(2)
        assert process.poll() is None, output(tmp_path)
        own_server.kill()
        time.sleep(20)  # longer than one operation tries
        assert process.poll() is None, output(tmp_path)
        own_server.restart()
        assert process.wait(timeout=400) == 0, output(tmp_path)
    finally:
        process.kill()
    assert lines(output(tmp_path))["base"].startswith("done")
