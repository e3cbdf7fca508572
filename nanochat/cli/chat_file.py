"""Chats as files, in the form that the chat page exports and imports.

    save(path, SavedChat(name="Primes", messages=messages, settings=settings, system="Be brief."))
    load(path)          # the chats of a file, the newest first

Bounds are those of nanochat/serving/static/shape.js; lengths are counted as browsers do, in units of UTF-16. Of the
branches of a chat the one that is shown is read.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from nanochat.cli.chat_backends import Message
from nanochat.parse import Malformed, first_problem
from nanochat.parse.json_text import read_json
from nanochat.spec.errors import UserError
from nanochat.storage import files

MOST_BYTES = 16 << 20
MOST_CHATS = 1000  # of a file
MOST_CHARACTERS = 1_000_000  # of a chat
NAME = 60  # characters of a first question that name a chat
# A backslash, a surrogate pair, or half of one, as escapes of JSON.
_ESCAPE = re.compile(rb"(?i)\\\\|\\u(?:d[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}|(d[89a-f][0-9a-f]{2}))")


@dataclass(frozen=True, slots=True)
class SavedChat:
    """A chat; `settings` has those that were chosen, by the names of the chat API."""

    name: str
    messages: list[Message]
    settings: Mapping[str, float | int] = field(default_factory=dict)
    system: str | None = None
    omitted: int = 0  # messages at the beginning that no longer fitted into the context
    whole: bool = True  # the file has no more of it: no other branch, figure, note


def first_words(question: str) -> str:
    """The name of a chat that begins with this question."""
    return question.strip().partition("\n")[0][:NAME]


def save(path: Path, chat: SavedChat) -> None:
    """Write the file, or replace it. UserError where it cannot be written, or the chat is too long for a file."""
    try:
        shape = _Chat.of(chat)
    except ValidationError as error:
        raise UserError(f"This chat cannot be saved: {first_problem(error)}; begin a new one with /clear.") from None
    file = _File(format="nanochat-conversations", version=1, conversations=[shape])
    try:
        files.write(path, file.model_dump_json(exclude_none=True, indent=1).encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); name another file.") from None


def load(path: Path) -> list[SavedChat]:
    """The chats of a file; UserError, with the place, where it is none."""
    try:
        if not path.is_file():
            raise UserError(f"There is no file {path}; name one that /save or the chat page's Export made.")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        value = read_json(_whole(data), limit=MOST_BYTES)
        chats = _File.model_validate(value, strict=True).conversations
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); name another file.") from None
    except Malformed as error:
        raise UserError(f"{path} was not loaded: {error}; name a file that /save or Export made.") from None
    except ValidationError as error:
        raise UserError(f"{path} was not loaded: {first_problem(error)}.") from None
    found = sorted(zip(chats, value["conversations"], strict=True), key=lambda each: -each[0].changed)
    return [chat.shown(given) for chat, given in found]


def _whole(data: bytes) -> bytes:
    """JSON with U+FFFD for each half of a surrogate pair, as browsers show those that they keep."""
    return _ESCAPE.sub(lambda found: b"\\ufffd" if found[1] else found[0], data)


def _units(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _at_most(most: int) -> AfterValidator:
    def check(text: str) -> str:
        if _units(text) > most:
            raise ValueError(f"it has more than {most:,} characters")
        return text

    return AfterValidator(check)


class _Shape(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class _Part(_Shape):
    type: Literal["text", "python", "python_output"]
    text: str


class _Message(_Shape):
    parent: int = Field(ge=-1)
    role: Literal["user", "assistant"]
    parts: list[_Part] = Field(max_length=10_000)
    note: Annotated[str, _at_most(1000)]
    figures: dict[str, Any]

    @classmethod
    def of(cls, number: int, message: Message) -> Self:
        content = message["content"]
        parts = [_Part(type="text", text=content)] if isinstance(content, str) else content
        return cls(parent=number - 1, role=message["role"], parts=parts, note="", figures={})

    def content(self) -> str | list[dict[str, str]]:
        if all(part.type == "text" for part in self.parts):
            return "".join(part.text for part in self.parts)
        return [part.model_dump() for part in self.parts]


class _Settings(_Shape):
    temperature: float | None = Field(None, ge=0, le=2)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    top_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    seed: int | None = Field(None, ge=0, le=2**53 - 1)
    system: Annotated[str, _at_most(100_000)] | None = None


class _Chat(_Shape):
    name: Annotated[str, _at_most(200)]
    changed: int = Field(ge=0, le=8_640_000_000_000_000)  # milliseconds since 1970
    settings: _Settings
    messages: list[_Message] = Field(max_length=2048)
    leaf: int = Field(ge=-1)

    @classmethod
    def of(cls, chat: SavedChat) -> Self:
        shape = cls(
            name=chat.name,
            changed=int(time.time() * 1000),
            settings=_Settings.model_validate({**chat.settings, "system": chat.system}),
            messages=[_Message.of(number, message) for number, message in enumerate(chat.messages)],
            leaf=len(chat.messages) - 1,
        )
        answers = [message for message in shape.messages if message.role == "assistant"]
        if answers and chat.omitted:
            answers[-1].figures["omitted"] = chat.omitted
        return shape

    @model_validator(mode="after")
    def _check_tree(self) -> Self:
        if not (self.leaf < len(self.messages) and (self.leaf >= 0) == bool(self.messages)):
            raise ValueError("leaf must name a message")
        for number, message in enumerate(self.messages):
            if message.parent >= number:
                raise ValueError(f"messages.{number}.parent must name a message before it")
            above = self.messages[message.parent].role if message.parent >= 0 else "assistant"
            if message.role == "assistant" and above != "user":
                raise ValueError(f"messages.{number} must follow a question")
            if message.role == "user" and any(part.type != "text" for part in message.parts):
                raise ValueError(f"messages.{number} is a question, which has text alone")
        if sum(_units(part.text) for message in self.messages for part in message.parts) > MOST_CHARACTERS:
            raise ValueError(f"it has more than {MOST_CHARACTERS:,} characters")
        return self

    def shown(self, given: dict[str, Any]) -> SavedChat:
        """The branch that is shown; `given` is all that the file has of the chat."""
        numbers = [self.leaf] if self.leaf >= 0 else []
        while numbers and (parent := self.messages[numbers[-1]].parent) >= 0:
            numbers.append(parent)
        branch = [self.messages[number] for number in reversed(numbers)]
        messages: list[Message] = []
        for message in branch:
            content = message.content()
            if messages and messages[-1]["role"] == message.role:  # a question that had no answer, and the next one
                content = f"{messages.pop()['content']}\n\n{content}"
            messages.append({"role": message.role, "content": content})
        chat = SavedChat(
            name=self.name,
            messages=messages,
            settings=self.settings.model_dump(exclude_none=True, exclude={"system"}),
            system=self.settings.system or None,
            omitted=_omitted(branch) if len(messages) == len(branch) else 0,
        )
        return replace(chat, whole=len(messages) == len(self.messages) and _Chat.of(chat).same(given))

    def same(self, given: dict[str, Any]) -> bool:
        """Whether a file has this of the chat, whenever it was changed."""
        return self.model_dump(exclude_none=True) == {**given, "changed": self.changed}


def _omitted(branch: list[_Message]) -> int:
    """How many messages were left out of the last answer's request, where the file says so."""
    said = next((message.figures.get("omitted") for message in reversed(branch) if message.role == "assistant"), 0)
    questions = [number for number, message in enumerate(branch) if message.role == "user"]
    return said if said in questions else 0


class _File(_Shape):
    format: Literal["nanochat-conversations"]
    version: Literal[1]
    conversations: list[_Chat] = Field(max_length=MOST_CHATS)
