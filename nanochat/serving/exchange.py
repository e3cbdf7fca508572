"""One HTTP request's samples on their way from the engine's thread to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from nanochat.inference import Event
from nanochat.serving.service import EngineService, Samples


class Exchange:
    """An asynchronous iterator over (sample, event) until all are finished; `close` cancels the rest."""

    def __init__(self, service: EngineService, wanted: Sequence[Samples]) -> None:
        loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue()
        self._peeked: tuple[int, Event] | None = None

        def deliver(index: int, what: Event | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be gone when the server ends
                loop.call_soon_threadsafe(self._events.put_nowait, (index, what))

        self._service = service
        self._submissions = service.submit(wanted, deliver)
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
        return index, what

    async def wait(self, *, seconds: float) -> None:
        """Wait for the first event, that is, for a slot. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            self._peeked = await anext(self)

    def close(self) -> None:
        for submission in self._submissions:
            self._service.cancel(submission)
