"""A request on its way through the engine, what each step tells of it, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nanochat.inference.grammar import Form
from nanochat.inference.reply import Kind, Piece, Reply
from nanochat.inference.sampling import Sampling, TokenLogprob

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished reply. `ids` hold every token, with a sampled assistant_end; `text` only what it says."""

    ids: list[int]
    mask: list[int]  # 1 sampled, 0 forced by the tool
    text: str
    parts: tuple[Piece, ...]  # text, calls of the tool and its outputs, in order
    finish_reason: FinishReason
    logprobs: list[TokenLogprob | None] | None  # one a token (None for a forced one), if they were asked for


@dataclass(eq=False, slots=True)
class Request:
    """A submitted prompt. The engine fills it in; `finish_reason` is set when it is done."""

    prompt: tuple[int, ...]
    sampling: Sampling
    reply: Reply
    form: Form | None = None  # what it is held to
    reused: int = 0  # tokens of the prompt whose keys and values were there already
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)  # one a token, if asked for; first None
    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob | None] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def completion(self) -> Completion:
        if self.finish_reason is None:
            raise ValueError("the request is not finished")
        return Completion(
            ids=self.ids,
            mask=self.mask,
            text=self.reply.text,
            parts=self.reply.parts,
            finish_reason=self.finish_reason,
            logprobs=None if self.sampling.logprobs is None else self.logprobs,
        )


@dataclass(frozen=True, slots=True)
class Event:
    """One token of one request, and what of it may be shown now."""

    request: Request
    token: int
    kind: Kind | None  # of the part that it belongs to; None for a special token
    forced: bool
    pieces: tuple[Piece, ...]
    logprob: TokenLogprob | None
    finish_reason: FinishReason | None
