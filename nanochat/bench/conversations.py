"""Conversations with a server of OpenAI's chat API, for `nanochat bench serve`: when each piece of an answer came.

    answers = asyncio.run(converse_all(url, Load(rate=0.5, conversations=20, turns=3, words=20, tokens=32)))

Conversations begin at random times of the given rate, whether or not those before are over. In each a question is asked
as soon as the last one was answered, with all that was said before it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from nanochat.spec.errors import UserError

LONGEST_SILENCE = 600.0  # seconds
REFUSED = (429, 503)  # what a server that has too much to do answers
LARGEST_LINE = 1 << 20  # characters of an event


@dataclass(frozen=True, slots=True)
class Load:
    """Questions that a server is asked, and how often."""

    rate: float  # conversations that begin in a second
    conversations: int
    turns: int  # questions of each
    words: int  # of a question
    tokens: int  # of an answer, at most


@dataclass(slots=True)
class Answer:
    """One answer: when it was asked for and when its pieces came, by the monotonic clock."""

    turn: int
    asked: float
    came: list[float] = field(default_factory=list)
    tokens: int = 0  # as the server counts them
    text: str = ""
    refused: bool = False

    @property
    def first(self) -> float:
        """Seconds to the first piece."""
        return self.came[0] - self.asked

    @property
    def gaps(self) -> list[float]:
        """Seconds between one piece and the next."""
        return [later - earlier for earlier, later in zip(self.came, self.came[1:], strict=False)]


async def converse_all(url: str, load: Load) -> list[Answer]:
    """All answers to the load, the refused ones too; UserError where the server doesn't answer."""
    from nanochat.bench.synthetic import SEED, texts  # imports numpy, which other commands do without

    draw = random.Random(SEED)
    words = " ".join(texts()[:50]).split()
    key = os.environ.get("NANOCHAT_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(LONGEST_SILENCE, connect=10.0)
    limits = httpx.Limits(max_connections=None)
    try:
        async with (
            httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, limits=limits) as client,
            asyncio.TaskGroup() as group,
        ):
            tasks = []
            for _ in range(load.conversations):
                questions = [" ".join(draw.choices(words, k=load.words)) for _ in range(load.turns)]
                tasks.append(group.create_task(converse(client, questions, load.tokens)))
                await asyncio.sleep(draw.expovariate(load.rate))
    except ExceptionGroup as failed:
        first = failed.exceptions[0]
        if isinstance(first, httpx.HTTPError | ValueError):
            why = str(first) or type(first).__name__
            raise UserError(f"the server at {url} does not answer as OpenAI's API does ({why[:300]})") from None
        raise first from None
    return [answer for task in tasks for answer in task.result()]


async def converse(client: httpx.AsyncClient, questions: list[str], tokens: int) -> list[Answer]:
    """The answers to one conversation's questions, up to the first that is refused."""
    messages: list[dict[str, str]] = []
    answers = []
    for turn, question in enumerate(questions):
        messages.append({"role": "user", "content": question})
        answer = await ask(client, messages, turn=turn, tokens=tokens)
        answers.append(answer)
        if answer.refused:
            break
        messages.append({"role": "assistant", "content": answer.text})
    return answers


async def ask(client: httpx.AsyncClient, messages: list[dict[str, str]], *, turn: int, tokens: int) -> Answer:
    """One answer, as a stream."""
    body = {
        "messages": messages, "max_tokens": tokens, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    answer = Answer(turn, time.monotonic())
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code in REFUSED:
            answer.refused = True
            return answer
        if not response.is_success:
            said = (await response.aread())[:300].decode(errors="replace")
            raise UserError(f"the server at {client.base_url} refuses with {response.status_code}: {said}")
        async for event in events(response):
            if usage := event.get("usage"):
                answer.tokens = int(usage["completion_tokens"])
            for choice in event.get("choices", []):
                delta = choice.get("delta") or {}
                if delta.get("content") or delta.get("part"):
                    answer.came.append(time.monotonic())
                    answer.text += delta.get("content") or ""
    return answer


async def events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream, up to its end."""
    async for line in response.aiter_lines():
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        if line.startswith("data:") and len(data) < LARGEST_LINE:
            event = json.loads(data)
            if "error" in event:
                raise UserError(f"the server broke off: {str(event['error'])[:300]}")
            yield event
