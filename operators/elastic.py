"""How many nodes the attempts of an elastic stage get: a stage that declares `minNodes`. Pure functions.

    stage = Elastic.of(spec, "base")                      # None where the number of nodes is fixed
    stage.next_nodes(record)                              # of the attempt that follows this one
    stage.resized(Room(nodes=4, placed=3, lacks=300.0))   # 3: of the attempt that replaces this one; None: it goes on

`operators.room` does what they say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from nanochat.pipeline.planner import ASKED
from nanochat.pipeline.sentences import Said
from nanochat.spec.pipeline import PipelineSpec
from nanochat.spec.training import TrainingStage
from nanochat.tracking.quantities import duration
from operators.attempts import JobAttempt
from operators.observation import AttemptObservation
from operators.sentences import Resize, Wait

QUEUED = (Wait.QUEUE, Wait.EVICTED)
ROOM = (*QUEUED, Wait.PODS, Wait.PODS_REFUSED, Wait.UNSCHEDULABLE, Wait.SCHEDULER, Wait.STARTING)  # fewer may end them


@dataclass(frozen=True, slots=True)
class Room:
    """The room that an attempt has found."""

    nodes: int  # that it is for
    placed: int = 0  # pods that nodes have taken up
    lacks: float | None = None  # seconds for which it has waited for more; None while it does not
    queued: bool = False  # by Kueue, with all its pods
    free: int = 0  # pods that were placed besides, where it runs
    free_for: float = 0.0  # seconds for which no more were


@dataclass(frozen=True, slots=True)
class Elastic:
    """The numbers of nodes that a stage may have."""

    most: int
    least: int
    patience: float  # seconds

    @classmethod
    def of(cls, spec: PipelineSpec, stage: str) -> Self | None:
        """The numbers that a stage declares; None where there is one alone."""
        settings = spec.of_stage(stage)
        if not isinstance(settings, TrainingStage) or settings.least_nodes == settings.nodes:
            return None
        return cls(settings.nodes, settings.least_nodes, settings.patience_seconds)

    def within(self, nodes: int) -> int:
        """The allowed number of nodes that is next to this one."""
        return min(self.most, max(self.least, nodes))

    def next_nodes(self, last: JobAttempt | None) -> int:
        """Nodes of the attempt after this one: as many where it failed or was taken away, all of them after a pause."""
        if last is None or last.former:
            return self.most
        if last.resize:
            return self.within(last.resize)
        return self.most if last.stopping in ASKED else self.within(last.nodes)

    def resized(self, room: Room) -> int | None:
        """Nodes of an attempt that replaces the one with this room; None where that goes on."""
        if room.lacks is None:
            found = room.nodes + room.free
            grows = room.free and (found >= self.most or room.free_for >= self.patience)
            return min(found, self.most) if grows and room.nodes < self.most else None
        if room.lacks < self.patience or room.nodes <= self.least:
            return None
        if room.queued:  # for how many there would be room Kueue does not say
            return (room.nodes + self.least) // 2
        return self.within(room.placed) if self.least <= room.placed < room.nodes else None

    def spares(self, record: JobAttempt, observed: AttemptObservation) -> bool:
        """Whether an attempt could do without the pods that were not made, as where a quota has no room for them."""
        missing = observed.waiting is not None and observed.waiting.wait in (Wait.PODS, Wait.PODS_REFUSED)
        return missing and self.least <= len(observed.pods) < record.nodes

    def told(self, record: JobAttempt, observed: AttemptObservation) -> Said | None:
        """The sentence on an attempt's wait, with what follows where it is for room."""
        waiting = observed.waiting
        if waiting is None or waiting.wait not in ROOM or record.nodes <= self.least:
            return waiting
        follows = Resize.FOLLOWS.of(patience=duration(self.patience), least=self.least).message
        return Said(waiting.reason, f"{waiting.cause if self.spares(record, observed) else waiting.message} {follows}")

    def remark(self, record: JobAttempt) -> Said | None:
        """The sentence on an attempt that runs, where it has not all nodes."""
        return Resize.FEWER.of(nodes=record.nodes, most=self.most) if record.nodes < self.most else None

    def reason(self, record: JobAttempt, nodes: int) -> str:
        """The sentence on the end of an attempt that one with this number of nodes replaces."""
        sentence = Resize.SHRINKS if nodes < record.nodes else Resize.GROWS
        return sentence.of(nodes=nodes, most=self.most, patience=duration(self.patience)).message
