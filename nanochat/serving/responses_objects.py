"""The objects that the responses API answers with, in OpenAI's shapes; see `nanochat.serving.objects`."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from nanochat.serving.objects import ChosenToken, SpokenPart

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(TypedDict):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ChosenToken]


class OutputMessage(TypedDict):
    """`parts` has the tool's calls too, and goes back in with the message."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Status
    content: list[OutputText]
    parts: NotRequired[list[SpokenPart]]


class InputDetails(TypedDict):
    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(TypedDict):
    reasoning_tokens: int


class ResponseUsage(TypedDict):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Incomplete(TypedDict):
    reason: Literal["max_output_tokens"]


class Failure(TypedDict):
    code: Literal["server_error", "invalid_prompt"]
    message: str


class ResponseObject(TypedDict):
    """The answer; in a stream the first events have it without output, the last one whole."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    error: Failure | None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, Any]
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: bool
    previous_response_id: None
    store: Literal[False]
    background: Literal[False]
    temperature: float
    top_p: float
    top_logprobs: int
    text: dict[str, Any]
    tool_choice: Literal["none"]
    tools: list[Any]
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None
    system_fingerprint: str
    dropped_messages: NotRequired[int]  # with `truncation: auto`: so many of the oldest messages were left out
