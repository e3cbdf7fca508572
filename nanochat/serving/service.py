"""The engine in a thread of its own, so that the event loop never waits for a step.

    service = EngineService(engine, queue=64)
    service.start()
    submissions = service.submit([(prompt, samplings)], deliver, visitor)   # deliver runs in the engine's thread
    service.cancel(submission)
    service.stop()

Between two steps the thread takes what was submitted and cancelled: a cancellation costs at most one token.

An error that belongs to a request ends that request. Any other ends the requests that were being answered, and the
engine begins anew; where it then does not give a token, the thread ends, `alive` is false, and the process has to.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from nanochat.inference import ContextTooLong, Engine, Event, Request, Sampling
from nanochat.serving.admission import Admission, Overloaded
from nanochat.serving.metrics import Metrics
from nanochat.serving.reservations import Visitor
from nanochat.spec.errors import UserError

_log = logging.getLogger(__name__)

STALLED_SECONDS = 60.0  # a step that takes longer will never end
STOP_SECONDS = 10.0  # how long an end waits for a step to end

Samples = tuple[Sequence[int], Sequence[Sampling]]  # a prompt, and the settings of each of its samples


class EngineFailed(Exception):
    """The engine failed while it answered, or is not running any more."""


class RequestFailed(EngineFailed):
    """One request ended with an error of its own."""


@dataclass(eq=False, slots=True)
class Submission:
    """One submitted request. `deliver` gets its events, or the error that ended it, in that thread."""

    prompt: Sequence[int]
    sampling: Sampling
    deliver: Callable[[Event | Exception], None]
    cancelled: bool = False
    tokens: int = 0  # of the reply so far
    at: float = field(default_factory=time.monotonic)  # when the last of them came; before the first, when it was asked
    begun: float | None = None  # when the first came
    request: Request | None = field(default=None, repr=False)


class EngineService:
    """Feeds one engine from a bounded queue; see the module's docstring."""

    def __init__(self, engine: Engine, *, queue: int = 64, metrics: Metrics | None = None) -> None:
        self.length = engine.length
        self.slots = engine.slots
        self.draining = False  # whether new requests are refused because the server ends
        self._engine = engine
        engine.on_error = self._ended
        self._metrics = metrics or Metrics()
        self._admission = Admission(slots=engine.slots, queue=queue)
        self._inbox: deque[Submission] = deque()
        self._submissions: dict[Request, Submission] = {}
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
        self._thread.join(timeout=STOP_SECONDS)

    @property
    def open(self) -> int:
        """Requests that run or wait."""
        return self._admission.open

    @property
    def running(self) -> int:
        """Requests that have a slot."""
        return self._engine.running

    @property
    def waiting(self) -> int:
        """Requests that wait for one."""
        return max(0, self.open - self._engine.running)

    @property
    def held(self) -> int:
        """Tokens that the key-value cache holds."""
        return self._engine.held

    @property
    def capacity(self) -> int:
        """Tokens that it has room for."""
        return self.slots * self.length

    @property
    def device(self) -> torch.device:
        """The device that the engine computes on."""
        return self._engine.device

    @property
    def alive(self) -> bool:
        """Whether the thread runs and has lately begun a step or waited for work."""
        return self._thread.is_alive() and time.monotonic() - self._beat < STALLED_SECONDS

    def submit(
        self,
        wanted: Sequence[Samples],
        deliver: Callable[[int, Event | Exception], None],
        visitor: Visitor,
        *,
        patience: float = math.inf,
    ) -> list[Submission]:
        """Submit samples of prompts, all or none; `deliver(index, ...)` says which of all samples it is about.

        No more are taken than can be expected to get a slot within `patience` seconds (`nanochat.serving.admission`).

        Raises ContextTooLong, Overloaded, EngineFailed.
        """
        for prompt, _ in wanted:
            if len(prompt) >= self.length:
                raise ContextTooLong(prompt=len(prompt), limit=self.length)
        each = ((prompt, sampling) for prompt, samplings in wanted for sampling in samplings)
        submissions = [
            Submission(prompt, sampling, lambda what, index=index: deliver(index, what))
            for index, (prompt, sampling) in enumerate(each)
        ]
        with self._changed:
            if not self._thread.is_alive() or self._stopping:
                raise EngineFailed("The engine is not running.")
            if self.draining:
                raise Overloaded
            self._admission.enter(visitor, len(submissions), time.monotonic(), patience=patience)
            self._inbox.extend(submissions)
            self._changed.notify_all()
        self._metrics.prompt.inc(sum(len(submission.prompt) for submission in submissions))
        return submissions

    def promise(self, visitor: Visitor, places: int, *, patience: float) -> int:
        """The seconds after which a request for so many samples, which waited in vain, finds room."""
        with self._changed:
            return self._admission.promise(visitor, places, time.monotonic(), patience=patience)

    def cancel(self, submission: Submission) -> None:
        """Stop a request within one token; nothing more is delivered once the engine has seen it."""
        with self._changed:
            submission.cancelled = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            try:
                while self._take():
                    for event in self._engine.step():
                        self._deliver(event)
                return
            except BaseException as error:  # compiled modules raise panics that are no Exception
                _log.exception("the engine failed")
                self._drop(error)
                if self._renewed():
                    continue
                with self._changed:
                    self._stopping = True
                self._drop(error, everything=True)
                return

    def _drop(self, error: BaseException, *, everything: bool = False) -> None:
        """End what was being answered; what had not been begun is submitted again, unless `everything` has to end."""
        with self._changed:
            held, self._submissions = [*self._submissions.values(), *self._inbox], {}
            again = (
                [] if everything else [each for each in held if not each.request or self._engine.waits(each.request)]
            )
            self._inbox = deque(again)
            lost = [each for each in held if each not in again]
        for submission in lost:
            self._left(submission)
            _tell(submission, EngineFailed(f"The engine failed: {error}"))

    def _renewed(self) -> bool:
        """Whether the engine, begun anew, gives a token."""
        try:
            self._engine.reset()
            self._engine.generate([[0]], Sampling(max_tokens=1))
        except BaseException:
            _log.exception("the engine could not be made anew")
            return False
        _log.warning("the engine was made anew")
        return True

    def _ended(self, request: Request, error: Exception) -> None:
        """A request of the engine ended with an error of its own."""
        submission = self._submissions.pop(request)
        self._left(submission, in_slot=True)
        if not isinstance(error, UserError):
            _log.error("a request ended with an error", exc_info=error)
            error = RequestFailed(f"The request failed: {type(error).__name__}: {error}")
        _tell(submission, error)

    def _left(self, submission: Submission, *, in_slot: bool = False, cancelled: bool = False) -> None:
        """One request less runs or waits; `in_slot`: it leaves a slot."""
        now = time.monotonic()
        with self._changed:
            self._admission.left(now, held=now - (submission.begun or now) if in_slot else None)
        self._metrics.cancelled.inc(cancelled)

    def _take(self) -> bool:
        """Wait for work and take it over; False when it is time to end."""
        with self._changed:
            while not (self._inbox or self._submissions or self._stopping):
                self._beat = time.monotonic()
                self._changed.wait(timeout=10)
            self._beat = time.monotonic()
            arrived, self._inbox = self._inbox, deque()
            gone = [submission for submission in self._submissions.values() if submission.cancelled]
        for submission in arrived:
            if submission.cancelled:
                self._left(submission, cancelled=True)
                continue
            try:
                submission.request = self._engine.submit(submission.prompt, submission.sampling)
            except Exception as error:
                self._left(submission)
                _tell(submission, error if isinstance(error, UserError) else RequestFailed(str(error)))
            else:
                self._submissions[submission.request] = submission
        for submission in gone:
            assert submission.request is not None
            in_slot = not self._engine.waits(submission.request)
            self._engine.cancel(submission.request)
            del self._submissions[submission.request]
            self._left(submission, in_slot=in_slot, cancelled=True)
        return not self._stopping

    def _deliver(self, event: Event) -> None:
        submission, now = self._submissions[event.request], time.monotonic()
        (self._metrics.inter_token if submission.tokens else self._metrics.first_token).observe(now - submission.at)
        if not submission.tokens:
            submission.begun = now
            self._metrics.reused.inc(event.request.reused)
        submission.tokens, submission.at = submission.tokens + 1, now
        self._metrics.generated.inc()
        if event.finish_reason is not None:
            del self._submissions[event.request]
            self._left(submission, in_slot=True)
        _tell(submission, event)


def _tell(submission: Submission, what: Event | Exception) -> None:
    """Deliver; who can't take what he asked for is no concern of the others."""
    try:
        submission.deliver(what)
    except Exception:
        _log.exception("a request's event could not be delivered")
        submission.cancelled = True
