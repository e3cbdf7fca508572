"""The declaration of a pipeline: every setting a user has, once.

`load_pipeline(path, overrides)` reads a YAML file into a checked `Pipeline`; `resolve(spec)` fills what follows
from other settings (sizes, steps, shards). This package imports no torch.
"""
