"""A shape that is measured in seconds, peers that are a few lines, and the command as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat.spec.errors import UserError

SHAPE = {
    "model.depth": "1",
    "model.width": "32",
    "model.headDim": "16",
    "model.sequenceLength": "32",
    "stages.tokenizer.vocabSize": "300",
    "stages.base.totalBatchTokens": "128",
    "stages.base.deviceBatchSize": "2",
    "stages.sft.rowsPerStep": "4",
    "stages.rl.samplesPerPrompt": "2",
}
SETS = [f"{name}={value}" for name, value in SHAPE.items()]

PEER = {
    "gpt": """
import torch
from dataclasses import dataclass
from torch import nn

@dataclass
class GPTConfig:
    sequence_len: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int
    window_pattern: str

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size)

    def init_weights(self):
        nn.init.normal_(self.embed.weight)
        nn.init.normal_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def estimate_flops(self):
        return 6 * self.head.weight.numel()

    def setup_optimizer(self, weight_decay):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def forward(self, ids, targets):
        return nn.functional.cross_entropy(self.head(self.embed(ids)).flatten(0, 1), targets.flatten())
""",
    "flash_attention": "USE_FA3 = False",
}


def write_peer(folder: Path, **changed: str) -> Path:
    """A checkout that looks like karpathy/nanochat's from outside."""
    package = folder / "nanochat"
    package.mkdir(parents=True)
    for name, text in {"__init__": "", **PEER, **changed}.items():
        (package / f"{name}.py").write_text(text)
    return folder


def bench(
    home: Path, *arguments: str, shape: bool = True, last: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """`nanochat bench` on one thread and, unless CXX says otherwise, without a compiler; `last` changes the shape."""
    sets = [word for item in SETS for word in ("--set", item)] if shape else []
    bare = home / "no-programs"
    bare.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NANOCHAT_", "CXX"))}
    return subprocess.run(
        [sys.executable, "-m", "nanochat.cli.main", "bench", *arguments, "--threads", "1", *sets, *last],
        env={**kept, "PATH": str(bare), "NANOCHAT_HOME": str(home / "state"), "COLUMNS": "200", **environment},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a command which could not measure says."""
    assert done.returncode == 2 and done.stdout == "", done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def refused(call: Any) -> str:
    """What a UserError says."""
    try:
        call()
    except UserError as error:
        return error.message
    raise AssertionError("nothing was refused")
