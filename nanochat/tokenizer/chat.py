"""Conversations as ids with loss masks.

    rendered = render_conversation(tokenizer, messages, max_tokens=2049)
    prompt = render_prompt(tokenizer, messages)      # ends with assistant_start: the model answers

A conversation is bos, then for each message its start, content and end. Mask 1 is what the model is trained to say:
the assistant's text, its calls of the tool, and the end of its turn; what the tool answers is not.
A system message is joined to the first user message with a blank line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanochat.data.packing import cut_conversation
from nanochat.spec.errors import UserError
from nanochat.tokenizer.tokenizer import Tokenizer

Message = Mapping[str, Any]  # {"role", "content"}; content is text or a list of {"type", "text"}
ROLES = ("system", "user", "assistant")
PARTS = ("text", "python", "python_output")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as ids."""

    ids: list[int]
    mask: list[int]  # 1 = trained on
    cut: int  # messages that are not in it, or not whole


def check_messages(messages: Any, *, where: str = "the conversation") -> None:
    """Raise UserError, beginning with `where`, unless these are messages that alternate from the user on."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise UserError(f"{where} must be a list of messages, each with 'role' and 'content'")
    for i, message in enumerate(messages):
        place = f"{where}, message {i + 1}"
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise UserError(f"{place}: must have 'role' and 'content'")
        if message["role"] not in ROLES:
            raise UserError(f"{place}: the role is {message['role']!r} and must be one of {', '.join(ROLES)}")
        _check_content(message, place)
    first = 1 if messages[0]["role"] == "system" else 0
    if len(messages) == first:
        raise UserError(f"{where}: there is no user message after the system message")
    for i, message in enumerate(messages[first:], start=first):
        expected = ("user", "assistant")[(i - first) % 2]
        if message["role"] != expected:
            raise UserError(
                f"{where}, message {i + 1}: the role is '{message['role']}' and must be '{expected}': "
                "messages alternate between user and assistant, and the user begins"
            )


def _check_content(message: Message, place: str) -> None:
    content = message["content"]
    if isinstance(content, str):
        texts = [content]
    elif isinstance(content, (list, tuple)) and message["role"] == "assistant":
        texts = []
        for part in content:
            if not isinstance(part, Mapping) or part.get("type") not in PARTS or not isinstance(part.get("text"), str):
                raise UserError(f"{place}: each part must have 'text' and a 'type' of {', '.join(PARTS)}")
            texts.append(part["text"])
    else:
        allowed = "text or a list of parts" if message["role"] == "assistant" else "text"
        raise UserError(f"{place}: the content of the role '{message['role']}' must be {allowed}")
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"{place}: the content has half a surrogate pair, which is no text") from None


def render_conversation(
    tokenizer: Tokenizer, messages: Sequence[Message], max_tokens: int | None = None, *, where: str = "the conversation"
) -> Rendered:
    """Ids and mask of a conversation.

    Longer than `max_tokens`, it ends after the last answer that fits; where not even the first exchange fits, the
    end of that exchange is cut off, with the end of its turn, so that stopping in mid-sentence is not learned.
    """
    check_messages(messages, where=where)
    special = tokenizer.special
    ids: list[int] = [special["bos"]]
    mask: list[int] = [0]

    def add(tokens: list[int], trained: int) -> None:
        ids.extend(tokens)
        mask.extend([trained] * len(tokens))

    for message in _without_system(messages):
        if message["role"] == "user":
            add([special["user_start"], *tokenizer.encode(message["content"]), special["user_end"]], 0)
            continue
        add([special["assistant_start"]], 0)
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            tokens = tokenizer.encode(part["text"])
            if part["type"] == "text":
                add(tokens, 1)
            elif part["type"] == "python":
                add([special["python_start"], *tokens, special["python_end"]], 1)
            else:
                add([special["output_start"], *tokens, special["output_end"]], 0)
        add([special["assistant_end"]], 1)
    if max_tokens is None:
        return Rendered(ids, mask, cut=0)
    kept, cut = cut_conversation(
        np.asarray(ids), max_tokens, assistant_end=special["assistant_end"], user_end=special["user_end"]
    )
    return Rendered(ids[:kept], mask[:kept], cut=cut)


def render_prompt(tokenizer: Tokenizer, messages: Sequence[Message], *, where: str = "the conversation") -> list[int]:
    """All messages, then assistant_start. Raises UserError where the last message is not the user's."""
    rendered = render_conversation(tokenizer, messages, where=where)
    if messages[-1]["role"] != "user":
        raise UserError(f"{where}: the last message must be the user's, so that there is something to answer")
    return [*rendered.ids, tokenizer.special["assistant_start"]]


def _without_system(messages: Sequence[Message]) -> list[Message]:
    if messages[0]["role"] != "system":
        return list(messages)
    joined = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{"role": "user", "content": joined}, *messages[2:]]
