"""One HTTP request's samples on their way from the engine's thread to the event loop.

mail = Mail()                                       # one for all requests of an event loop
exchange = Exchange(service, wanted, visitor, mail, patience=60.0)
async for index, event in exchange: ...
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from nanochat.inference import Event
from nanochat.serving.reservations import Visitor
from nanochat.serving.service import EngineService, Samples


@dataclass(slots=True)
class Figures:
    """How much was said; `reused` is of the prompt that was answered first."""

    prompt: int  # tokens
    reused: int = 0
    completion: int = 0
    first: float | None = None  # seconds until the first token

    def __str__(self) -> str:
        first = "none" if self.first is None else f"{self.first:.3f}s"
        return f"prompt={self.prompt} reused={self.reused} completion={self.completion} first={first}"


PAUSE = 0.01  # seconds from one time that tokens are handed out to the next: each wake-up and each write has its price
Item = tuple[int, Event | Exception]


class Mail:
    """Takes tokens from the engine's thread to the requests of an event loop: those of a step with one wake-up of the
    loop, and those of several steps where these are faster than anyone reads."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._held: deque[tuple[asyncio.Queue[Item], Item]] = deque()
        self._called = False  # whether the loop knows of what is held
        self._last = -math.inf  # when it was handed out

    def put(self, box: asyncio.Queue[Item], item: Item) -> None:
        """Hand over, from any thread."""
        self._held.append((box, item))
        if not self._called:
            self._called = True
            with contextlib.suppress(RuntimeError):  # the loop may be gone when the server ends
                self._loop.call_soon_threadsafe(self._come)

    def _come(self) -> None:
        left = self._last + PAUSE - self._loop.time()
        if left > 0:
            self._loop.call_later(left, self._hand_out)
        else:
            self._hand_out()

    def _hand_out(self) -> None:
        self._called = False  # first: what comes from here on is handed out now, or calls again
        self._last = self._loop.time()
        while self._held:
            box, item = self._held.popleft()
            box.put_nowait(item)


class Exchange:
    """An asynchronous iterator over (sample, event) until all are finished; `close` cancels the rest."""

    def __init__(
        self, service: EngineService, wanted: Sequence[Samples], visitor: Visitor, mail: Mail, *, patience: float
    ) -> None:
        self._events: asyncio.Queue[Item] = asyncio.Queue()
        self._peeked: tuple[int, Event] | None = None
        self.figures = Figures(prompt=sum(len(prompt) for prompt, _ in wanted))
        self._begun = time.monotonic()
        self._service, self._visitor, self._patience = service, visitor, patience

        def deliver(index: int, what: Event | Exception) -> None:
            mail.put(self._events, (index, what))

        self._submissions = service.submit(wanted, deliver, visitor, patience=patience)
        self._unfinished = len(self._submissions)

    def __aiter__(self) -> Exchange:
        return self

    async def __anext__(self) -> tuple[int, Event]:
        if self._peeked is not None:
            found, self._peeked = self._peeked, None
            return found
        if not self._unfinished:
            raise StopAsyncIteration
        index, what = await self._events.get()
        if isinstance(what, Exception):
            raise what
        self._unfinished -= what.finish_reason is not None
        self._count(what)
        return index, what

    @property
    def more(self) -> bool:
        """Whether the next one is there already, so that what is sent can go together."""
        return not self._events.empty()

    def _count(self, event: Event) -> None:
        figures = self.figures
        figures.completion += 1
        if figures.first is None:
            figures.first, figures.reused = time.monotonic() - self._begun, event.request.reused

    async def wait(self, *, seconds: float) -> None:
        """Wait for the first event, that is, for a slot. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            self._peeked = await anext(self)

    def again(self) -> int:
        """The seconds after which to send the request again, where the wait was in vain."""
        return self._service.promise(self._visitor, len(self._submissions), patience=self._patience)

    def close(self) -> None:
        for submission in self._submissions:
            self._service.cancel(submission)
