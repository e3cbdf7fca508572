"""A run that is killed at any moment, again and again, ends with the weights of an undisturbed one, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

KILLS = 20
PIPELINE = """
apiVersion: nanochat.dev/v1alpha1
kind: ChatPipeline
metadata: {name: killed}
spec:
  model: {depth: 2, width: 64, headDim: 32, sequenceLength: 64}
  sources: {text: {kind: world, charactersPerShard: 300000, shards: 1, validationShard: 9}}
  retries: {limit: 3, delaySeconds: 0.1}
  stages:
    tokenizer: {vocabSize: 512, maxChars: 300000}
    base: &training
      steps: 250
      totalBatchTokens: 1024
      deviceBatchSize: 8
      compile: never
      precision: fp32
      checkpointEverySeconds: 1
      evalEvery: 0
      sampleEvery: 0
    mid:
      mixture: [{task: world-facts, rows: 2000}, {task: world-sums, rows: 1000}]
      validation: [{task: world-facts, split: test, rows: 20}]
      steps: 200
      totalBatchTokens: 1024
      deviceBatchSize: 8
      compile: never
      precision: fp32
      checkpointEverySeconds: 1
      evalEvery: 0
    sft:
      mixture: [{task: world-facts, rows: 1000}, {task: world-sums, rows: 1000}]
      validation: [{task: world-facts, split: test, rows: 20}]
      steps: 150
      rowsPerStep: 8
      deviceBatchSize: 4
      compile: never
      precision: fp32
      checkpointEverySeconds: 1
      evalEvery: 0
    rl: {enabled: false}
    evalBase: {enabled: false}
    evalChat: {enabled: false}
    report: {enabled: false}
    release: {enabled: false}
"""


def start(home: Path, file: Path) -> subprocess.Popen[bytes]:
    environment = dict(os.environ, NANOCHAT_HOME=str(home))
    environment.pop("NANOCHAT_ROOT", None)
    with (home / "runner.log").open("ab") as log:
        command = [sys.executable, "-m", "nanochat.cli.main", "run", str(file)]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def weights(home: Path) -> dict[str, tuple[str, str]]:
    """Stage -> (key, SHA-256 of its weights)."""
    found = {}
    for path in (home / "artifacts" / "model").glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        digests = {record["path"]: record["sha256"] for record in manifest["files"]}
        found[manifest["recipe"]["stage"]] = (manifest["key"], digests["model.safetensors"])
    return found


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def ranks(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = []
    for child in descendants(process):
        try:
            if "nanochat.stages" in child.cmdline():
                found.append(child)
        except psutil.Error:
            continue
    return found


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


def strike(turn: int, process: subprocess.Popen[bytes]) -> None:
    """Kill, in turn, the runner, a stage, or everything."""
    if turn % 3 == 0:
        children = descendants(process)
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive, "children must die with the runner"
    elif turn % 3 == 1:
        kill(ranks(process))
    else:
        kill([psutil.Process(process.pid), *descendants(process)])
        process.wait()


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    file = tmp_path / "killed.yaml"
    file.write_text(PIPELINE)
    homes = [tmp_path / "undisturbed", tmp_path / "killed"]
    for home in homes:
        home.mkdir()
    undisturbed = start(homes[0], file)
    assert undisturbed.wait(600) == 0, (homes[0] / "runner.log").read_text()

    chance = random.Random(7)
    kills, process = 0, start(homes[1], file)
    deadline = time.monotonic() + 900
    while process.poll() is None or process.returncode != 0:
        assert time.monotonic() < deadline, (homes[1] / "runner.log").read_text()
        if process.poll() is not None:
            assert process.returncode < 0, (homes[1] / "runner.log").read_text()
            process = start(homes[1], file)
        if kills < KILLS:
            time.sleep(chance.uniform(0.3, 3.0))
            if process.poll() is None:
                strike(kills, process)
                kills += 1
        else:
            time.sleep(0.2)
    assert kills == KILLS
    assert weights(homes[1]) == weights(homes[0])
    assert set(weights(homes[0])) == {"base", "mid", "sft"}
