"""`nanochat gc` while real runs are under way: of another home, and of another machine through S3."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from s3_server import S3Server
from small_pipeline import COMMAND, UNTRACKED, called, mistake, nanochat, output, started, wait_until, write_pipeline

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
# Long enough for a gc beside it, and without what takes time elsewhere.
LONG = {"steps": 400, "checkpointEverySeconds": 5}


def prepare(folder: Path) -> Path:
    folder.mkdir()
    write_pipeline(
        folder,
        base=LONG,
        rl={"enabled": False},
        evalChat={"enabled": False},
        evalBase={"enabled": False},
        release={"enabled": False},
    )
    return folder


def freed(text: str) -> int:
    """The bytes that a gc tells in its last line."""
    found = re.search(r"([\d,]+) bytes$", text.strip())
    return int(found[1].replace(",", "")) if found else 0


def test_a_live_run_of_another_home_and_a_suspended_one(tmp_path: Path) -> None:
    mine, other = prepare(tmp_path / "mine"), prepare(tmp_path / "other")
    shared = {**UNTRACKED, "NANOCHAT_ROOT": str(tmp_path / "store")}
    run = started(other, "run", "small.yaml", **shared)
    try:
        wait_until(lambda: "base       starts" in output(other), process=run, home=other)
        assert "small: Running (run from another home, on " in called(mine, "status", "small", **shared).stdout
        options = ("--keep-runs", "0", "--keep-releases", "--unfinished")
        assert "nothing to remove" in called(mine, "gc", *options, **shared).stdout
        assert "so nothing is removed" in mistake(called(mine, "gc", "--keep-runs", "0", **shared)), "no registry"
        run.send_signal(signal.SIGINT)
        assert run.wait(120) == 130, output(other)
        assert "nothing to remove" in called(mine, "gc", *options[:3], **shared).stdout, "it is suspended"
        done = nanochat(other, "run", "small.yaml", **shared)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "dataset    cached" in done.stdout, "all that it had is there"
        own = nanochat(mine, "run", "small.yaml", "--set", "stages.base.steps=5", **shared)
        assert own.returncode == 0, own.stdout + own.stderr
        for folder in (mine, other):
            said = called(folder, "status", "small", **shared).stdout
            assert said.startswith("small: Succeeded") and "another home" not in said
        assert len(list((tmp_path / "store" / "runs" / "default.small").iterdir())) == 2
        assert "nothing to remove" in called(mine, "gc", "--keep-runs", "1", "--keep-releases", **shared).stdout
    finally:
        run.kill()


@pytest.mark.skipif(
    shutil.which("unshare") is None or os.geteuid() != 0, reason="another machine needs unshare and root"
)
def test_a_live_run_of_another_machine(tmp_path: Path, s3_server: S3Server) -> None:
    """With a home, a host's name and processes of its own, and the store alone in common."""
    far, near = prepare(tmp_path / "far"), prepare(tmp_path / "near")
    root = s3_server.profile(tmp_path.name)
    shared = {
        **UNTRACKED, **s3_server.credentials, "NANOCHAT_ROOT": root.root, "NANOCHAT_ENDPOINT": root.endpoint or "",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    script = 'hostname elsewhere && exec "$@"'
    machine = ["unshare", "--uts", "--pid", "--fork", "--mount-proc", "sh", "-c", script, "sh"]
    environment = {**os.environ, **shared, "NANOCHAT_HOME": str(far / "state"), "COLUMNS": "200"}
    with (far / "output.log").open("w") as log:
        run = subprocess.Popen(
            [*machine, *COMMAND, "run", "small.yaml"], cwd=far, env=environment, stdout=log, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
    try:
        wait_until(lambda: "base       starts" in output(far), process=run, home=far)
        said = called(near, "status", "small", **shared).stdout
        assert "small: Running (run from another home, on elsewhere)" in said
        collected = called(near, "gc", "--keep-runs", "0", "--keep-releases", "--unfinished", **shared)
        assert "nothing to remove" in collected.stdout, collected.stderr
        assert run.wait(240) == 0, output(far)
        assert "retrying" not in output(far) and "passed over" not in output(far), "it ends as without a gc"
        planned = called(near, "gc", "--keep-runs", "0", "--keep-releases", "--dry-run", **shared)
        done = called(near, "gc", "--keep-runs", "0", "--keep-releases", **shared)
        assert planned.stdout == done.stdout and freed(done.stdout) > 0
        assert "small" not in called(near, "status", **shared).stdout
    finally:
        run.kill()
