"""Decoding a stream of ids: text is given as soon as its bytes are whole, never half a character.

stream = StreamDecoder(tokenizer)
for index in ids:
    print(stream.push(index), end="")
print(stream.finish())
"""

from __future__ import annotations

import codecs

from nanochat.tokenizer.tokenizer import Tokenizer


class StreamDecoder:
    """Joined, what it gives is what `Tokenizer.decode` gives of all the ids at once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, *ids: int) -> str:
        """The text that is whole after these ids; an incomplete character is held back."""
        return self._decoder.decode(self._tokenizer.decode_bytes(ids))

    def finish(self) -> str:
        """The bytes held back, as U+FFFD; empty where all characters were whole."""
        return self._decoder.decode(b"", final=True)
