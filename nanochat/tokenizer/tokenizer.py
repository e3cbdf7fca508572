"""The tokenizer: text to ids and back, saved as JSON, encoded by tiktoken.

    tokenizer = Tokenizer.train(texts, vocab_size=8192)
    tokenizer.save(folder); tokenizer = Tokenizer.load(folder)
    tokenizer.decode(tokenizer.encode("Hello world"))

Ids are the mergeable ranks and after them the nine special tokens. Text never becomes a special token,
whatever it says.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tiktoken

from nanochat.spec.errors import StorageError
from nanochat.tokenizer.training import PATTERN, learn_ranks, limited

SPECIAL = (
    "bos", "user_start", "user_end", "assistant_start", "assistant_end", "python_start", "python_end",
    "output_start", "output_end",
)  # fmt: skip
FILE = "tokenizer.json"
BYTE_LENGTHS = "byte_lengths.bin"

# tiktoken's regular expressions overflow their stack on a run of about a million spaces.
LONGEST_RUN = 65_536
# The look-behind tries each run once, at its beginning: tried at each of its characters, the search would be quadratic.
_LONG_RUN = re.compile(rf"(?<!\s)\s{{{LONGEST_RUN}}}")


class Tokenizer:
    """Byte-level BPE with nine special tokens."""

    def __init__(self, ranks: Sequence[bytes], *, pattern: str = PATTERN, special: Mapping[str, int] | None = None):
        """`ranks` are the tokens' bytes by id; `special` maps names to ids, by default the nine after the ranks."""
        self.pattern = pattern
        self.special = dict(special or {name: len(ranks) + i for i, name in enumerate(SPECIAL)})
        self._ranks = list(ranks)
        self._longest = max(map(len, ranks))  # bytes
        self._encoding = tiktoken.Encoding(
            "nanochat",
            pat_str=pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(ranks)},
            special_tokens={f"<|{name}|>": index for name, index in self.special.items()},
        )

    @classmethod
    def train(
        cls, texts: Iterable[str], *, vocab_size: int, max_chars: int = 2_000_000_000, document_chars: int = 10_000
    ) -> Tokenizer:
        """Learn a vocabulary of `vocab_size` tokens, specials included.

        Raises UserError where the text supports fewer.
        """
        parts = limited(texts, max_chars=max_chars, document_chars=document_chars)
        return cls(learn_ranks(parts, count=vocab_size - len(SPECIAL), reserved=len(SPECIAL)))

    # ------------------------------------------------------------------------------------------------------------
    # what is known of the vocabulary

    @property
    def vocab_size(self) -> int:
        """Number of ids, specials included."""
        return len(self._ranks) + len(self.special)

    @property
    def ranks(self) -> tuple[bytes, ...]:
        """The bytes of the tokens before the special ones, by id."""
        return tuple(self._ranks)

    @property
    def bos(self) -> int:
        """The id that begins every document."""
        return self.special["bos"]

    def byte_lengths(self) -> list[int]:
        """Bytes of each id; 0 for the special tokens. They come from the tokens' own bytes, never from text."""
        return [len(token) for token in self._ranks] + [0] * len(self.special)

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that name this vocabulary."""
        return hashlib.sha256(self._json().encode()).hexdigest()[:16]

    # ------------------------------------------------------------------------------------------------------------
    # text to ids and back

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special tokens."""
        if len(text) > LONGEST_RUN and _LONG_RUN.search(text):
            pieces = [text[i : i + LONGEST_RUN] for i in range(0, len(text), LONGEST_RUN)]
            return [index for piece in pieces for index in self._encoding.encode_ordinary(piece)]
        return self._encoding.encode_ordinary(text)

    def least_tokens(self, text: str) -> int:
        """The fewest tokens that a text of so many bytes can have; far cheaper than encoding it."""
        return -(-len(text.encode("utf-8", "surrogatepass")) // self._longest)

    def encode_batch(self, texts: Sequence[str], *, threads: int = 1) -> list[list[int]]:
        """The ids of many texts; the threads run side by side, outside of Python."""
        if threads == 1 or any(len(text) > LONGEST_RUN for text in texts):
            return [self.encode(text) for text in texts]
        return self._encoding.encode_ordinary_batch(list(texts), num_threads=threads)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of ids; special tokens are written as `<|name|>`."""
        return self._encoding.decode_bytes(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    # ------------------------------------------------------------------------------------------------------------
    # files

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and byte_lengths.bin (int32, little-endian)."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(self._json(), encoding="ascii")
        np.asarray(self.byte_lengths(), dtype="<i4").tofile(folder / BYTE_LENGTHS)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read what `save` wrote."""
        try:
            data = json.loads((folder / FILE).read_text(encoding="ascii"))
            ranks = [base64.b64decode(token, validate=True) for token in data["ranks"]]
            return cls(ranks, pattern=data["pattern"], special=data["special"])
        except FileNotFoundError:
            raise StorageError(f"there is no tokenizer in {folder}: {FILE} is missing") from None
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{folder / FILE} is damaged: {error}") from None

    def _json(self) -> str:
        data = {
            "version": 1,
            "pattern": self.pattern,
            "special": self.special,
            "ranks": [base64.b64encode(token).decode("ascii") for token in self._ranks],
        }
        return json.dumps(data, indent=0, sort_keys=True)
