"""Conversations with a server of OpenAI's chat API, for `nanochat bench serve`: when each piece of an answer came.

    answers = asyncio.run(converse_all(url, Load(rate=0.5, conversations=20, turns=3, words=20, tokens=32)))

Conversations begin at random times of the given rate, whether or not those before are over. In each a question is asked
as soon as the last one was answered, with all that was said before it. Mixed ones differ in the length of questions and
answers, in temperature and seed, and one answer in eight is broken off. Where the server refuses, a conversation may
come back at the time that it is told, and some clients may ask for an answer and read none of it.
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
CHAT = "/v1/chat/completions"
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
    mixed: bool = False
    retries: int = 0  # times that a question is asked again where it was refused
    unread: int = 0  # answers of which nothing is read while the conversations last


@dataclass(slots=True)
class Answer:
    """One answer: when it was asked for and when its pieces came, by the monotonic clock."""

    turn: int
    asked: float
    came: list[float] = field(default_factory=list)
    tokens: int = 0  # as the server counts them
    text: str = ""
    refused: bool = False
    again: bool = False  # whether it was asked before, and refused
    wait: float = 0.0  # seconds to wait where it is refused, as the server tells

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
            held = [group.create_task(hold(client, load.tokens)) for _ in range(load.unread)]
            tasks = []
            for _ in range(load.conversations):
                asked = questions(load, draw, words)
                tasks.append(group.create_task(converse(client, asked, retries=load.retries)))
                await asyncio.sleep(draw.expovariate(load.rate))
            await asyncio.gather(*tasks)
            for task in held:
                task.cancel()
    except ExceptionGroup as failed:
        first = failed.exceptions[0]
        if isinstance(first, httpx.HTTPError | ValueError):
            why = str(first) or type(first).__name__
            raise UserError(f"the server at {url} does not answer as OpenAI's API does ({why[:300]})") from None
        raise first from None
    return [answer for task in tasks for answer in task.result()]


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its settings, and after how many pieces of the answer its reader goes away."""

    text: str
    settings: dict[str, Any]
    pieces: int | None = None


def questions(load: Load, draw: random.Random, words: list[str]) -> list[Question]:
    """All of one conversation."""
    found = []
    for _ in range(load.turns):
        settings: dict[str, Any] = {"max_tokens": load.tokens, "temperature": 0}
        count, pieces = load.words, None
        if load.mixed:
            count = draw.randint(1, load.words)
            settings = {"max_tokens": draw.randint(1, load.tokens), "temperature": draw.choice([0, 0.8])}
            settings |= {"seed": draw.randrange(2**32)} if draw.random() < 0.25 else {}
            pieces = draw.randint(1, load.tokens) if draw.random() < 1 / 8 else None
        found.append(Question(" ".join(draw.choices(words, k=count)), settings, pieces))
    return found


async def converse(client: httpx.AsyncClient, asked: list[Question], *, retries: int) -> list[Answer]:
    """The answers to one conversation's questions, those that were refused too; with the last refusal it ends."""
    messages: list[dict[str, str]] = []
    answers = []
    for turn, question in enumerate(asked):
        messages.append({"role": "user", "content": question.text})
        for attempt in range(1 + retries):
            answer = await ask(client, messages, question, turn=turn)
            answer.again = attempt > 0
            answers.append(answer)
            if not answer.refused:
                break
            await asyncio.sleep(answer.wait if attempt < retries else 0.0)
        else:
            break
        messages.append({"role": "assistant", "content": answer.text})
    return answers


async def ask(client: httpx.AsyncClient, messages: list[dict[str, str]], question: Question, *, turn: int) -> Answer:
    """One answer, as a stream."""
    body = {"messages": messages, "stream": True, "stream_options": {"include_usage": True}, **question.settings}
    answer = Answer(turn, time.monotonic())
    async with client.stream("POST", CHAT, json=body) as response:
        if response.status_code in REFUSED:
            answer.refused, answer.wait = True, retry_after(response)
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
            if len(answer.came) == question.pieces:
                answer.tokens = len(answer.came)
                break
    return answer


async def hold(client: httpx.AsyncClient, tokens: int) -> None:
    """Ask for an answer, and read nothing of it."""
    body = {"messages": [{"role": "user", "content": "Hello"}], "stream": True, "max_tokens": tokens, "logprobs": True}
    async with client.stream("POST", CHAT, json={**body, "top_logprobs": 20}):
        await asyncio.Event().wait()


def retry_after(response: httpx.Response) -> float:
    """Seconds to wait, as a refusal tells."""
    told = response.headers.get("Retry-After", "")
    return float(told) if told.isascii() and told.isdigit() and len(told) < 6 else 1.0


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
