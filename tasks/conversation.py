"""Conversations: what every one must be, said once for files, tasks, training and the chat API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

ROLES = ("system", "user", "assistant")
PARTS = ("text", "python", "python_output")


def conversation_problem(
    messages: Any, *, last: Literal["user", "assistant"] | None = None, parts: bool = True
) -> str | None:
    """The first thing that is wrong with a conversation, in a sentence that names the message; None where it is right.

    After an optional system message user and assistant take turns, the user first; `last` is the role that has to
    end it. A content is text, or for the assistant, where `parts` allows it, a list of {"type", "text"}.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        return "a conversation is a list of messages, each with 'role' and 'content'"
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            return f"message {number} must have 'role' and 'content'"
        if message["role"] not in ROLES:
            return f"message {number} has the role {message['role']!r}, which must be one of {', '.join(ROLES)}"
        problem = _content_problem(message["content"], parts=parts and message["role"] == "assistant")
        if problem:
            return f"message {number}: the content {problem}"
    first = 1 if messages[0]["role"] == "system" else 0
    if len(messages) == first:
        return "there is no user message after the system message"
    for number, message in enumerate(messages[first:], start=first + 1):
        expected = ("user", "assistant")[(number - first - 1) % 2]
        if message["role"] != expected:
            return (
                f"message {number} is from '{message['role']}' and must be from '{expected}': "
                "user and assistant must alternate, and the user begins"
            )
    if last is not None and messages[-1]["role"] != last:
        return f"the last message must be the {last}'s"
    return None


def _content_problem(content: Any, *, parts: bool) -> str | None:
    texts: Iterable[str] = (content,)
    if parts and isinstance(content, (list, tuple)):
        for part in content:
            if not isinstance(part, Mapping) or part.get("type") not in PARTS or not isinstance(part.get("text"), str):
                return f"must have 'text' and a 'type' of {', '.join(PARTS)} in each part"
        texts = (part["text"] for part in content)
    elif not isinstance(content, str):
        return "must be text or a list of parts" if parts else "must be text"
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return "has half a surrogate pair, which is no text"
    return None
