"""Byte-level BPE: learns the mergeable ranks from text.

    ranks = learn_ranks(limited(texts, max_chars=2_000_000_000, document_chars=10_000), count=65_527)

rustbpe does the work: for 20 to 65 million characters of web text and vocabularies of 8,192 and 32,768 it takes 0.4 to
0.8 of the CPU time of the `tokenizers` package, and tiktoken encodes with its ranks as it does itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nanochat.spec.errors import UserError

# The GPT-4 pattern with up to two digits a token in place of three: smaller vocabularies have no room for 1,000.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
BYTES = 256  # the first ranks: every byte is a token, so that any text can be encoded


def limited(texts: Iterable[str], *, max_chars: int, document_chars: int) -> Iterator[str]:
    """The first `document_chars` characters of each text, until `max_chars` characters have been given."""
    left = max_chars
    for text in texts:
        if left <= 0:
            return
        part = text[: min(document_chars, left)]
        left -= len(part)
        yield part


def learn_ranks(texts: Iterable[str], *, count: int, reserved: int = 0) -> list[bytes]:
    """`count` byte strings in the order of their ranks: the 256 bytes, then the merges as they were learned.

    The same texts give the same ranks. `reserved` is the number of special tokens that the vocabulary holds besides,
    for the error where the text supports fewer merges than asked for (UserError).
    """
    if count < BYTES:
        raise UserError(f"a vocabulary of {count + reserved} is too small: it needs at least {BYTES + reserved}")
    import rustbpe  # only who trains one needs it: a server does not

    trainer = rustbpe.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue]  (a compiled module)
    trainer.train_from_iterator(iter(texts), count, pattern=PATTERN)
    learned = sorted(trainer.get_mergeable_ranks(), key=lambda item: item[1])
    if len(learned) < count:
        raise UserError(
            f"the text supports a vocabulary of at most {len(learned) + reserved} tokens and "
            f"{count + reserved} are asked for: lower stages.tokenizer.vocabSize, or give more text "
            "(sources.text.shards, stages.tokenizer.maxChars)"
        )
    ranks = [bytes(token) for token, _ in learned]
    if len(set(ranks)) != len(ranks):
        raise RuntimeError("the trainer made one token twice, so that the ranks cannot be exported")
    return ranks
