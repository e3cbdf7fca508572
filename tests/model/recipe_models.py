"""Fields of ModelConfig by recipe, and for each of the modern recipe's features alone."""

from __future__ import annotations

from typing import Any

MODERN: dict[str, Any] = {
    "value_embeddings": True,
    "residual_scalars": True,
    "window_pattern": "SL",
    "smear": True,
    "backout": True,
}
RECIPES: dict[str, dict[str, Any]] = {"classic": {}, "modern": MODERN} | {
    name: {name: value} for name, value in MODERN.items()
}
