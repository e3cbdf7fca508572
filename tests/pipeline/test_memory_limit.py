"""A real limit of a control group: what the kernel kills for it ran out of memory. Skipped where none can be made."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nanochat.storage.opening import open_store
from nanochat.storage.store import Profile
from nanochat.tracking.journal import JournalReader
from tests.cli.small_pipeline import COMMAND, UNTRACKED, variables_of
from tests.training.rig import close

MIB = 1 << 20
JOIN = ["sh", "-c", 'echo $$ > "$0" && exec "$@"']
DOCUMENT = """
apiVersion: nanochat.dev/v1alpha1
kind: ChatPipeline
metadata: {name: limited}
spec:
  model: {depth: 2, width: 128, headDim: 32, sequenceLength: 256}
  sources: {text: {kind: world, charactersPerShard: 200000, shards: 1, validationShard: 9}}
  stages:
    tokenizer: {vocabSize: 400, maxChars: 200000}
    base: {steps: 2, totalBatchTokens: 32768, deviceBatchSize: 128, compile: never, precision: fp32, evalEvery: 0}
    mid: {enabled: false}
    sft: {enabled: false}
    rl: {enabled: false}
    evalBase: {core: false}
"""


class Group:
    """A control group for memory below this process's own, in either version of the kernel's interface."""

    def __init__(self, limit: int | None = None) -> None:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        v1 = [path for _, kinds, path in lines if "memory" in kinds.split(",")]
        top = Path("/sys/fs/cgroup") / ("memory" if v1 else "")
        own = (v1 or [path for number, _, path in lines if number == "0"])[0].lstrip("/")
        self.folder = top / own / f"nanochat-{uuid.uuid4().hex[:8]}"
        self.folder.mkdir()
        if limit is not None:
            names = (
                ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if v1 else ("memory.max", "memory.swap.max")
            )
            (self.folder / names[0]).write_text(str(limit))
            with suppress(OSError):  # a kernel that counts no swap
                (self.folder / names[1]).write_text(str(limit if v1 else 0))
        self._kept = "total_rss" if v1 else "anon"

    @property
    def kept(self) -> int:
        """Bytes that the kernel cannot take back."""
        lines = (line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
        return next(int(number) for name, number in lines if name == self._kept)

    def command(self, *words: str) -> list[str]:
        """The command, in the group."""
        return [*JOIN, str(self.folder / "cgroup.procs"), *words]


@pytest.fixture
def groups() -> Iterator[list[Group]]:
    made: list[Group] = []
    yield made
    for group in made:
        group.folder.rmdir()


def new_group(groups: list[Group], limit: int | None = None) -> Group:
    try:
        group = Group(limit)
        assert group.kept >= 0
    except (OSError, IndexError) as error:
        pytest.skip(f"no control group can be made here: {error}")
    groups.append(group)
    return group


KILLED = """
import subprocess, sys
from nanochat.runtime.cgroup import kernel_kills
kills = kernel_kills()
ended = subprocess.run([sys.executable, "-c", "list(bytearray(1 << 20) for _ in range(512))"])
print(ended.returncode, kernel_kills() - kills)
"""


def test_the_kernel_counts_whom_it_kills(groups: list[Group]) -> None:
    group = new_group(groups, 200 * MIB)
    done = subprocess.run(group.command(sys.executable, "-c", KILLED), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["-9", "1"]


@pytest.mark.slow
def test_a_run_under_a_limit_goes_on_with_fewer_rows(tmp_path: Path, groups: list[Group]) -> None:
    (tmp_path / "limited.yaml").write_text(DOCUMENT)

    most = 0

    def run(home: str, *only: str, group: Group | None = None) -> str:
        nonlocal most
        words = [
            *COMMAND,
            "run",
            str(tmp_path / "limited.yaml"),
            *(word for stage in only for word in ("--only", stage)),
        ]
        command = group.command(*words) if group else words
        own = variables_of(tmp_path / home, UNTRACKED)
        with (tmp_path / "output").open("w+") as output:
            process = subprocess.Popen(command, cwd=tmp_path, env=own, stdout=output, stderr=subprocess.STDOUT)
            while process.poll() is None:
                most = max(most, group.kept if group else 0)
                time.sleep(0.02)
            output.seek(0)
            said = output.read()
        assert process.returncode == 0, said
        return said

    def losses(home: str) -> list[float]:
        store = open_store(Profile(str(tmp_path / home / "state")))
        (folder,) = (f"runs/default.limited/{uid}" for uid in store.children("runs/default.limited"))
        return [point.value for point in JournalReader(store, folder).history("base").metrics["train/loss"]]

    free = new_group(groups)
    run("free", "dataset", "tokenizer", "tokens")
    shutil.copytree(tmp_path / "free", tmp_path / "tight")
    run("free", "base", group=free)
    said = run("tight", "base", group=new_group(groups, most * 3 // 4))
    assert "out of memory: again with 64 rows at a time" in said and "attempts without progress" not in said
    assert len(losses("free")) == 2
    pairs = zip(losses("tight"), losses("free"), strict=True)
    assert all(close(tight, loss, 5e-5) for tight, loss in pairs), "a sum of 32,768 losses in fp32"
