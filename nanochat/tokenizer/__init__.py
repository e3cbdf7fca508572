"""The tokenizer: training (BPE), encoding (tiktoken), chat rendering and loss masks."""

from nanochat.tokenizer.tokenizer import SPECIAL, Tokenizer

__all__ = ["SPECIAL", "Tokenizer"]
