"""The requests of OpenAI's chat-completions API, read strictly.

Extensions: `top_k` and `min_tokens` in requests; in messages of the assistant, content may be parts of the
kinds "python" and "python_output"; answers that used the tool carry such parts in `message.parts`, streams
one at a time in `delta.part`. `content` is the text alone.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

MAX_CHOICES = 16
MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Part(_Strict):
    type: Literal["text", "python", "python_output"]
    text: str


class ChatMessage(_Strict):
    role: Literal["system", "user", "assistant"]
    content: str | list[Part]

    def message(self) -> dict[str, Any]:
        """The message as conversations hold it; several parts of text become one string."""
        if isinstance(self.content, str):
            return {"role": self.role, "content": self.content}
        if all(part.type == "text" for part in self.content):
            return {"role": self.role, "content": "".join(part.text for part in self.content)}
        return {"role": self.role, "content": [part.model_dump() for part in self.content]}


class StreamOptions(_Strict):
    include_usage: bool = False


class ChatRequest(_Strict):
    """The body of POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    min_tokens: int = Field(default=0, ge=0)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    user: str | None = None  # accepted because clients send it; nothing is kept of it

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if isinstance(stop, list) and len(stop) > MAX_STOPS:
            raise ValueError(f"has {len(stop)} texts; at most {MAX_STOPS} are allowed")
        return stop

    @property
    def stops(self) -> tuple[str, ...]:
        texts = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in texts if text)
