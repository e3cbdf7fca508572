"""A pipeline's run as the commands see it, on this machine or on a cluster.

    run = find_handle(name, store=store, namespace=namespace, context=context)     # nanochat.cli.find
    if run.is_live:
        run.cancel()

`LocalRun` and `ClusterRun` are such handles: a command asks for what it needs and need not know which one it has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nanochat.pipeline.log_reader import LaunchLogs
from nanochat.pipeline.run_status import StageRunStatus
from nanochat.spec.errors import NanochatError

if TYPE_CHECKING:
    from nanochat.tracking.registry import Registry


class Unanswered(NanochatError):
    """A run that cannot be asked at the moment; the same question may be answered later."""


@dataclass(frozen=True, slots=True)
class StageProgress:
    """How far a running stage is: in words, and the loss after a step where it has one."""

    text: str
    step: int = 0
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class Happened:
    """Something that happened to a run, at a time in seconds since 1970."""

    time: float
    text: str


class LogSource(Protocol):
    """A pipeline whose logs are kept. All but `name` may raise Unanswered."""

    @property
    def name(self) -> str: ...

    def look(self) -> tuple[bool, Sequence[StageRunStatus]]:
        """Whether it goes on, and its stages, both as of now."""
        ...

    def launches(self, stage: str) -> Sequence[LaunchLogs]:
        """All launches of a stage in the order in which they began."""
        ...

    def read(self, stage: str, launch: str, file: str, offset: int) -> bytes:
        """The bytes of a log from `offset` on, or the first part of them; empty at its end."""
        ...


class RunHandle(ABC, LogSource):
    """A run with all that the commands ask of it. UserError says what cannot be done, Unanswered what may be later."""

    # ---- where it stands --------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def phase(self) -> str: ...

    @property
    @abstractmethod
    def place(self) -> str:
        """The store or the cluster and namespace that it is in, where no other has its name."""

    @property
    @abstractmethod
    def is_live(self) -> bool:
        """Whether more may come of it."""

    @property
    @abstractmethod
    def document(self) -> Mapping[str, Any]:
        """All that is known of it, for programs."""

    @property
    @abstractmethod
    def headline(self) -> str:
        """Name, phase and message, in a line."""

    @property
    @abstractmethod
    def stages(self) -> Sequence[StageRunStatus]: ...

    @abstractmethod
    def progress(self, stage: str) -> StageProgress | None:
        """How far a running stage is, its losses and rates; None where it has not reported."""

    @abstractmethod
    def losses(self, stage: str) -> Sequence[tuple[int, float]]:
        """The losses that a stage has told so far, by step."""

    @abstractmethod
    def events(self, most: int) -> Sequence[Happened]:
        """The last things that happened, the newest last."""

    @abstractmethod
    def remarks(self) -> Iterator[str]:
        """Lines on what the stages do not tell: failed attempts, warnings, the queue, the cost."""

    # ---- acting -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def command(self, verb: str) -> str:
        """The command line that does something else to this run."""

    @abstractmethod
    def cancel(self) -> None:
        """Ask its stages to save checkpoints and stop."""

    @abstractmethod
    def retry(self) -> int:
        """Go on with it after a failure or a cancellation, and make what is lost or damaged; returns the exit code."""

    # ---- results ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def report(self, folder: Path, *, markdown: bool) -> None:
        """Write its report into a folder and print it: all of it as Markdown, or a summary."""

    @property
    @abstractmethod
    def spec(self) -> Mapping[str, Any]:
        """The declaration's spec as it was given."""

    @abstractmethod
    def missing_weights(self, uri: str, fingerprint: str = "") -> str:
        """Why a model at an address in the run's store, with this fingerprint, cannot be used; '' where it can."""

    @abstractmethod
    def registry(self) -> Registry:
        """The model registry that it releases to."""


def pipeline_name(name: str) -> str:
    """The pipeline that a name, or a file of that name, stands for."""
    return Path(name).stem if name.endswith((".yaml", ".yml")) else name
