"""`nanochat export` and `nanochat import`: models for other runtimes, and theirs for this one."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Annotated

from nanochat.cli import models
from nanochat.cli.options import Model, Stage, Store, argument, option
from nanochat.model.artifact import IMPORTED, KIND
from nanochat.pipeline.graph import make_key
from nanochat.pipeline.profiles import resolve_profile
from nanochat.pipeline.resolve import shape_settings
from nanochat.spec.bounds import one_of, path
from nanochat.spec.errors import UserError, require_torch
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.opening import open_store

NO_GGUF = (
    "llama.cpp's converter does not know NanoChatForCausalLM, so that no GGUF file can be made of this model: export "
    "with --format hf, which transformers, vLLM and SGLang load"
)


def export(
    model: Model,
    folder: Annotated[Path, argument(path, help="Folder to write, new or empty.")],
    format: Annotated[
        str, option(one_of(("hf", "gguf")), help="hf: what transformers loads; gguf: refused, for nothing reads it.")
    ] = "hf",
    stage: Stage = None,
    store: Store = "default",
) -> None:
    """Write a model as a folder that transformers loads as NanoChatForCausalLM."""
    if format == "gguf":
        raise UserError(NO_GGUF)
    require_torch()
    from nanochat.exchange.export import export as write

    write(models.find_model(model, stage=stage, store=store), folder)
    print(f"The model is in {folder}: transformers loads it with AutoModelForCausalLM and AutoTokenizer.")


def import_(
    folder: Annotated[Path, argument(path, help="Folder that transformers loads as NanoChatForCausalLM.")],
    store: Store = "default",
) -> None:
    """Take such a folder into the store as a model, with its tokenizer. The same folder is taken once."""
    require_torch()
    from nanochat.exchange.read import read

    foreign = read(folder)
    resolved = resolve_profile(store)
    artifacts = Artifacts(open_store(resolved.profile), resolved.cache)
    recipe = {"stage": IMPORTED, "files": foreign.digests}
    key = make_key(KIND, recipe, {})
    manifest = artifacts.find(KIND, key, mend=True)
    if manifest is None:
        weights = foreign.weights()  # before anything is written
        with artifacts.writer(KIND, key, f"import-{uuid.uuid4().hex[:8]}") as writer:
            foreign.write(writer.folder, weights)
            manifest = writer.commit(recipe=recipe | {"name": IMPORTED}, inputs={})
    print(f"The model is in {artifacts.uri(manifest)}: chat, serve, eval and export take this address.")
    print(f"A pipeline starts from it with stages.mid.initialModel={key} and these settings:")
    print(f"  {' '.join(f'{name}={value}' for name, value in shape_settings(foreign.config).items())}")
