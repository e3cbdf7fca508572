"""Muon for matrices, AdamW for embedding and head, sharded over any number of processes; schedules."""

from nanochat.optim.sharded import LAST, OptimSettings, ShardedOptimizer, build_optimizer
from nanochat.optim.state_files import StateFiles

__all__ = ["LAST", "OptimSettings", "ShardedOptimizer", "StateFiles", "build_optimizer"]
