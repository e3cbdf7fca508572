"""The request of OpenAI's chat-completions API, as its clients really send it.

What the model can honour is honoured; what changes nothing is taken; what would change the answer and can't be
honoured is refused, with a sentence; what is not declared here is ignored (`nanochat.serving.bodies`). Every optional
field may be null. Each number and text has a bound. docs/serving.md has the fields in a table.

Extensions: `top_k`, `min_tokens`, vLLM's `continue_final_message`, and `truncation` as OpenAI's responses API has it;
see `nanochat.serving.messages` for those of messages.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, field_validator

from nanochat.serving.bodies import Items, Label
from nanochat.serving.forms import ResponseFormat
from nanochat.serving.messages import ChatMessage, check_end, check_length
from nanochat.serving.neutral import NULL, NoChoice, NoModeration, NoTools, Pairs, absent
from nanochat.serving.sampled import MAX_TOP_LOGPROBS, Count, SampledRequest

_Absent = Annotated[Any, absent("is not honoured: this model neither speaks nor searches; leave it out"), NULL]


def _truncation(value: str) -> str:
    if value not in TRUNCATIONS:
        raise ValueError(f"is {value[:64]!r} and must be 'auto' or 'disabled'")
    return value


TRUNCATIONS = ("auto", "disabled")
Truncation = Annotated[Label, AfterValidator(_truncation), Field(json_schema_extra={"enum": list(TRUNCATIONS)})]


class ChatRequest(SampledRequest):
    """The body of POST /v1/chat/completions."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"logprobs": {"const": True}}, "required": ["logprobs"]},
                {"properties": {"top_logprobs": {"enum": [None, 0]}}},
            ]
        }
    )

    continue_final_message: bool | None = None  # before the messages, which are judged by it
    messages: Annotated[Items[ChatMessage], Field(min_length=1)]
    truncation: Truncation | None = None
    max_completion_tokens: Annotated[Count, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None

    # Taken, and without effect
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_options: Pairs | None = None
    prompt_cache_retention: Label | None = None
    service_tier: Label | None = None
    reasoning_effort: Label | None = None
    verbosity: Label | None = None
    metadata: Pairs | None = None
    prediction: Any = None
    store: bool | None = None
    parallel_tool_calls: bool | None = None

    # Taken as long as they ask for nothing
    modalities: list[Label] | None = Field(default=None, json_schema_extra={"items": {"enum": ["text"]}})
    audio: _Absent = None
    tools: NoTools | None = None
    functions: NoTools | None = None
    tool_choice: NoChoice = None
    function_call: NoChoice = None
    web_search_options: _Absent = None
    moderation: NoModeration = None

    @field_validator("messages")
    @classmethod
    def _bounded_and_unanswered(cls, messages: list[ChatMessage], info: ValidationInfo) -> list[ChatMessage]:
        check_length(messages)
        check_end(messages, continued=bool(info.data.get("continue_final_message")))
        return messages

    @field_validator("modalities")
    @classmethod
    def _text_alone(cls, modalities: list[str] | None) -> list[str] | None:
        if any(modality != "text" for modality in modalities or ()):
            raise ValueError("ask for more than text, which is all that this model writes; leave them out")
        return modalities
