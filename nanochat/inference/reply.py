"""A reply as it grows token by token: its parts of text, calls of the tool and outputs of the tool.

    reply = Reply(vocabulary, stop=("Question:",))
    pieces = reply.accept(token)       # what may be shown now; () while bytes or a stop text are incomplete
    reply.forced                       # tokens that have to come next: the tool's output
    reply.ended                        # a terminal token or a stop text was met

The kind of the part that it is in changes with the special tokens:

    text --python_start--> python --python_end--> text (and the tool's output is forced, if it has one)
    text --output_start--> python_output --output_end--> text
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

from nanochat.inference.tool import evaluate
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.stream import StreamDecoder

Kind = Literal["text", "python", "python_output"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of one part of a reply. A reply's parts have the shape of a message's content parts."""

    kind: Kind
    text: str


class Vocabulary:
    """The tokenizer's part in a reply: the bytes of ordinary tokens and the meaning of special ones."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        special = tokenizer.special
        self.tokenizer = tokenizer
        self.special = frozenset(special.values())
        self.terminal = (special["assistant_end"], special["bos"])
        self.opens: dict[int, Kind] = {
            special["python_start"]: "python",
            special["output_start"]: "python_output",
        }
        self.closes: dict[int, Kind] = {
            special["python_end"]: "python",
            special["output_end"]: "python_output",
        }

    def output(self, result: str) -> list[int]:
        special = self.tokenizer.special
        return [special["output_start"], *self.tokenizer.encode(result), special["output_end"]]


class Reply:
    """The state of one reply; see the module's docstring."""

    def __init__(self, vocabulary: Vocabulary, *, stop: tuple[str, ...] = ()) -> None:
        self.forced: deque[int] = deque()
        self.ended = False
        self._vocabulary = vocabulary
        self._stop = tuple(text for text in stop if text)
        self._kind: Kind = "text"
        self._decoder = StreamDecoder(vocabulary.tokenizer)
        self._held = ""  # text that may yet turn out to be the beginning of a stop text
        self._parts: list[tuple[Kind, list[str]]] = []

    @property
    def parts(self) -> tuple[Piece, ...]:
        return tuple(Piece(kind, "".join(texts)) for kind, texts in self._parts)

    @property
    def text(self) -> str:
        """The text alone, without the tool's calls and outputs."""
        return "".join("".join(texts) for kind, texts in self._parts if kind == "text")

    def kind_of(self, token: int) -> Kind | None:
        """Which kind of part the token would belong to as the next one; None for a special token."""
        return None if token in self._vocabulary.special else self._kind

    def accept(self, token: int, *, may_end: bool = True) -> tuple[Piece, ...]:
        """Take the next token. Before `may_end` stop texts are let through (terminal tokens always end)."""
        if token in self._vocabulary.terminal:
            self.ended = True
            return self.close()
        if token in self._vocabulary.special:
            return self._switch(token)
        new = self._decoder.push(token)
        if self._kind != "text":
            return self._emit(new)
        return self._emit(self._until_stop(new) if may_end else self._flush() + new)

    def close(self) -> tuple[Piece, ...]:
        """Release what was held back: the part or the reply is over."""
        rest = self._decoder.finish()
        return self._emit(self._flush() + rest)

    def _switch(self, token: int) -> tuple[Piece, ...]:
        pieces = self.close()
        opens, closes = self._vocabulary.opens.get(token), self._vocabulary.closes.get(token)
        if opens is not None:
            self._kind = opens
            self._parts.append((opens, []))
        elif closes is not None and closes == self._kind:
            if closes == "python":
                result = evaluate("".join(self._parts[-1][1]))
                if result is not None:
                    self.forced.extend(self._vocabulary.output(result))
            self._kind = "text"
        return pieces

    def _until_stop(self, new: str) -> str:
        if not self._stop:
            return new
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.ended, self._held = True, ""
            self._decoder.finish()  # half a character behind the stop text is not part of the reply
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _flush(self) -> str:
        held, self._held = self._held, ""
        return held

    def _emit(self, text: str) -> tuple[Piece, ...]:
        if not text:
            return ()
        if not self._parts or self._parts[-1][0] != self._kind:
            self._parts.append((self._kind, []))
        self._parts[-1][1].append(text)
        return (Piece(self._kind, text),)


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop` (shorter than `stop`)."""
    return next(size for size in range(min(len(stop) - 1, len(text)), -1, -1) if text.endswith(stop[:size]))
