"""Answers in OpenAI's shape: one JSON object, or a stream of chunks as server-sent events.

Streams begin with a delta that names the role, hold back nothing that may be shown, and end with [DONE].
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

from nanochat.inference import Completion, Event, Piece
from nanochat.serving.errors import ApiError
from nanochat.serving.objects import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChosenToken,
    ChunkChoice,
    Delta,
    FinishReason,
    Head,
    Logprobs,
    SpokenPart,
    TokenLikelihood,
    Usage,
)
from nanochat.tokenizer import Tokenizer

DONE = "data: [DONE]\n\n"
_to_json = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make an encoder for each token


def head(model: str, fingerprint: str, *, kind: str) -> Head:
    """The fields common to an answer and all chunks of a stream; `kind` begins the id."""
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": fingerprint,
    }


def usage(prompt: int, completion: int) -> Usage:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


# Of a token that can't be chosen: JSON has no number for its infinity, and OpenAI's API says this.
LEAST_LOGPROB = -9999.0


def finite(logprob: float) -> float:
    """The log-probability as JSON can write it."""
    return logprob if logprob > LEAST_LOGPROB else LEAST_LOGPROB


def logprob(event: Event, tokenizer: Tokenizer) -> list[ChosenToken]:
    """The entry of `logprobs.content` for a sampled token of the text; [] for any other."""
    if event.logprob is None or event.kind != "text":
        return []

    def entry(token: int, value: float) -> TokenLikelihood:
        raw = tokenizer.decode_bytes([token])
        return {"token": raw.decode("utf-8", errors="replace"), "logprob": finite(value), "bytes": list(raw)}

    chosen = entry(event.logprob.token, event.logprob.logprob)
    return [{**chosen, "top_logprobs": [entry(token, value) for token, value in event.logprob.top]}]


def answer(
    head: Head, completions: list[Completion], *, prompt: int, logprobs: list[list[ChosenToken]] | None
) -> ChatCompletion:
    """The whole answer to a request that does not stream."""
    return {
        **head,
        "object": "chat.completion",
        "choices": [
            {
                "index": index,
                "message": _message(completion),
                "logprobs": None if logprobs is None else {"content": logprobs[index], "refusal": None},
                "finish_reason": completion.finish_reason,
            }
            for index, completion in enumerate(completions)
        ],
        "usage": usage(prompt, sum(len(completion.ids) for completion in completions)),
    }


def _message(completion: Completion) -> AnswerMessage:
    message: AnswerMessage = {"role": "assistant", "content": completion.text, "refusal": None}
    if parts := spoken_parts(completion):
        message["parts"] = parts
    return message


def spoken_parts(completion: Completion) -> list[SpokenPart]:
    """The parts of an answer that used the tool; of any other none, for its text says all."""
    used = any(piece.kind != "text" for piece in completion.parts)
    return [_part(piece) for piece in completion.parts] if used else []


def _part(piece: Piece) -> SpokenPart:
    return {"type": piece.kind, "text": piece.text}


class StreamEncoder:
    """The chunks of one stream, event by event."""

    def __init__(self, head: Head, tokenizer: Tokenizer, *, choices: int, logprobs: bool) -> None:
        self._head = head
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._choices = choices
        self._held: list[list[ChosenToken]] = [[] for _ in range(choices)]  # log-probabilities not yet sent
        self._tokens = 0

    def begin(self) -> str:
        return "".join(self._chunk(index, {"role": "assistant", "content": ""}) for index in range(self._choices))

    def add(self, index: int, event: Event) -> str:
        self._tokens += 1
        if self._logprobs:
            self._held[index] += logprob(event, self._tokenizer)
        chunks = [self._chunk(index, _delta(piece)) for piece in event.pieces]
        if event.finish_reason is not None:
            chunks.append(self._chunk(index, {}, finish_reason=event.finish_reason))
        return "".join(chunks)

    def end(self, *, prompt: int | None) -> str:
        """The usage, if `prompt` tokens are given, and the end mark."""
        last = "" if prompt is None else _chunk(self._head, [], usage(prompt, self._tokens))
        return last + DONE

    def fail(self, error: ApiError) -> str:
        return sse(error.body) + DONE

    def _chunk(self, index: int, delta: Delta, *, finish_reason: FinishReason | None = None) -> str:
        logprobs: Logprobs | None = None
        if self._held[index] and (delta.get("content") or finish_reason):
            logprobs = {"content": self._held[index], "refusal": None}
            self._held[index] = []
        choice: ChunkChoice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return _chunk(self._head, [choice])


def _chunk(head: Head, choices: list[ChunkChoice], used: Usage | None = None) -> str:
    chunk: ChatCompletionChunk = {**head, "object": "chat.completion.chunk", "choices": choices}
    if used is not None:
        chunk["usage"] = used
    return sse(chunk)


def _delta(piece: Piece) -> Delta:
    return {"content": piece.text} if piece.kind == "text" else {"part": _part(piece)}


def sse(data: Mapping[str, Any]) -> str:
    """A server-sent event; one with a `type` is named by it."""
    name = f"event: {data['type']}\n" if "type" in data else ""
    return f"{name}data: {_to_json(data)}\n\n"
