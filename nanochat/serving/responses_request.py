"""The request of OpenAI's responses API: what is said is turned into the chat API's request, and answered as that is.

    body.chat()     # ChatRequest

Nothing is stored here: a request has the whole conversation in `input`. Answers put back in keep the tool's steps in
`parts`, as those of the chat API do.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, Tag, field_validator, model_validator

from nanochat.serving.bodies import Body, Items, Label, Text, text_or_list
from nanochat.serving.forms import TextFormat
from nanochat.serving.messages import ChatMessage, Part, check_end, check_length, text_or_refusal
from nanochat.serving.neutral import EMPTY, NULL, NoChoice, NoModeration, NoTools, Pairs, absent
from nanochat.serving.protocol import ChatRequest, Truncation
from nanochat.serving.sampled import MAX_TOP_LOGPROBS, Count, ModelName, StreamOptions

LOGPROBS = "message.output_text.logprobs"  # of `include`
_TEXTS = ("input_text", "output_text", "text")
_Absent = Annotated[Any, absent("refers to what is stored, and nothing is stored here; send all in 'input'"), NULL]
_Compaction = Annotated[
    list[Any], absent("is not honoured: nothing is compacted here; leave it out, or set truncation to auto"), EMPTY
]


class InputPart(Part):
    """A part of a message; this API names texts by who said them."""

    model_config = ConfigDict(json_schema_extra=text_or_refusal(*_TEXTS))

    type: Annotated[Text, Field(json_schema_extra={"enum": [*_TEXTS, "refusal"]})]
    annotations: list[Any] | None = None  # without effect, as in answers
    logprobs: list[Any] | None = None

    @field_validator("type")
    @classmethod
    def _as_text(cls, kind: str) -> str:
        return "text" if kind in _TEXTS else kind


class InputItem(ChatMessage):
    """A message, as it is sent or as an answer had it."""

    model_config = ConfigDict(
        json_schema_extra={"properties": {"content": {"type": ["string", "array"]}}, "required": ["content"]}
    )

    content: Annotated[Annotated[Text, Tag("text")] | Annotated[Items[InputPart], Tag("list")], text_or_list] | None = (
        None
    )
    type: Annotated[Label, Field(json_schema_extra={"enum": ["message"]})] | None = None
    id: Label | None = None
    status: Label | None = None
    phase: Label | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_a_message(cls, item: Any) -> Any:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "item_reference":
            raise ValueError("refers to what is stored, and nothing is stored here; have the client set store to false")
        if kind not in (None, "message"):
            raise ValueError(f"is of the type {str(kind)[:64]!r}, and this model reads messages alone; leave it out")
        return item


class TextConfig(Body):
    format: TextFormat | None = None
    verbosity: Label | None = None


class ResponsesRequest(Body):
    """The body of POST /v1/responses."""

    input: Annotated[
        Annotated[Text, Tag("text")] | Annotated[Items[InputItem], Field(min_length=1), Tag("list")], text_or_list
    ]
    instructions: Annotated[Text | None, Field(description="Said before the input, as by the developer.")] = None
    model: ModelName | None = None
    stream: bool | None = None
    truncation: Truncation | None = None
    max_output_tokens: Annotated[Count, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[Count, Field(ge=-1)] | None = None
    seed: Annotated[int, Field(ge=-(2**64), le=2**64)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    include: Annotated[list[Label], Field(max_length=64)] | None = None
    text: TextConfig | None = None

    # Taken, and without effect
    metadata: Pairs | None = None
    store: bool | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Count | None = None
    reasoning: Pairs | None = None
    stream_options: StreamOptions | None = None
    service_tier: Label | None = None
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_options: Pairs | None = None
    prompt_cache_retention: Label | None = None
    image: Pairs | None = None
    access_programs: Pairs | None = None
    background_options: Pairs | None = None

    # Taken as long as they ask for nothing
    tools: NoTools | None = None
    tool_choice: NoChoice = None
    background: Annotated[bool, Field(json_schema_extra={"enum": [False]})] | None = None
    previous_response_id: _Absent = None
    conversation: _Absent = None
    prompt: _Absent = None
    moderation: NoModeration = None
    context_management: _Compaction | None = None

    @field_validator("background")
    @classmethod
    def _now(cls, background: bool | None) -> bool | None:
        if background:
            raise ValueError("is true, and what is answered in the background would be stored; leave it out")
        return background

    @field_validator("input")
    @classmethod
    def _can_be_answered(cls, said: Any) -> Any:
        if isinstance(said, list):
            check_length(said)
            check_end(said, continued=False)
        return said

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())

    def chat(self) -> ChatRequest:
        """The same request to the chat API."""
        said = self.input if isinstance(self.input, list) else [ChatMessage(role="user", content=self.input)]
        lead = [ChatMessage(role="developer", content=self.instructions)] if self.instructions else []
        return ChatRequest.model_construct(  # all of it was checked here
            messages=[*lead, *said],
            truncation=self.truncation,
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            logprobs=self.wants_logprobs,
            top_logprobs=self.top_logprobs,
        )
