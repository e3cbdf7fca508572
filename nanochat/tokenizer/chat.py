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
from typing import Any, Literal

import numpy as np

from nanochat.data.packing import cut_conversation
from nanochat.spec.errors import UserError
from nanochat.tokenizer.tokenizer import Tokenizer
from tasks.conversation import conversation_problem

Message = Mapping[str, Any]  # {"role", "content"}; content is text or a list of {"type", "text"}


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as ids."""

    ids: list[int]
    mask: list[int]  # 1 = trained on
    cut: int  # messages that are not in it, or not whole


def render_conversation(
    tokenizer: Tokenizer, messages: Sequence[Message], max_tokens: int | None = None, *, where: str = "the conversation"
) -> Rendered:
    """Ids and mask of a conversation.

    Longer than `max_tokens`, it ends after the last answer that fits; where not even the first exchange fits, the
    end of that exchange is cut off, with the end of its turn, so that stopping in mid-sentence is not learned.
    """
    _check(messages, where)
    ids, mask = _render(tokenizer, messages)
    if max_tokens is None:
        return Rendered(ids, mask, cut=0)
    special = tokenizer.special
    kept, cut = cut_conversation(
        np.asarray(ids), max_tokens, assistant_end=special["assistant_end"], user_end=special["user_end"]
    )
    return Rendered(ids[:kept], mask[:kept], cut=cut)


def render_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], *, continued: bool = False, where: str = "the conversation"
) -> list[int]:
    """All messages, then assistant_start; with `continued` the last one, an answer, is left open instead.

    Raises UserError where the last message is not the user's, or with `continued` not the assistant's.
    """
    _check(messages, where, last="assistant" if continued else "user")
    ids, _ = _render(tokenizer, messages)
    return ids[:-1] if continued else [*ids, tokenizer.special["assistant_start"]]


def least_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> int:
    """The fewest tokens that the prompt of these messages can have: what is surely too long need not be encoded."""
    contents = (message["content"] for message in messages)
    parts = ([content] if isinstance(content, str) else [part["text"] for part in content] for content in contents)
    return sum(tokenizer.least_tokens(text) for texts in parts for text in texts)


def _check(messages: Any, where: str, last: Literal["user", "assistant"] | None = None) -> None:
    problem = conversation_problem(messages, last=last)
    if problem:
        raise UserError(f"{where}: {problem}")


def _render(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Ids and mask of all messages."""
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
    return ids, mask


def _without_system(messages: Sequence[Message]) -> list[Message]:
    if messages[0]["role"] != "system":
        return list(messages)
    joined = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{"role": "user", "content": joined}, *messages[2:]]
