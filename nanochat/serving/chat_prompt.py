"""The prompt of a chat: its messages as tokens, and, where the request allows it, without its oldest exchanges.

    prompt = chat_prompt(messages, tokenizer, context=2048, answer=256, truncate=True)
    prompt.ids, prompt.dropped

An exchange begins with what is said after an answer. The system's and developer's messages before the first one stay,
and so does the last one. Room is left for the answer that is asked for, a quarter of the context at most.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from nanochat.inference import ContextTooLong
from nanochat.serving.messages import ChatMessage, conversation
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.chat import least_prompt, render_prompt


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """The tokens, and how many messages are not in them."""

    ids: list[int]
    dropped: int


def chat_prompt(
    messages: Sequence[ChatMessage],
    tokenizer: Tokenizer,
    *,
    context: int,
    answer: int,
    continued: bool = False,
    truncate: bool = False,
) -> ChatPrompt:
    """Raises ContextTooLong where the messages surely are.

    `answer` is how many tokens the answer may have; with `continued` it goes on with the last message.
    """

    def render(kept: Sequence[ChatMessage]) -> list[int]:
        turns = conversation(kept)
        if (least := least_prompt(tokenizer, turns)) >= context:  # cheap, and most often enough
            raise ContextTooLong(prompt=least, limit=context, at_least=True)
        return render_prompt(tokenizer, turns, continued=continued)

    if not truncate:
        return ChatPrompt(render(messages), 0)
    cuts, room = _begins(messages), min(answer, context // 4)
    first = cuts[0]

    def fits(cut: int) -> bool:
        try:
            return len(render([*messages[:first], *messages[cut:]])) + room <= context
        except ContextTooLong:
            return False

    # The fewer messages, the fewer tokens: the search renders few of the ways to cut.
    cut = cuts[min(bisect_left(cuts, True, key=fits), len(cuts) - 1)]
    return ChatPrompt(render([*messages[:first], *messages[cut:]]), cut - first)


def _begins(messages: Sequence[ChatMessage]) -> list[int]:
    """Where the exchanges begin; the first of them after the instructions, if anything is said after those."""
    lead = sum(1 for _ in takewhile(lambda message: message.role in ("system", "developer"), messages))
    first = lead if lead < len(messages) else 0
    later = range(first + 1, len(messages))
    return [first, *(i for i in later if messages[i - 1].role == "assistant" and messages[i].role != "assistant")]
