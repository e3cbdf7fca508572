"""How fast the machines were that this store has seen, beside what was assumed: learned from the runs in it.

    rates = learn(store, artifacts)
    rates.of("AMD EPYC x 2", "base")      # Rate(ratio=1.3, runs=2); ratio 1 and no run where none was seen

A run tells by its records: how long each attempt ran, on which device (the event `environment` of its journal), and its
declaration, from which its work follows as that of a new run does. Stages that ran side by side on one machine shared
it: each took its share of that time, so that the times of all add up to the run's.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from nanochat.pipeline.admission import admit_local
from nanochat.pipeline.attempts import AttemptRecord, read_attempts
from nanochat.pipeline.collection import StoredRun, stored_runs
from nanochat.pipeline.estimate import Machine, assumed_seconds, kind_of
from nanochat.pipeline.outcomes import Reason
from nanochat.pipeline.run_status import read_declaration
from nanochat.pipeline.work import Known, Sizing
from nanochat.runtime.accelerators import short_name
from nanochat.spec.errors import NanochatError
from nanochat.spec.load import check_pipeline
from nanochat.storage import Artifacts, Store
from nanochat.tracking.journal import JournalReader

log = logging.getLogger(__name__)

MOST_RUNS = 20  # that are read, the newest
LEAST, LARGEST = 0.01, 100.0  # ratio that makes sense


@dataclass(frozen=True, slots=True)
class Rate:
    """How many times as long as assumed a kind of stage took, in so many runs."""

    ratio: float = 1.0
    runs: int = 0


@dataclass(slots=True)
class Rates:
    """All that was learned."""

    seen: dict[tuple[str, str], list[float]] = field(default_factory=dict)  # device, kind -> ratios, the newest first

    def of(self, device: str, kind: str) -> Rate:
        """The rate of a kind of stage on a device: its own, else that of all kinds there."""
        own = self.seen.get((device, kind), [])
        if own:
            return Rate(statistics.median(own[:3]), len(own))
        others = [statistics.median(found[:3]) for (name, _), found in self.seen.items() if name == device]
        return Rate(statistics.median(others), 0) if others else Rate()

    def knows(self, device: str) -> bool:
        """Whether something is known of a device."""
        return any(name == device for name, _ in self.seen)


def learn(store: Store, artifacts: Artifacts) -> Rates:
    """The rates of the newest runs. One that cannot be read teaches nothing."""
    rates, known = Rates(), Known(artifacts)
    for run in list(stored_runs(store, skip_senseless=True))[:MOST_RUNS]:
        try:
            _learn_from(store, known, run, rates)
        except (NanochatError, ValueError, LookupError) as error:
            log.debug("nothing is learned from %s: %s", run.paths.root, error)
    return rates


def _learn_from(store: Store, known: Known, run: StoredRun, rates: Rates) -> None:
    paths, on_one_machine = run.paths, bool(run.status.home)
    admitted = admit_local(check_pipeline(read_declaration(store, paths), where=paths.root))
    sizing, journal = Sizing(admitted.spec, admitted.graph, known), JournalReader(store, paths.root)
    attempts = {node.stage: read_attempts(store, paths, node.stage) for node in admitted.graph.nodes}
    beside = [each for found in attempts.values() for each in found if on_one_machine and not each.gpus]
    for node in admitted.graph.nodes:
        whole = _whole(attempts[node.stage], len(node.outputs))
        if whole is None:
            continue
        environment = next((e.data for e in journal.history(node.stage).events if e.kind == "environment"), {})
        machine = machine_of(environment, whole.gpus)
        work = sizing.work(node.stage, node.outputs)
        assumed = assumed_seconds(
            node.stage, work, admitted.spec.of_stage(node.stage), admitted.graph.horizon.model, machine
        )
        ratio = whole.ran(0.0) * (share(whole, beside) if whole in beside else 1.0) / assumed
        if LEAST <= ratio <= LARGEST:
            rates.seen.setdefault((machine.name, kind_of(node.stage, admitted.spec)), []).append(ratio)


def share(attempt: AttemptRecord, beside: Sequence[AttemptRecord]) -> float:
    """An attempt's part of its machine, from its start to its end: half while another one ran there too."""
    begin, end = attempt.started, attempt.ended or attempt.started
    if end <= begin:
        return 1.0
    spans = [(each.started, each.ended or each.started) for each in beside]
    times = sorted({begin, end, *(time for span in spans for time in span if begin < time < end)})
    return sum(
        (until - since) / sum(first <= since and until <= last for first, last in spans)
        for since, until in pairwise(times)
    ) / (end - begin)


def _whole(attempts: list[AttemptRecord], outputs: int) -> AttemptRecord | None:
    """The attempt that did all of a stage's work, if one did."""
    done = [a for a in attempts if a.outcome and a.outcome.reason is Reason.SUCCEEDED and len(a.keys) == outputs]
    return done[0] if len(attempts) == 1 and done else None


def machine_of(environment: Mapping[str, object], gpus: int) -> Machine:
    """The machine that an environment tells of, with so many GPUs at work."""
    cores, found = environment.get("cpus"), environment.get("gpus")
    cores = cores if isinstance(cores, int) and cores > 0 else 1
    names = list(_names(found))
    if names:
        return Machine(short_name(names[0]), cores, gpus or 1)
    return Machine(f"{str(environment.get('cpu') or 'CPU')[:100]} x {cores}", cores)


def _names(gpus: object) -> Iterator[str]:
    for gpu in gpus if isinstance(gpus, list) else ():
        if isinstance(gpu, dict) and gpu.get("name"):
            yield str(gpu["name"])[:100]
