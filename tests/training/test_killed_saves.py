"""A process that is killed in the midst of a save, again and again, goes on from the newest whole checkpoint."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import random
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from s3_server import S3Server
from safetensors.torch import load_file, save_file

from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.storage import Checkpoints, Profile, open_store
from nanochat.training.plan import Measurement
from tests.training.rig import Rig

# 9 MB of state: a save takes longer than a step, so that one is under way nearly always.
CONFIG = ModelConfig(depth=2, width=128, heads=2, kv_heads=2, sequence_length=16, vocab_size=2048)


def make_rig(folder: Path, profile: Profile, steps: int, launch: str, every: int | None) -> Rig:
    model = Transformer(CONFIG)
    return Rig(folder, launch=launch, profile=profile, steps=steps, checkpoint_steps=every, model=model)


class Told(logging.Handler):
    """Sends what is logged."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self.pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        self.pipe.send(record.getMessage())


def run_launch(
    credentials: Mapping[str, str],
    folder: Path,
    profile: Profile,
    steps: int,
    launch: str,
    every: int | None,
    pipe: Connection,
) -> None:
    os.environ.update(credentials)
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, handlers=[Told(pipe)])
    rig = make_rig(folder, profile, steps, launch, every)
    rig.run()
    save_file(dict(rig.weights), folder / "weights.safetensors")
    pipe.send("ended")


class Launch:
    """A launch in a process of its own, and what it says: "saving" and "stored", each of a step, and "ended"."""

    def __init__(self, *arguments: object) -> None:
        """`arguments` are run_launch's."""
        self.pipe, other = multiprocessing.Pipe(duplex=False)
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload(["tests.training.rig"])  # once, for all launches
        self.process = processes.Process(target=run_launch, args=(*arguments, other))
        self.process.start()
        other.close()
        self.saving = self.stored = 0  # the newest step of which that was said
        self.ended = False

    def listen(self) -> bool:
        """Take one message; False where there will be none."""
        try:
            text = self.pipe.recv()
        except (EOFError, OSError):
            return False
        step = next((int(word.strip(";")) for word in text.split() if word.strip(";").isdigit()), 0)
        if text.startswith("saving the state"):
            self.saving = step
        elif text.endswith("is stored"):
            self.stored = step
        self.ended = self.ended or text == "ended"
        return True

    def listen_for(self, seconds: float) -> None:
        """Take what is said within some seconds."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and self.pipe.poll(left) and self.listen():
            pass

    def kill(self) -> bool:
        """Kill it; whether that was in the midst of a save."""
        self.process.kill()
        while self.listen():
            pass
        self.process.join()
        return self.saving > self.stored


@pytest.mark.parametrize(
    ("kind", "kills"),
    [("folder", 2), pytest.param("folder", 20, marks=pytest.mark.slow), pytest.param("s3", 20, marks=pytest.mark.slow)],
)
def test_killed_in_the_midst_of_saves(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, kills: int
) -> None:
    """After every kill the newest whole checkpoint is one that had been stored, or its successor, with the weights of
    an undisturbed run at that step; and so are the weights at the end."""
    profile, credentials = Profile(root=str(tmp_path / "store")), {}
    if kind == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        profile, credentials = server.profile(tmp_path.name), server.credentials
        for name, value in credentials.items():
            monkeypatch.setenv(name, value)
    steps = 12 + 4 * kills
    whole = make_rig(tmp_path / "whole", Profile(root=str(tmp_path / "whole")), steps, "undisturbed", None)
    right: dict[int, str] = {}
    whole.measurements = (Measurement(1, lambda step: right.update({step: digest(whole.model.state_dict())}) or {}),)
    whole.run()

    chance, number, hits, newest, seconds = random.Random(kills), 0, 0, 0, 0.5
    while hits < kills:
        number += 1
        assert number < 5 * kills, f"{hits} of {number} kills came in the midst of a save"
        launch = Launch(credentials, tmp_path, profile, steps, f"launch-{number}", 1)
        while launch.saving == 0 and launch.listen():
            began = time.monotonic()
        if number % 4 == 1:  # how long a save takes now
            while launch.stored == 0 and launch.listen():
                seconds = time.monotonic() - began
        launch.listen_for(chance.uniform(0.0, 1.5 * seconds))
        hits += launch.kill()
        checkpoints = Checkpoints(open_store(profile), "base", "key", tmp_path / "cache")
        found = checkpoints.newest()
        step = 0 if found is None else found.step
        assert max(newest, launch.stored) <= step <= max(newest, launch.saving)
        assert found is None or digest(load_file(checkpoints.fetch(found) / "model.safetensors")) == right[step]
        newest = step
    last = Launch(credentials, tmp_path, profile, steps, "last", None)
    while last.listen():
        pass
    assert last.ended
    assert digest(load_file(tmp_path / "weights.safetensors")) == right[steps]


def digest(weights: Mapping[str, torch.Tensor]) -> str:
    """Of their bits."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode() + weights[name].numpy().tobytes())
    return found.hexdigest()
