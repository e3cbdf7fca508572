"""The tokenizer as Hugging Face's `tokenizers` reads it, with the same ids; and a Tokenizer of such a file.

    values = to_huggingface(tokenizer)
    tokenizer = from_huggingface(values)         # UserError where its ids would be others

tiktoken joins the neighbours whose bytes together are the token of the lowest rank; `tokenizers` joins pairs that it is
told. One pair a token is enough: the last two pieces that its own bytes are joined to by lower ranks, for within the
bytes of a token no text is ever joined in another order.

Text never becomes a special token here either: these are no added tokens, which are looked for in every text, but words
of the vocabulary. MARK before a name, as the chat template writes it, makes the name a piece of its own, which is the
word. See `chat_template` for MARK and SEAM.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nanochat.exchange.chat_template import MARK, SEAM
from nanochat.parse import first_problem
from nanochat.spec.errors import UserError
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.tokenizer import SPECIAL
from nanochat.tokenizer.training import BYTES, PATTERN

LARGEST_VOCABULARY = 1 << 20
MOST_WORK = 1 << 25  # squared bytes of all tokens; a vocabulary of 65,536 has 2**22


def to_huggingface(tokenizer: Tokenizer) -> dict[str, Any]:
    """The contents of tokenizer.json."""
    vocabulary = {_written(token): rank for rank, token in enumerate(tokenizer.ranks)}
    pairs = _pairs(tokenizer.ranks)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _splits(tokenizer.pattern, tokenizer.special)},
        "post_processor": None,
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a piece that is a token is that token
            "vocab": vocabulary | {_name(name): index for name, index in tokenizer.special.items()},
            "merges": [[_written(left), _written(right)] for left, right in pairs.values()],
        },
    }


def tokenizer_config(tokenizer: Tokenizer, *, sequence_length: int) -> dict[str, Any]:
    """The contents of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _name("bos"),
        "eos_token": _name("assistant_end"),
        "pad_token": _name("bos"),
        "extra_special_tokens": [_name(name) for name in tokenizer.special],
        "split_special_tokens": True,  # transformers adds them, and is not to look for them in text
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": sequence_length,
    }


# ---- bytes and pieces -----------------------------------------------------------------------------------------------


def _alphabet() -> list[str]:
    """The character by which each byte is written: its own where that is printable, else the next from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(BYTES, 2 * BYTES))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(BYTES)]


_CHARACTERS = _alphabet()
_BYTES = {character: byte for byte, character in enumerate(_CHARACTERS)}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def _written(token: bytes) -> str:
    return "".join(_CHARACTERS[byte] for byte in token)


def _name(special: str) -> str:
    return f"<|{special}|>"


def _split(pattern: str, behavior: str = "Isolated") -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


def _splits(pattern: str, special: Iterable[str]) -> list[dict[str, Any]]:
    """Seams are cut out and marked names set apart, the rest is split by the pattern and written by bytes, and at last
    the marks are taken from the names."""
    names = rf"<\|(?:{'|'.join(sorted(special))})\|>"
    return [
        _split(re.escape(SEAM), "Removed"),
        _split(MARK + names),
        _split(rf"\A{MARK}{names}\z|{pattern}"),
        _BYTE_LEVEL,
        _split(rf"\A{_written(MARK.encode())}(?={names}\z)", "Removed"),
    ]


def _pairs(tokens: Sequence[bytes]) -> dict[bytes, tuple[bytes, bytes]]:
    """The pair of tokens that each is joined of, by rank; a token that no text is joined to has none."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    found = {}
    for token, rank in ranks.items():
        pieces = [token[i : i + 1] for i in range(len(token))]
        while len(pieces) > 2:
            joined = [ranks.get(left + right, rank) for left, right in pairwise(pieces)]
            lowest = min(joined)
            if lowest >= rank:
                break
            at = joined.index(lowest)
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        if len(pieces) == 2:
            found[token] = (pieces[0], pieces[1])
    return found


# ---- back -----------------------------------------------------------------------------------------------------------

_Written = Annotated[str, Field(min_length=1, max_length=4096)]
_Pair = Annotated[list[_Written], Field(min_length=2, max_length=2)]  # older versions wrote it as one text


class _Bpe(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["BPE"]
    vocab: dict[_Written, int] = Field(max_length=LARGEST_VOCABULARY)
    merges: list[_Pair | _Written] = Field(max_length=16 * LARGEST_VOCABULARY)
    ignore_merges: bool = False
    dropout: None = None
    continuing_subword_prefix: Literal["", None] = None
    end_of_word_suffix: Literal["", None] = None


class _Added(BaseModel):
    model_config = ConfigDict(strict=True)

    id: int
    content: str


class _Sequence(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["Sequence"]
    pretokenizers: list[dict[str, Any]] = Field(max_length=16)


class _TokenizerFile(BaseModel):
    model_config = ConfigDict(strict=True)

    model: _Bpe
    added_tokens: list[_Added] = Field([], max_length=64)
    normalizer: None = None
    pre_tokenizer: _Sequence


def from_huggingface(values: Any) -> Tokenizer:
    """The Tokenizer with the same ids; `values` are what tokenizer.json holds."""
    try:
        file = _TokenizerFile.model_validate(values)
    except ValidationError as error:
        raise UserError(f"it is no byte-level BPE of this project's kind: {first_problem(error)}") from None
    vocabulary = file.model.vocab | {token.content: token.id for token in file.added_tokens}
    special = _special(vocabulary)
    tokens = _tokens(vocabulary, len(vocabulary) - len(special))
    _check_splits(file.pre_tokenizer.pretokenizers, special)
    _check_merges(file.model, tokens)
    return Tokenizer(tokens, special=special)


def _special(vocabulary: Mapping[str, int]) -> dict[str, int]:
    missing = [_name(name) for name in SPECIAL if _name(name) not in vocabulary]
    if missing:
        raise UserError(f"it has no {missing[0]}, with which conversations are written")
    special = {name: vocabulary[_name(name)] for name in SPECIAL}
    if sorted(special.values()) != list(range(len(vocabulary) - len(special), len(vocabulary))):
        raise UserError("the special tokens are not the last ids of the vocabulary, as they are in this project")
    return special


def _tokens(vocabulary: Mapping[str, int], count: int) -> list[bytes]:
    """The bytes of the ids 0..count-1."""
    by_id = {index: text for text, index in vocabulary.items() if index < count}
    tokens = []
    for index in range(count):
        text = by_id.get(index)
        if text is None:
            raise UserError(f"it has no token of the id {index:,}, or two tokens share an id")
        if not all(character in _BYTES for character in text):
            raise UserError(f"token {index:,} is {text[:40]!a}, which is not written byte by byte")
        tokens.append(bytes(_BYTES[character] for character in text))
    if missing := BYTES - len({token for token in tokens if len(token) == 1}):
        raise UserError(f"{missing} bytes are no tokens, so that some text could not be encoded")
    if sum(len(token) ** 2 for token in tokens) > MOST_WORK:
        raise UserError("its tokens are longer than those of any vocabulary that was learned from text")
    return tokens


def _check_splits(found: Sequence[Mapping[str, Any]], special: Iterable[str]) -> None:
    """UserError unless text is split by the pattern of this project, as the export writes it or without marks."""
    # Which offsets are told is all that may differ.
    steps = [{**step, "trim_offsets": True} if "trim_offsets" in step else step for step in found]
    if steps not in (_splits(PATTERN, special), [_split(PATTERN), _BYTE_LEVEL]):
        raise UserError("it splits text into words in another way than this project's tokenizers")


def _check_merges(model: _Bpe, tokens: Sequence[bytes]) -> None:
    """UserError unless the pairs join text as the ranks do: all that matter are there, in the order of the ranks."""
    ranks = {_written(token): rank for rank, token in enumerate(tokens)}
    given: set[tuple[str, str]] = set()
    before = -1
    for merge in model.merges:
        left, _, right = merge.partition(" ") if isinstance(merge, str) else (merge[0], " ", merge[1])
        rank = ranks.get(left + right)
        if rank is None or rank < before or left not in ranks or right not in ranks:
            raise UserError(f"its merge {f'{left} {right}'[:40]!a} does not follow the order of the ids")
        before = rank
        given.add((left, right))
    pairs = _pairs(tokens)
    if any((_written(left), _written(right)) not in given for left, right in pairs.values()):
        raise UserError("its merges leave out some that the ids stand for")
    if not model.ignore_merges and len(pairs) < sum(len(token) > 1 for token in tokens):
        raise UserError("it has tokens that no merge makes, and does not say ignore_merges")
