"""Training steps of a checkout of karpathy/nanochat, as its `scripts/base_train.py` makes them.

Depth, width, vocabulary and batch are ours, optimizer, rates and `torch.compile` its own. Nothing of it is copied.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from nanochat.bench.pacing import Paced

WEIGHT_DECAY = 0.2  # any but 0: with it the optimizer takes its usual way


def run(task: Mapping[str, Any], paced: Paced) -> None:
    """Train, a step each time, with the batch given as (micro-batches, rows, length)."""
    gpt = importlib.import_module("nanochat.gpt")
    flash = importlib.import_module("nanochat.flash_attention")
    paced.stamp("imports")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    micro, rows, length = task["batch"]
    shape = task["model"]
    config = gpt.GPTConfig(
        sequence_len=length,
        vocab_size=shape["vocab_size"],
        n_layer=shape["depth"],
        n_head=shape["heads"],
        n_kv_head=shape["kv_heads"],
        n_embd=shape["width"],
        window_pattern="SSSL" if flash.USE_FA3 else "L",  # what its own script advises
    )
    with torch.device("meta"):
        model = gpt.GPT(config)
    model.to_empty(device=device)
    model.init_weights()
    optimizer = model.setup_optimizer(weight_decay=WEIGHT_DECAY)
    paced.stamp("model and data")
    compiled = torch.compile(model, dynamic=False) if task["compiled"] else model
    tokens, draw = micro * rows * length, np.random.default_rng(42)
    work = {"tokens": float(tokens), "flops": float(model.estimate_flops() * tokens), "steps": 1.0}
    while True:
        ids = torch.from_numpy(draw.integers(0, shape["vocab_size"], (micro, rows, length + 1))).to(device)
        for batch in ids:
            loss = compiled(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
            (loss / micro).backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        loss.item()
        paced.boundary(work)
