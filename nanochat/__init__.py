"""nanochat: a whole ChatGPT from one declared pipeline."""

__version__ = "0.3.0"  # as in pyproject.toml: images hold the code without the package's metadata
