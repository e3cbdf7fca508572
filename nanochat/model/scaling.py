"""Scaling rules: a batch that follows from the number of training tokens, rates and decay that follow from the batch.

They are those of karpathy/nanochat's ablations: the batch grows with the tokens to the power of 0.383 (arXiv
2505.13738), rates with the root of the batch, and decay so that weights forget over the same part of the training
(arXiv 2405.13698). All are relative to a model of depth 12 with a batch of 2^19 tokens. Imports no torch.

    rules = Scaling.of(tokens=4_570_000_000, reference=1_350_000_000, multiple=2048)
    rules.batch_tokens     # 1,048,576
    rules.rates            # 1.414
"""

from __future__ import annotations

import math
from dataclasses import dataclass

REFERENCE_DEPTH = 12
REFERENCE_BATCH = 1 << 19  # tokens
POWER = 0.383


@dataclass(frozen=True, slots=True)
class Scaling:
    """The tokens of one step, and what rates and decay are multiplied by."""

    batch_tokens: int
    rates: float = 1.0
    decay: float = 1.0

    @classmethod
    def of(cls, *, tokens: float | None = None, steps: int | None = None, reference: float, multiple: int) -> Scaling:
        """By the tokens of the whole training, or its steps, and the tokens of the reference model's.

        The batch is a power of two, or the multiple of `multiple` below it.
        """
        if steps is None:
            assert tokens is not None
            exact = REFERENCE_BATCH * (tokens / reference) ** POWER
        else:  # tokens = steps x batch, solved for the batch
            exact = (REFERENCE_BATCH * (steps / reference) ** POWER) ** (1 / (1 - POWER))
        batch = 1 << max(0, round(math.log2(exact)))
        batch = max(multiple, batch // multiple * multiple)
        seen = steps * batch if steps is not None else tokens
        assert seen is not None
        rates = math.sqrt(batch / REFERENCE_BATCH)
        return cls(batch, rates, rates * reference / seen)
