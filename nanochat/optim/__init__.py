"""Muon for matrices, AdamW for embedding and head, sharded over any number of processes; schedules."""

from nanochat.optim.sharded import OptimSettings, ShardedOptimizer, build_optimizer

__all__ = ["OptimSettings", "ShardedOptimizer", "build_optimizer"]
