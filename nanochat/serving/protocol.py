"""The request of OpenAI's chat-completions API, as its clients really send it.

What the model can honour is honoured; what changes nothing is taken; what would change the answer and can't be
honoured is refused, with a sentence; what is not declared here is ignored (`nanochat.serving.bodies`). Every optional
field may be null. Each number and text has a bound. docs/serving.md has the fields in a table.

Extensions: `top_k` and `min_tokens`; see `nanochat.serving.messages` for those of messages.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, Tag, field_validator

from nanochat.serving.bodies import MAX_TEXT, Body, Items, Label, Text, text_or_list
from nanochat.serving.messages import ChatMessage

MAX_CHOICES = 16
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 1024
MAX_METADATA = 64

ANY_MODEL = "nanochat"
MODEL = "Any server's model, by this name; the name and the version that it was released under are taken too."

Count = Annotated[int, Field(lt=2**63)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Stop = Annotated[str, Field(max_length=MAX_STOP_CHARACTERS)]
Stops = Annotated[
    Annotated[Stop, Tag("text")] | Annotated[list[Stop], Field(max_length=MAX_STOPS), Tag("list")], text_or_list
]
_Nothing: dict[str, Any] = {"maxItems": 0}
_Null: dict[str, Any] = {"type": "null"}


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # changes nothing


class ResponseFormat(Body):
    type: Annotated[Text, Field(json_schema_extra={"enum": ["text"]})] = "text"

    @field_validator("type")
    @classmethod
    def _text_alone(cls, kind: str) -> str:
        if kind != "text":
            raise ValueError(f"is {kind[:64]!r}, and this model can't be held to a form; ask for it in a message")
        return kind


class ChatRequest(Body):
    """The body of POST /v1/chat/completions."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"logprobs": {"const": True}}, "required": ["logprobs"]},
                {"properties": {"top_logprobs": {"enum": [None, 0]}}},
            ]
        }
    )

    messages: Annotated[Items[ChatMessage], Field(min_length=1)]
    model: Annotated[Label, Field(description=MODEL, json_schema_extra={"enum": [ANY_MODEL]})] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**64), le=2**64)] | None = None

    # How long an answer may be
    max_tokens: Annotated[Count, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[Count, Field(ge=1)] | None = None
    min_tokens: Annotated[Count, Field(ge=0)] | None = None
    stop: Stops | None = Field(default=None, description="Texts that end an answer, and are not part of it.")

    # Which tokens are chosen
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[Count, Field(ge=-1, description="So many of the likeliest tokens; 0 and -1: all.")] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[int, Field(ge=0, lt=2**31)], Annotated[float, Field(ge=-100, le=100)]],
            Field(max_length=MAX_BIASES, json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,9}$"}}),
        ]
        | None
    ) = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    # Taken, and without effect
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Label | None = None
    service_tier: Label | None = None
    reasoning_effort: Label | None = None
    verbosity: Label | None = None
    metadata: Annotated[dict[Label, Any], Field(max_length=MAX_METADATA)] | None = None
    prediction: Any = None
    store: bool | None = None
    parallel_tool_calls: bool | None = None

    # Taken as long as they ask for nothing
    response_format: ResponseFormat | None = None
    modalities: list[Label] | None = Field(default=None, json_schema_extra={"items": {"enum": ["text"]}})
    audio: Any = Field(default=None, json_schema_extra=_Null)
    tools: list[Any] | None = Field(default=None, json_schema_extra=_Nothing)
    functions: list[Any] | None = Field(default=None, json_schema_extra=_Nothing)
    tool_choice: Any = Field(default=None, json_schema_extra={"enum": [None, "none", "auto"]})
    function_call: Any = Field(default=None, json_schema_extra={"enum": [None, "none", "auto"]})
    web_search_options: Any = Field(default=None, json_schema_extra=_Null)

    @field_validator("messages")
    @classmethod
    def _bounded_and_unanswered(cls, messages: list[ChatMessage]) -> list[ChatMessage]:
        if sum(len(text) for message in messages for _, text in message.said()) > MAX_TEXT:
            raise ValueError(f"have more than {MAX_TEXT:,} characters; shorten the conversation")
        if messages[-1].role == "assistant":
            raise ValueError("end with an answer of the assistant; end them with what it is to answer")
        return messages

    @field_validator("tools", "functions")
    @classmethod
    def _no_tools(cls, tools: list[Any] | None) -> list[Any] | None:
        if tools:
            raise ValueError("are not honoured: this model calls no tools of yours; leave them out")
        return tools

    @field_validator("tool_choice", "function_call")
    @classmethod
    def _no_choice(cls, choice: Any) -> Any:
        if choice not in (None, "none", "auto"):
            raise ValueError("asks for a call of a tool, and this model calls no tools of yours; leave it out")
        return choice

    @field_validator("modalities")
    @classmethod
    def _text_alone(cls, modalities: list[str] | None) -> list[str] | None:
        if any(modality != "text" for modality in modalities or ()):
            raise ValueError("ask for more than text, which is all that this model writes; leave them out")
        return modalities

    @field_validator("audio", "web_search_options")
    @classmethod
    def _not_here(cls, value: Any) -> Any:
        if value is not None:
            raise ValueError("is not honoured: this model neither speaks nor searches; leave it out")
        return value

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        texts = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in texts if text)
