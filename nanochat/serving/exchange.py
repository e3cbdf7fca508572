"""One HTTP request's samples on their way from the engine's thread to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from nanochat.inference import Event
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


class Exchange:
    """An asynchronous iterator over (sample, event) until all are finished; `close` cancels the rest."""

    def __init__(self, service: EngineService, wanted: Sequence[Samples], *, patience: float) -> None:
        loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue()
        self._peeked: tuple[int, Event] | None = None

        def deliver(index: int, what: Event | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be gone when the server ends
                loop.call_soon_threadsafe(self._events.put_nowait, (index, what))

        self.figures = Figures(prompt=sum(len(prompt) for prompt, _ in wanted))
        self._begun = time.monotonic()
        self._service = service
        self._submissions = service.submit(wanted, deliver, patience=patience)
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

    def _count(self, event: Event) -> None:
        figures = self.figures
        figures.completion += 1
        if figures.first is None:
            figures.first, figures.reused = time.monotonic() - self._begun, event.request.reused

    async def wait(self, *, seconds: float) -> None:
        """Wait for the first event, that is, for a slot. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            self._peeked = await anext(self)

    def close(self) -> None:
        for submission in self._submissions:
            self._service.cancel(submission)
