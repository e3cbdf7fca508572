"""From the engine's thread to what is sent: one wake-up for a step, and one piece for what is there together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from nanochat.serving.exchange import PAUSE, Mail
from nanochat.serving.responder import streamed
from nanochat.serving.service import EngineFailed


def test_a_step_wakes_the_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def deliver() -> int:
        loop, calls = asyncio.get_running_loop(), []
        soon = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda call: calls.append(call) or soon(call))
        mail, boxes = Mail(), [asyncio.Queue() for _ in range(8)]  # type: ignore[var-annotated]
        for step in range(3):
            for number, box in enumerate(boxes):
                mail.put(box, (number, ValueError(str(step))))
            for number, box in enumerate(boxes):
                index, what = await box.get()
                assert (index, str(what)) == (number, str(step)) and box.empty()
        return len(calls)

    assert asyncio.run(deliver()) == 3


def test_steps_that_follow_at_once_are_handed_out_together(monkeypatch: pytest.MonkeyPatch) -> None:
    async def deliver() -> None:
        loop, later = asyncio.get_running_loop(), []
        monkeypatch.setattr(loop, "time", lambda: 5.0)
        monkeypatch.setattr(loop, "call_later", lambda delay, call: later.append((delay, call)))
        mail, box = Mail(), asyncio.Queue()  # type: ignore[var-annotated]
        mail.put(box, (0, ValueError("the first at once")))
        await box.get()
        for number in range(3):
            mail.put(box, (0, ValueError(str(number))))
            await asyncio.sleep(0)
        assert box.empty()
        ((delay, call),) = later
        call()
        assert delay == pytest.approx(PAUSE) and box.qsize() == 3

    asyncio.run(deliver())


def test_nothing_is_lost_between_the_threads() -> None:
    async def deliver() -> list[str]:
        mail, box = Mail(), asyncio.Queue()  # type: ignore[var-annotated]

        def work() -> None:
            for number in range(20_000):
                mail.put(box, (0, ValueError(str(number))))

        thread = threading.Thread(target=work)
        thread.start()
        found = [str((await box.get())[1]) for _ in range(20_000)]
        thread.join()
        return found

    assert asyncio.run(deliver()) == [str(number) for number in range(20_000)]


class Ready:
    """An exchange whose events come in these portions."""

    def __init__(self, portions: Sequence[Sequence[Any]]) -> None:
        self._portions = [list(portion) for portion in portions]

    def __aiter__(self) -> Ready:
        return self

    async def __anext__(self) -> tuple[int, Any]:
        while self._portions and not self._portions[0]:
            self._portions.pop(0)
        if not self._portions:
            raise StopAsyncIteration
        what = self._portions[0].pop(0)
        if isinstance(what, Exception):
            raise what
        return 0, what

    @property
    def more(self) -> bool:
        return bool(self._portions and self._portions[0])


ENCODER = SimpleNamespace(
    begin=lambda: "<", add=lambda _index, event: event, fail=lambda error: f"!{error}", end=lambda *, prompt: ">"
)


def _sent(*portions: Sequence[Any]) -> list[str]:
    async def collect() -> list[str]:
        return [text async for text in streamed(Ready(portions), ENCODER, prompt=None)]  # type: ignore[arg-type]

    return asyncio.run(collect())


def test_what_is_there_together_is_sent_together_and_at_once() -> None:
    assert _sent(["a"], ["b", "c", "d"], ["", ""], ["e", ""]) == ["<", "a", "bcd", "e", ">"]
    assert _sent(["a"], ["b", EngineFailed("gone")]) == ["<", "a", "b!gone"]
