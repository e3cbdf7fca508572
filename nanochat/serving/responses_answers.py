"""Answers of the responses API, whole or as a stream of its events.

talk = ResponsesResponder(model, exchange, body, prompt, settings)

An answer is one message with one text. Where the model used its tool, the message has its steps in `parts`; the events
in between tell the text alone.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from nanochat.inference import Event, Sampling
from nanochat.serving.answers import logprob, spoken_parts, sse
from nanochat.serving.chat_prompt import ChatPrompt
from nanochat.serving.errors import ApiError
from nanochat.serving.exchange import Exchange
from nanochat.serving.holder import Model
from nanochat.serving.objects import ChosenToken
from nanochat.serving.responder import streamed
from nanochat.serving.responses_objects import Failure, OutputMessage, OutputText, ResponseObject, ResponseUsage, Status
from nanochat.serving.responses_request import ResponsesRequest


class ResponsesResponder:
    """The answer to one request, whole or as a stream."""

    def __init__(
        self, model: Model, exchange: Exchange, body: ResponsesRequest, prompt: ChatPrompt, settings: Sampling
    ) -> None:
        self._exchange = exchange
        self._encoder = _Encoder(model, body, prompt, settings)

    async def collect(self) -> ResponseObject:
        """The whole answer."""
        async for _, event in self._exchange:
            self._encoder.take(event)
        return self._encoder.response

    def chunks(self) -> AsyncIterator[str]:
        """The stream, event by event."""
        return streamed(self._exchange, self._encoder, prompt=None)


class _Encoder:
    """The response as it grows, and the events that tell of it."""

    def __init__(self, model: Model, body: ResponsesRequest, prompt: ChatPrompt, settings: Sampling) -> None:
        self._tokenizer, self._logprobs, self._prompt = model.tokenizer, body.wants_logprobs, len(prompt.ids)
        self._text: OutputText = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._message: OutputMessage = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        self._sequence = 0
        self._tokens = 0
        self.response: ResponseObject = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": model.served.full_name,
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "background": False,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_logprobs": body.top_logprobs or 0,
            "text": {"format": body.text.format.told if body.text and body.text.format else {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "truncation": "auto" if body.truncation == "auto" else "disabled",
            "usage": None,
            "system_fingerprint": model.served.fingerprint,
        }
        if body.truncation == "auto":
            self.response["dropped_messages"] = prompt.dropped

    def take(self, event: Event) -> tuple[str, list[ChosenToken]]:
        """Note a token; the text that it makes whole, and its likelihood where that is asked for."""
        self._tokens += 1
        text = "".join(piece.text for piece in event.pieces if piece.kind == "text")
        likely = logprob(event, self._tokenizer) if self._logprobs else []
        self._text["text"] += text
        self._text["logprobs"] += likely
        if event.finish_reason is not None:
            self._finish(event)
        return text, likely

    def _finish(self, event: Event) -> None:
        cut = event.finish_reason == "length"
        status: Status = "incomplete" if cut else "completed"
        if parts := spoken_parts(event.request.completion):
            self._message["parts"] = parts
        self._message.update({"status": status, "content": [self._text]})
        self.response.update({"status": status, "output": [self._message], "completed_at": int(time.time())})
        self.response["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
        self.response["usage"] = self._usage(event.request.reused)

    def _usage(self, reused: int) -> ResponseUsage:
        return {
            "input_tokens": self._prompt,
            "input_tokens_details": {"cached_tokens": reused, "cache_write_tokens": 0},
            "output_tokens": self._tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._prompt + self._tokens,
        }

    # ----------------------------------------------------------------------------------------------------
    # The stream

    def begin(self) -> str:
        whole = {"response": self.response}
        return "".join(
            (
                self._event("response.created", whole),
                self._event("response.in_progress", whole),
                self._event("response.output_item.added", {"output_index": 0, "item": self._message}),
                self._event("response.content_part.added", {**self._place(), "part": self._text}),
            )
        )

    def add(self, index: int, event: Event) -> str:
        text, likely = self.take(event)
        if not text and not likely:
            return ""
        return self._event("response.output_text.delta", {**self._place(), "delta": text, "logprobs": likely})

    def end(self, *, prompt: int | None) -> str:
        text, status = self._text, "incomplete" if self.response["status"] == "incomplete" else "completed"
        said = {"text": text["text"], "logprobs": text["logprobs"]}
        return "".join(
            (
                self._event("response.output_text.done", self._place() | said),
                self._event("response.content_part.done", {**self._place(), "part": text}),
                self._event("response.output_item.done", {"output_index": 0, "item": self._message}),
                self._event(f"response.{status}", {"response": self.response}),
            )
        )

    def fail(self, error: ApiError) -> str:
        failure: Failure = {
            "code": "invalid_prompt" if error.status == 400 else "server_error",
            "message": error.body["error"]["message"],
        }
        self.response.update({"status": "failed", "error": failure})
        return self._event("response.failed", {"response": self.response})

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._message["id"], "output_index": 0, "content_index": 0}

    def _event(self, name: str, what: dict[str, Any]) -> str:
        self._sequence += 1
        return sse({"type": name, "sequence_number": self._sequence - 1, **what})
