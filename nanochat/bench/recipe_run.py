"""One run of the ablation, as a process: `python -m nanochat.bench.recipe_run`, with its task on standard input.

`train` trains for a CPU time and leaves result.json, and the weights where they will be scored; `score` measures them
on the last shard and leaves score.json. The learning rate falls by the part of the time that has passed, so that all
variants end as they should, whatever a step costs them. Compiling and the first steps, from which the rest is foretold,
are not counted.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nanochat.data.loader import Shard
from nanochat.data.tokenfile import TokenFile
from nanochat.evaluation.bpb import bits_per_byte, text_batches
from nanochat.model.export import load_model, save_model
from nanochat.model.scaling import Scaling
from nanochat.model.sizes import flops_per_token, parameters
from nanochat.model.transformer import Transformer
from nanochat.optim import ShardedOptimizer, build_optimizer
from nanochat.pipeline.resolve import model_config, scaling
from nanochat.runtime.device import choose_device
from nanochat.runtime.distributed import ALONE
from nanochat.runtime.threads import keep_pages
from nanochat.spec.pipeline import PipelineSpec
from nanochat.stages.base import LOADERS, rates
from nanochat.stages.session import optim_settings
from nanochat.tokenizer import Tokenizer
from nanochat.training.attention import choose_attention
from nanochat.training.forward import Forward
from nanochat.training.objective import Supervised, micro_loss

WARM_STEPS = 3  # of which the last is timed


class Run:
    """A model, its data and its optimizer; nothing is trained yet."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        self.task = task
        self.folder, self.tokens = Path(task["folder"]), Path(task["tokens"])
        self.spec = PipelineSpec.model_validate(task["spec"])
        self.settings = self.spec.stages.base
        self.device = choose_device(self.settings.precision)

    def train(self) -> dict[str, Any]:
        """Train for the task's CPU time, and measure on the shard that chooses."""
        config, budget, seed = model_config(self.spec), float(self.task["seconds"]), self.task["seed"]
        with torch.device(self.device.device):
            self.model = Transformer(config)
        self.model.compute_dtype = self.device.compute_dtype
        compiled = self.settings.compile == "always"
        choose_attention(self.device, config).use_in(self.model)
        self.forward = Forward(self.model, compiled=compiled)
        optimizer = build_optimizer(self.model, optim_settings(self.settings))
        self.model.init_weights(seed)
        rules = scaling(self.spec)
        if self.settings.scaling_rules:  # which need the number of tokens that the time will do for
            rows = self.settings.device_batch_size
            per_second = rows * config.sequence_length / self.time_step(self.objective(rows), optimizer)
            rules = self.rules(per_second * budget)
        objective = self.objective(rules.batch_tokens // config.sequence_length)
        each = self.time_step(objective, optimizer)

        self.model.init_weights(seed)
        optimizer.reset()
        steps, used, began = 0, 0.0, time.process_time()
        while used < budget:
            total = max(steps + 1, round(steps * budget / used if steps else budget / each))
            self.step(steps, total, objective, optimizer, rules)
            steps, used = steps + 1, time.process_time() - began
        tokens = steps * rules.batch_tokens
        if self.task["save"]:
            save_model(self.folder, self.model, {})
        return {
            "steps": steps,
            "tokens": tokens,
            "cpuSeconds": used,
            "batchTokens": rules.batch_tokens,
            "parameters": parameters(config),
            "flops": flops_per_token(config) * tokens,
            "choosing": self.measure(self.model, self.task["shards"][-2]),
        }

    def score(self) -> dict[str, Any]:
        """Measure the weights of the training on the last shard."""
        model, _ = load_model(self.folder, device=self.device.device, compute_dtype=self.device.compute_dtype)
        return {"bitsPerByte": self.measure(model, self.task["shards"][-1])}

    def rules(self, tokens: float) -> Scaling:
        """Batch, rates and decay for so many tokens."""
        flops = tokens * flops_per_token(model_config(self.spec))
        base = self.settings.model_copy(update={"target_flops": flops, "steps": None})
        stages = self.spec.stages.model_copy(update={"base": base})
        return scaling(self.spec.model_copy(update={"stages": stages}))

    def objective(self, rows: int) -> Supervised:
        """Batches of the shards that train."""
        files = [Shard.local(self.tokens / name) for name in self.task["shards"][:-2]]
        length = self.spec.model.sequence_length
        loader = LOADERS[self.settings.packing](files, rows=rows, length=length, seed=self.spec.seed)
        return Supervised(loader, ALONE, self.settings.device_batch_size)

    def time_step(self, objective: Supervised, optimizer: ShardedOptimizer) -> float:
        """CPU seconds of a step, after those that compile."""
        began = 0.0
        for step in range(WARM_STEPS):
            began = time.process_time()
            self.step(step, WARM_STEPS, objective, optimizer, Scaling(0))
        return time.process_time() - began

    def step(self, step: int, total: int, objective: Supervised, optimizer: ShardedOptimizer, rules: Scaling) -> None:
        """One step of `total`, as the trainer makes it."""
        local = objective.local_batch(step)
        for batch in local.batches:
            (micro_loss(self.forward, batch.to(self.device.device)) / local.weight).backward()
        now = rates(self.settings, rules, step, total)
        optimizer.step(now.lr_scale, now.momentum, self.settings.grad_clip, now.decay_scale)
        optimizer.zero_grad()

    def measure(self, model: Transformer, shard: str) -> float:
        """Bits per byte on the beginning of a shard."""
        batches = text_batches(
            TokenFile(self.tokens / shard),
            length=self.spec.model.sequence_length,
            tokens=self.settings.eval_tokens,
            batch_size=self.settings.device_batch_size,
            world=ALONE,
        )
        lengths = Tokenizer.load(self.tokens / "bpe").byte_lengths()
        return bits_per_byte(model.eval(), batches, byte_lengths=lengths, world=ALONE).value


def main() -> None:
    """Do the task, and leave what came of it in one piece."""
    keep_pages()
    task = json.load(sys.stdin)
    torch.set_num_threads(task["threads"])
    run = Run(task)
    run.folder.mkdir(parents=True, exist_ok=True)
    name = {"train": "result.json", "score": "score.json"}[task["do"]]
    found = run.train() if task["do"] == "train" else run.score()
    part = run.folder / f"{name}.part"
    part.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(part, run.folder / name)


if __name__ == "__main__":
    main()
