"""Messages of OpenAI's chat API, and the conversation that they make: user and assistant in turns.

    conversation(body.messages)     # [{"role", "content"}, ...], as `nanochat.tokenizer.chat` renders it

The model knows two sides. Messages of the system and the developer stand on the user's, where they are; neighbours on
one side are one message, with a blank line between them; where the assistant begins, the user says nothing before it.

An extension: what the assistant said with the tool is a list of parts of the kinds "text", "python" (a call) and
"python_output". Answers have it in `parts` beside the `content`, which is the text alone. Put back in, `parts` counts;
`content` may be such a list as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Annotated, Any

from pydantic import ConfigDict, Field, Tag, field_validator, model_validator
from pydantic.config import JsonDict

from nanochat.serving.bodies import MAX_TEXT, Body, Items, Label, Text, text_or_list
from nanochat.serving.neutral import Pairs

ROLES = ("system", "developer", "user", "assistant")
TOOL_ROLES = ("tool", "function")
KINDS = ("text", "refusal", "python", "python_output")
_OTHER_KINDS = {
    "image_url": "an image",
    "input_image": "an image",
    "input_audio": "sound",
    "file": "a file",
    "input_file": "a file",
}
_BETWEEN = "\n\n"  # messages that are one


# What the validators of parts and of messages say, for /openapi.json.
def text_or_refusal(*kinds: str) -> JsonDict:
    """A part's text, for these kinds, or its refusal."""
    text: JsonDict = {
        "properties": {"type": {"enum": list(kinds)}, "text": {"type": "string"}},
        "required": ["text"],
    }
    refusal: JsonDict = {
        "properties": {"type": {"const": "refusal"}, "refusal": {"type": "string"}},
        "required": ["refusal"],
    }
    return {"anyOf": [text, refusal]}


_NO_TOOL: JsonDict = {"items": {"properties": {"type": {"enum": ["text", "refusal"]}}}}
_ASSISTANT_OR_CONTENT: JsonDict = {
    "anyOf": [
        {"properties": {"role": {"const": "assistant"}}},
        {
            "properties": {"content": {"type": ["string", "array"], **_NO_TOOL}, "parts": _NO_TOOL},
            "required": ["content"],
        },
    ]
}


class Part(Body):
    """A part of a message's content: a text, or what the assistant asked the tool and what the tool answered."""

    model_config = ConfigDict(json_schema_extra=text_or_refusal(*(kind for kind in KINDS if kind != "refusal")))

    type: Annotated[Text, Field(json_schema_extra={"enum": list(KINDS)})]
    text: Text | None = None
    refusal: Text | None = None
    prompt_cache_breakpoint: Pairs | None = None  # without effect

    @model_validator(mode="after")
    def _is_text(self) -> Part:
        if self.type not in KINDS:
            kind = _OTHER_KINDS.get(self.type, f"of the type {self.type[:64]!r}")
            raise ValueError(f"is {kind}, and this model reads text alone; leave it out")
        if self.said is None:
            raise ValueError(f"has no '{self._field}'")
        return self

    @property
    def _field(self) -> str:
        return "refusal" if self.type == "refusal" else "text"

    @property
    def said(self) -> str | None:
        return getattr(self, self._field)


Content = Annotated[Annotated[Text, Tag("text")] | Annotated[Items[Part], Tag("list")], text_or_list]


class ChatMessage(Body):
    """A message. `name` is taken, and the model does not see it."""

    model_config = ConfigDict(json_schema_extra=_ASSISTANT_OR_CONTENT)

    role: Annotated[Text, Field(json_schema_extra={"enum": list(ROLES)})]
    content: Content | None = Field(default=None, description="Text, or parts; null only in an answer.")
    parts: Annotated[Items[Part] | None, Field(description="What an answer of this server said, with its tool.")] = None
    refusal: Text | None = None
    name: Label | None = None
    annotations: list[Any] | None = None  # without effect, as in answers
    tool_calls: list[Any] | None = Field(default=None, json_schema_extra={"maxItems": 0})
    function_call: Any = Field(default=None, json_schema_extra={"type": "null"})
    audio: Any = Field(default=None, json_schema_extra={"type": "null"})

    @field_validator("role")
    @classmethod
    def _known_role(cls, role: str) -> str:
        if role in TOOL_ROLES:
            raise ValueError(
                f"is '{role}', and this model knows no tools of yours; put what the tool answered into a message of "
                "the user"
            )
        if role not in ROLES:
            raise ValueError(f"is {role[:64]!r} and must be one of 'system', 'developer', 'user' or 'assistant'")
        return role

    @field_validator("tool_calls", "function_call")
    @classmethod
    def _no_calls(cls, calls: Any) -> Any:
        if calls not in (None, []):
            raise ValueError("has calls of tools, which this model does not know; tell in the content what they did")
        return calls

    @field_validator("audio")
    @classmethod
    def _no_sound(cls, audio: Any) -> Any:
        if audio is not None:
            raise ValueError("refers to sound, and this model reads text alone; put what was said into the content")
        return audio

    @model_validator(mode="after")
    def _says_something(self) -> ChatMessage:
        if self.role != "assistant":
            if self.content is None:
                raise ValueError("has no 'content'")
            if any(kind not in ("text", "refusal") for kind, _ in self.said()):
                raise ValueError("has parts of the tool, which only messages of the assistant may have")
        return self

    def said(self) -> list[tuple[str, str]]:
        """(kind, text) of the parts; an answer that was a refusal said that."""
        content = self.parts or self.content or self.refusal
        if isinstance(content, list):
            return [("text" if part.type == "refusal" else part.type, part.said or "") for part in content]
        return [("text", content)] if content else []


def check_length(messages: Sequence[ChatMessage]) -> None:
    """ValueError, for a validator of messages, where they are longer together than is read."""
    if sum(len(text) for message in messages for _, text in message.said()) > MAX_TEXT:
        raise ValueError(f"have more than {MAX_TEXT:,} characters; shorten the conversation")


def check_end(messages: Sequence[ChatMessage], *, continued: bool) -> None:
    """ValueError, for a validator of messages, where they end with what can't be answered, or not be gone on with."""
    last = messages[-1]
    if not continued and last.role == "assistant":
        raise ValueError("end with an answer of the assistant; end them with what it is to answer")
    if continued and last.role != "assistant":
        raise ValueError("end with no answer of the assistant that 'continue_final_message' could go on with")
    if continued and [kind for kind, _ in last.said()][-1:] not in ([], ["text"], ["refusal"]):
        raise ValueError("end with a step of the tool, which 'continue_final_message' can't go on with; end with text")


def conversation(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """The messages as turns of user and assistant, the user first."""
    turns: list[tuple[str, list[tuple[str, str]]]] = [("user", [])]
    for message in messages:
        role, said = "assistant" if message.role == "assistant" else "user", message.said()
        if turns[-1][0] != role:
            turns.append((role, said))
        elif said:
            turns[-1][1].extend([("text", _BETWEEN), *said] if turns[-1][1] else said)
    return [{"role": role, "content": _content(said)} for role, said in turns]


def _content(said: list[tuple[str, str]]) -> str | list[dict[str, str]]:
    """A text; or parts, where the tool was used: neighbouring texts are one, calls are not."""
    parts: list[dict[str, str]] = []
    for kind, same in groupby(said, key=lambda part: part[0]):
        texts = [text for _, text in same]
        parts += [{"type": kind, "text": text} for text in (["".join(texts)] if kind == "text" else texts)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts
