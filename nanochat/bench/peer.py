"""A checkout of karpathy/nanochat as its own scripts use it: training steps, the loader, checkpoints.

Depth, width, vocabulary and batch are ours, optimizer, rates and `torch.compile` its own. Nothing of it is copied.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from nanochat.bench.pacing import Paced
from nanochat.bench.synthetic import texts

STEPS, VOCABULARY = 20, 4096  # of the loader in a round; of its tokenizer
WEIGHT_DECAY = 0.2  # any but 0: with it the optimizer takes its usual way


def run(task: Mapping[str, Any], paced: Paced) -> None:
    """Measure what the task names."""
    MEASUREMENTS[task["measure"]](task, paced)


def build(shape: Mapping[str, Any], length: int, device: torch.device) -> tuple[Any, Any]:
    """The model and optimizer as scripts/base_train.py makes them."""
    gpt = importlib.import_module("nanochat.gpt")
    flash = importlib.import_module("nanochat.flash_attention")
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
    return model, model.setup_optimizer(weight_decay=WEIGHT_DECAY)


def steps(task: Mapping[str, Any], paced: Paced) -> None:
    """Training steps of (micro-batches, rows, length)."""
    importlib.import_module("nanochat.gpt")
    paced.stamp("imports")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    micro, rows, length = task["batch"]
    model, optimizer = build(task["model"], length, device)
    paced.stamp("build model")
    compiled = torch.compile(model, dynamic=False)
    tokens, draw = micro * rows * length, np.random.default_rng(42)
    work = {"tokens": float(tokens), "flops": float(model.estimate_flops() * tokens), "steps": 1.0}
    while True:
        ids = draw.integers(0, task["model"]["vocab_size"], (micro, rows, length + 1))
        for batch in torch.from_numpy(ids).to(device):
            loss = compiled(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
            (loss / micro).backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        loss.item()
        paced.boundary(lambda: work)


def loader(task: Mapping[str, Any], paced: Paced) -> None:
    """Batches of its loader, which encodes text with the tokenizer that it trains."""
    micro, rows, length = task["batch"]
    given = texts()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NANOCHAT_BASE_DIR"] = folder
        loading, dataset, tokenizers = (
            importlib.import_module(f"nanochat.{name}") for name in ("dataloader", "dataset", "tokenizer")
        )
        paced.stamp("imports")
        place = Path(dataset.DATA_DIR)
        place.mkdir(parents=True, exist_ok=True)
        for index in range(2):  # the last is for validation
            pq.write_table(pa.table({"text": given}), place / f"shard_{index:05d}.parquet", row_group_size=1024)
        tokenizer = tokenizers.RustBPETokenizer.train_from_iterator(iter(given), VOCABULARY)
        batches = loading.tokenizing_distributed_data_loader_bos_bestfit(
            tokenizer, rows, length, split="train", device="cpu"
        )
        while True:
            for _ in range(STEPS * micro):
                next(batches)
            paced.boundary(lambda: {"tokens": float(STEPS * micro * rows * length)})


def checkpoint(task: Mapping[str, Any], paced: Paced) -> None:
    """Checkpoints on the local disk, for which its loop waits."""
    _, _, length = task["batch"]
    manager = importlib.import_module("nanochat.checkpoint_manager")
    paced.stamp("imports")
    model, optimizer = build(task["model"], length, torch.device("cpu"))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    paced.stamp("build model")
    states = [value for state in optimizer.state_dict()["state"].values() for value in state.values()]
    tensors = [*model.state_dict().values(), *(value for value in states if torch.is_tensor(value))]
    size = float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
    with tempfile.TemporaryDirectory(dir=task["folder"]) as folder:
        while True:
            manager.save_checkpoint(folder, 1, model.state_dict(), optimizer.state_dict(), {})
            paced.boundary(lambda: {"bytes": size})


MEASUREMENTS = {"steps": steps, "loader": loader, "checkpoint": checkpoint}
