"""The tokenizer stage: learns the vocabulary from text shards, and measures it beside GPT-2's and GPT-4's.

Where training starts from a model, that model's vocabulary is taken.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence

from nanochat.data.text import read_text
from nanochat.model.artifact import TOKENIZER
from nanochat.pipeline.resolve import shard_name
from nanochat.spec.errors import Stopped
from nanochat.stages.context import StageContext
from nanochat.storage.manifest import Manifest
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.compression import SAMPLES, compression_table

log = logging.getLogger(__name__)

SLICE_CHARS = 500_000  # characters of the training and of the validation text in the compression table


def run(context: StageContext) -> None:
    """Train, measure, commit; or take that of the model that training starts from."""
    if context.initial_model is not None:
        take(context, context.initial_model)
        return
    logging.getLogger("rustbpe").setLevel(logging.WARNING)  # it reports every percent
    settings, output = context.settings, context.outputs[0]
    shards = sorted(ref for ref in output.inputs if ref.kind == "text")
    started = time.monotonic()
    tokenizer = Tokenizer.train(
        _texts(context, shards, settings.max_chars, settings.document_chars),
        vocab_size=settings.vocab_size,
        max_chars=settings.max_chars,
        document_chars=settings.document_chars,
    )
    seconds = time.monotonic() - started
    context.progress.update(phase="measuring")
    texts = dict(SAMPLES) | {"train": _slice(context, shards[0])}
    validation = f"text/{shard_name(context.horizon.validation_shard)}"
    if context.has(validation):
        texts["validation"] = _slice(context, validation)
    encodings, missing = None, {}
    if context.has("encodings/gpt"):
        encodings, missing = context.fetch("encodings/gpt"), context.manifest("encodings/gpt").metadata["missing"]
    table = compression_table(tokenizer, texts, encodings=encodings, missing=missing)
    with context.writer(output) as writer:
        tokenizer.save(writer.folder)
        (writer.folder / "compression.json").write_text(json.dumps(table, indent=2) + "\n")
        context.commit(
            writer,
            output,
            {
                "vocabSize": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint, "shards": len(shards),
                "seconds": round(seconds, 3), "compression": table,
            },
        )  # fmt: skip
    log.info(
        "a vocabulary of %d tokens (%s) was learned in %.1f s", tokenizer.vocab_size, tokenizer.fingerprint, seconds
    )


def take(context: StageContext, model: Manifest) -> None:
    """Commit the tokenizer of a model."""
    tokenizer, output = Tokenizer.load(context.artifacts.fetch(model, [TOKENIZER])), context.outputs[0]
    with context.writer(output) as writer:
        tokenizer.save(writer.folder)
        context.commit(writer, output, {"vocabSize": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint})
    log.info("the vocabulary of %d tokens (%s) is that of %s", tokenizer.vocab_size, tokenizer.fingerprint, model.key)


def _texts(context: StageContext, shards: Sequence[str], max_chars: int, document_chars: int) -> Iterator[str]:
    """The documents of the shards, with progress in characters; the trainer of the vocabulary takes what it needs."""
    read = 0
    context.progress.update(phase="reading", step=0, total=max_chars)
    for ref in shards:
        for texts in read_text(context.fetch(ref) / "shard.parquet"):
            if context.stop:
                raise Stopped("stopped while reading text: the tokenizer begins again")
            yield from texts
            read += sum(min(len(text), document_chars) for text in texts)
            context.progress.update(step=min(read, max_chars))
        context.release(ref)
    context.progress.update(phase="merging")


def _slice(context: StageContext, ref: str) -> str:
    """The beginning of a shard's text."""
    parts: list[str] = []
    for texts in read_text(context.fetch(ref) / "shard.parquet"):
        parts += texts
        if sum(map(len, parts)) >= SLICE_CHARS:
            break
    return "\n".join(parts)[:SLICE_CHARS]
