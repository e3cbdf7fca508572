"""The `nanochat` command: argument handling and printing, nothing else."""
