"""The engine alone with all requests in turn on its slots, for `nanochat bench serve --clients`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanochat.bench.clients import prompts
from nanochat.bench.pacing import Paced
from nanochat.inference import Engine, Sampling
from nanochat.serving.loading import load


def run(task: Mapping[str, Any], paced: Paced) -> None:
    """Answer all prompts of a round, round after round."""
    model, tokenizer, _ = load(Path(task["folder"]))
    engine, tokens = Engine(model, tokenizer, slots=task["slots"]), task["tokens"]
    settings = Sampling(max_tokens=tokens, min_tokens=tokens, repeatable=False)
    paced.stamp("load model")
    said = 0
    for asked in prompts(task["clients"]):
        paced.boundary(lambda said=said: {"tokens": said})
        said = sum(len(completion.ids) for completion in engine.generate(asked, settings))
