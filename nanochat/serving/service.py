"""The engine in a thread of its own, so that the event loop never waits for a step.

    service = EngineService(engine, queue=64)
    service.start()
    submissions = service.submit(prompt, samplings, deliver)     # from any thread; deliver runs in the engine's
    service.cancel(submission)
    service.stop()

Between two steps the thread takes what was submitted and cancelled: a cancellation costs at most one token.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nanochat.inference import ContextTooLong, Engine, Event, Request, Sampling
from nanochat.serving.metrics import Metrics

_log = logging.getLogger(__name__)


class Overloaded(Exception):
    """As many requests as are allowed run and wait already, or the server is about to end."""


class EngineFailed(Exception):
    """The engine ended with an error; nothing more is served."""


@dataclass(eq=False, slots=True)
class Submission:
    """One submitted request. `deliver` gets its events, or the error that ended it, in that thread."""

    prompt: Sequence[int]
    sampling: Sampling
    deliver: Callable[[Event | Exception], None]
    cancelled: bool = False
    tokens: int = 0  # of the reply so far
    at: float = field(default_factory=time.monotonic)  # when the last of them came; before the first, when it was asked
    request: Request | None = field(default=None, repr=False)


class EngineService:
    """Feeds one engine from a bounded queue; see the module's docstring."""

    def __init__(self, engine: Engine, *, queue: int = 64, metrics: Metrics | None = None) -> None:
        self.length = engine.length
        self.slots = engine.slots
        self.draining = False  # whether new requests are refused because the server ends
        self._engine = engine
        self._metrics = metrics or Metrics()
        self._capacity = engine.slots + queue
        self._inbox: deque[Submission] = deque()
        self._submissions: dict[Request, Submission] = {}
        self._open = 0  # submitted and not finished
        self._changed = threading.Condition()
        self._stopping = False
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what still runs is dropped."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def open(self) -> int:
        """Requests that run or wait."""
        return self._open

    @property
    def running(self) -> int:
        """Requests that have a slot."""
        return self._engine.running

    @property
    def waiting(self) -> int:
        """Requests that wait for one."""
        return max(0, self._open - self._engine.running)

    @property
    def alive(self) -> bool:
        """Whether the thread runs and has lately begun a step or waited for work."""
        return self._thread.is_alive() and time.monotonic() - self._beat < 60

    def submit(
        self,
        prompt: Sequence[int],
        samplings: Sequence[Sampling],
        deliver: Callable[[int, Event | Exception], None],
    ) -> list[Submission]:
        """Submit samples of one prompt, all or none; `deliver(index, ...)` says which sample it is about.

        Raises ContextTooLong, Overloaded, EngineFailed.
        """
        if len(prompt) >= self.length:
            raise ContextTooLong(prompt=len(prompt), limit=self.length)
        submissions = [
            Submission(prompt, sampling, lambda what, index=index: deliver(index, what))
            for index, sampling in enumerate(samplings)
        ]
        with self._changed:
            if not self._thread.is_alive() or self._stopping:
                raise EngineFailed("The engine is not running.")
            if self.draining or self._open + len(submissions) > self._capacity:
                raise Overloaded
            self._open += len(submissions)
            self._inbox.extend(submissions)
            self._changed.notify_all()
        self._metrics.prompt.inc(len(prompt))
        return submissions

    def cancel(self, submission: Submission) -> None:
        """Stop a request within one token; nothing more is delivered once the engine has seen it."""
        with self._changed:
            submission.cancelled = True
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while self._take():
                for event in self._engine.step():
                    self._deliver(event)
        except Exception as error:
            _log.exception("the engine failed")
            with self._changed:
                self._stopping = True
                lost = [*self._submissions.values(), *self._inbox]
            for submission in lost:
                submission.deliver(EngineFailed(f"The engine failed: {error}"))

    def _take(self) -> bool:
        """Wait for work and take it over; False when it is time to end."""
        with self._changed:
            while not (self._inbox or self._submissions or self._stopping):
                self._beat = time.monotonic()
                self._changed.wait(timeout=10)
            self._beat = time.monotonic()
            arrived = [submission for submission in self._inbox if not submission.cancelled]
            dropped = len(self._inbox) - len(arrived)
            self._open -= dropped
            self._inbox.clear()
            gone = [submission for submission in self._submissions.values() if submission.cancelled]
            self._open -= len(gone)
        self._metrics.cancelled.inc(dropped + len(gone))
        for submission in gone:
            assert submission.request is not None
            self._engine.cancel(submission.request)
            del self._submissions[submission.request]
        for submission in arrived:
            submission.request = self._engine.submit(submission.prompt, submission.sampling)
            self._submissions[submission.request] = submission
        return not self._stopping

    def _deliver(self, event: Event) -> None:
        submission, now = self._submissions[event.request], time.monotonic()
        (self._metrics.inter_token if submission.tokens else self._metrics.first_token).observe(now - submission.at)
        submission.tokens, submission.at = submission.tokens + 1, now
        self._metrics.generated.inc()
        if event.finish_reason is not None:
            del self._submissions[event.request]
            with self._changed:
                self._open -= 1
        submission.deliver(event)
