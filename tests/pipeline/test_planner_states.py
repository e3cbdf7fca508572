"""Every outcome in every state that a stage may be in, and a world in which anything may happen."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.pipeline.graph import build_graph
from nanochat.pipeline.outcomes import Outcome, Reason
from nanochat.pipeline.planner import MADE, Attempt, Observed, Phase, Start, Stop, plan
from nanochat.pipeline.sentences import Said
from nanochat.spec.pipeline import PipelineSpec

SPEC = PipelineSpec()
GRAPH = build_graph(SPEC)
BEFORE = frozenset(out.key for stage in ("dataset", "tokenizer", "tokens") for out in GRAPH.node(stage).outputs)
KEY = GRAPH.node("base").outputs[0].key

# What follows one attempt of base that ended so, when nothing else is the matter.
FOLLOWS = {
    Reason.SUCCEEDED: Phase.RETRYING,  # its output is gone again
    Reason.PREEMPTED: Phase.RUNNING,
    Reason.OUT_OF_MEMORY: Phase.RUNNING,
    Reason.STALLED: Phase.RUNNING,  # what it took to be seen was delay enough
    Reason.INFRASTRUCTURE: Phase.RETRYING,
    Reason.ERROR: Phase.RETRYING,
    Reason.DIVERGED: Phase.FAILED,
    Reason.USER_ERROR: Phase.FAILED,
}
# What a state makes of a stage that would start, wait for its next try, or has failed.
STATES = {
    "nothing": (Observed(present=BEFORE), Phase.RUNNING, Phase.RETRYING, Phase.FAILED),
    "suspended": (Observed(present=BEFORE, suspended=True), Phase.SUSPENDED, Phase.SUSPENDED, Phase.FAILED),
    "cancelled": (Observed(present=BEFORE, cancelled=True), Phase.CANCELLED, Phase.CANCELLED, Phase.CANCELLED),
    "held": (Observed(present=BEFORE, hold="storage is away"), Phase.WAITING, Phase.WAITING, Phase.FAILED),
    "elsewhere": (Observed(present=BEFORE, elsewhere={KEY: "older"}), Phase.WAITING, Phase.RETRYING, Phase.FAILED),
    "inputs gone": (Observed(present=frozenset()), Phase.WAITING, Phase.WAITING, Phase.FAILED),
    "retried": (Observed(present=BEFORE), Phase.RUNNING, Phase.RUNNING, Phase.RUNNING),
    "made": (Observed(present=BEFORE | {KEY}), Phase.CACHED, Phase.CACHED, Phase.CACHED),
    "no place": (Observed(present=BEFORE, slots={"gpu": 0, "cpu": 1}), Phase.QUEUED, Phase.RETRYING, Phase.FAILED),
}


def ended(reason: Reason, *, number: int = 1, host: bool = False, memory: float = 1.0, size: int = 32) -> Attempt:
    outcome = Outcome(reason=reason, message="why", host=host)
    return Attempt(number, device_batch_size=size, ended=10.0, outcome=outcome, memory=memory)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("reason", list(Reason))
def test_every_outcome_in_every_state(reason: Reason, state: str) -> None:
    observed, starts, waits, failed = STATES[state]
    attempt = replace(ended(reason), former=state == "retried")
    observed = replace(observed, attempts={"base": [attempt]})
    actions, status = plan(GRAPH, SPEC, observed, 12.0)
    expected = {Phase.RUNNING: starts, Phase.RETRYING: waits, Phase.FAILED: failed}[FOLLOWS[reason]]
    if state == "made" and reason is Reason.SUCCEEDED:
        expected = Phase.SUCCEEDED
    assert status.of("base").phase is expected
    launches = [action for action in actions if action.stage == "base"]
    assert [type(action) for action in launches] == ([Start] if expected is Phase.RUNNING else [])
    assert all(isinstance(action, Start) and action.attempt == 2 for action in launches)


LIVE = Attempt(3, device_batch_size=32)
SILENT = replace(LIVE, silence=1e4)
NO_ROOM = replace(SILENT, waiting=Said("Unschedulable", "no room"))


@pytest.mark.parametrize(
    ("attempt", "observed", "phase", "stop"),
    [
        pytest.param(LIVE, Observed(present=BEFORE), Phase.RUNNING, None, id="runs"),
        pytest.param(SILENT, Observed(present=BEFORE), Phase.STOPPING, "stalled", id="silent"),
        pytest.param(
            replace(LIVE, silence=1e3, begun=False), Observed(present=BEFORE), Phase.RUNNING, None, id="begins"
        ),
        pytest.param(
            replace(SILENT, begun=False), Observed(present=BEFORE), Phase.STOPPING, "stalled", id="never begins"
        ),
        pytest.param(NO_ROOM, Observed(present=BEFORE), Phase.PENDING, None, id="pending"),
        pytest.param(replace(LIVE, stale=True), Observed(present=BEFORE), Phase.STOPPING, "edited", id="edited"),
        pytest.param(LIVE, Observed(present=BEFORE, suspended=True), Phase.STOPPING, "suspended", id="suspended"),
        pytest.param(LIVE, Observed(present=BEFORE, cancelled=True), Phase.STOPPING, "cancelled", id="cancelled"),
        pytest.param(LIVE, Observed(present=BEFORE, hold="why"), Phase.RUNNING, None, id="held"),
        pytest.param(LIVE, Observed(present=BEFORE, elsewhere={KEY: "x"}), Phase.RUNNING, None, id="elsewhere"),
        pytest.param(replace(SILENT, stopping=True), Observed(present=BEFORE), Phase.STOPPING, None, id="stopping"),
        pytest.param(replace(LIVE, made=True), Observed(present=BEFORE), Phase.STOPPING, MADE, id="made"),
    ],
)
def test_an_attempt_that_runs(attempt: Attempt, observed: Observed, phase: Phase, stop: str | None) -> None:
    actions, status = plan(GRAPH, SPEC, replace(observed, attempts={"base": [attempt]}), 2.0)
    assert status.of("base").phase is phase
    assert [action for action in actions if action.stage == "base"] == ([Stop("base", 3, stop)] if stop else [])


@pytest.mark.parametrize(
    ("attempts", "limit", "memory", "size"),
    [
        pytest.param([ended(Reason.OUT_OF_MEMORY)], 4.0, 1.0, 16, id="of the device: fewer rows"),
        pytest.param([ended(Reason.OUT_OF_MEMORY, host=True)], 4.0, 2.0, 32, id="of the host: more memory"),
        pytest.param([ended(Reason.OUT_OF_MEMORY, host=True)], 1.0, 1.0, 16, id="of the host at its limit: fewer rows"),
        pytest.param([ended(Reason.OUT_OF_MEMORY, host=True, memory=2.0)], 3.0, 3.0, 32, id="up to the limit"),
        pytest.param([ended(Reason.OUT_OF_MEMORY, host=True, memory=3.0)], 3.0, 3.0, 16, id="then fewer rows"),
        pytest.param(
            [ended(Reason.OUT_OF_MEMORY, host=True), ended(Reason.PREEMPTED, number=2, memory=2.0)],
            4.0, 2.0, 32, id="it stays",
        ),
    ],
)  # fmt: skip
def test_memory(attempts: list[Attempt], limit: float, memory: float, size: int) -> None:
    observed = Observed(present=BEFORE, attempts={"base": attempts}, memory_limits={"base": limit})
    (launch,) = plan(GRAPH, SPEC, observed, 12.0)[0]
    assert isinstance(launch, Start)
    assert (launch.memory, launch.device_batch_size) == (memory, size)


def test_a_stage_without_rows_says_what_to_give_it() -> None:
    attempts = {"dataset": [ended(Reason.OUT_OF_MEMORY, host=True, size=1)]}
    _, status = plan(GRAPH, SPEC, Observed(present=frozenset(), attempts=attempts), 12.0)
    assert status.of("dataset").phase is Phase.FAILED
    assert "memory request" in status.of("dataset").message


def test_attempts_of_what_an_edit_replaced_do_not_count() -> None:
    attempts = [replace(ended(Reason.USER_ERROR, number=4), stale=True)]
    (launch,) = plan(GRAPH, SPEC, Observed(present=BEFORE, attempts={"base": attempts}), 12.0)[0]
    assert isinstance(launch, Start) and launch.attempt == 5


@pytest.mark.parametrize(
    ("stage", "asked", "begun", "says"),
    [
        ("base", "suspended", True, "saves a checkpoint"),
        ("base", "yielded", False, "ends"),
        ("base", "stalled", True, "ends"),
        ("base", "", True, "ends"),
        ("tokens", "suspended", True, "ends"),
        ("eval-base", "cancelled", True, "ends"),
    ],
)
def test_what_a_stage_does_while_it_stops(stage: str, asked: str, begun: bool, says: str) -> None:
    """Only what trains, has made a step and was asked to end has a state to save."""
    attempt = Attempt(1, device_batch_size=8, stopping=True, asked=asked, begun=begun)
    _, status = plan(GRAPH, SPEC, Observed(present=BEFORE, attempts={stage: [attempt]}), 2.0)
    assert (status.of(stage).phase, status.of(stage).message) == (Phase.STOPPING, says)


@pytest.mark.parametrize(
    ("phases", "overall"),
    [
        ({"base": Attempt(1, 8)}, Phase.RUNNING),
        ({"base": Attempt(1, 8, stopping=True)}, Phase.RUNNING),
        ({"base": Attempt(1, 8, waiting=Said("Evicted", "evicted"))}, Phase.PENDING),
        ({"base": Attempt(1, 8, waiting=Said("Evicted", "evicted")), "tokens": Attempt(1, 8)}, Phase.RUNNING),
        ({"base": ended(Reason.ERROR)}, Phase.RETRYING),
    ],
)
def test_the_pipeline_runs_while_something_of_it_runs(phases: dict[str, Attempt], overall: Phase) -> None:
    attempts = {stage: [attempt] for stage, attempt in phases.items()}
    assert plan(GRAPH, SPEC, Observed(present=BEFORE, attempts=attempts), 12.0)[1].phase is overall


def test_one_that_yielded_says_for_whom_and_why() -> None:
    last = replace(ended(Reason.PREEMPTED), asked="yielded")
    observed = Observed(present=BEFORE, attempts={"base": [last]}, elsewhere={KEY: "waits for pipeline x"})
    _, status = plan(GRAPH, SPEC, observed, 12.0)
    assert status.message == "base: waits for pipeline x; its own attempt ended: why"
    assert status.of("base").outside and not status.of("mid").outside


class World:
    """A cluster that does what the planner says, and to which things happen."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.present: set[str] = set()
        self.attempts: dict[str, list[Attempt]] = {}
        self.reached: dict[str, int] = {}
        self.now = 100.0
        self.suspended = self.hold = False
        self.elsewhere: dict[str, str] = {}

    def observed(self) -> Observed:
        return Observed(
            present=frozenset(self.present),
            attempts={stage: tuple(attempts) for stage, attempts in self.attempts.items()},
            slots={"cpu": 2, "gpu": 2},
            suspended=self.suspended,
            hold="storage is away" if self.hold else "",
            elsewhere={key: name for key, name in self.elsewhere.items() if key not in self.present},
        )

    def end(self, stage: str, reason: Reason) -> None:
        *before, last = self.attempts[stage]
        if reason is Reason.SUCCEEDED:
            self.present.update(out.key for out in GRAPH.node(stage).outputs)
        if self.dice.random() < 0.5:
            self.reached[stage] = self.reached.get(stage, 0) + 1
        outcome = Outcome(reason=reason, message="why")
        reached = self.reached.get(stage, 0)
        self.attempts[stage] = [
            *before,
            replace(last, ended=self.now, outcome=outcome, stopping=False, reached=reached),
        ]

    def act(self) -> Phase:
        """One turn of a controller, with what must always hold of it."""
        observed = self.observed()
        actions, status = plan(GRAPH, SPEC, observed, self.now)
        assert plan(GRAPH, SPEC, observed, self.now) == (actions, status), "it says the same again"
        assert {item.stage for item in status.stages} == set(GRAPH.stages), "no stage is forgotten"
        for action in actions:
            attempts = self.attempts.get(action.stage, [])
            live = bool(attempts) and attempts[-1].outcome is None
            if isinstance(action, Start):
                missing = {out.key for out in GRAPH.node(action.stage).outputs} - self.present
                assert not live, "a stage is launched once at a time"
                assert {out.key for out in action.outputs} <= missing and action.outputs, "only what is missing is made"
                assert set(GRAPH.node(action.stage).needs.values()) <= self.present, "its inputs are there"
                assert action.attempt == (attempts[-1].number + 1 if attempts else 1), "numbers rise"
                assert not self.suspended and not self.hold
                new = Attempt(action.attempt, action.device_batch_size)
                self.attempts[action.stage] = [*attempts, new]
            else:
                assert live and not attempts[-1].stopping, "what runs is stopped once"
                self.attempts[action.stage] = [*attempts[:-1], replace(attempts[-1], stopping=True)]
        return status.phase

    def happen(self) -> None:
        """Something random: now and then somebody sets the clock."""
        passed = self.dice.choice([0.5, 5.0, 60.0, 1000.0])
        self.now += passed + (self.dice.choice([-3600.0, 7200.0]) if self.dice.random() < 0.1 else 0.0)
        for stage, attempts in self.attempts.items():
            last = attempts[-1]
            if last.outcome is not None:
                continue
            if last.stopping or self.dice.random() < 0.5:
                self.end(stage, self.dice.choice(list(Reason)) if not last.stopping else Reason.PREEMPTED)
            elif self.dice.random() < 0.5:
                self.attempts[stage] = [*attempts[:-1], replace(last, silence=0.0)]
            else:
                self.attempts[stage] = [*attempts[:-1], replace(last, silence=last.silence + passed)]
        event = self.dice.random()
        if event < 0.05 and self.present:
            self.present.discard(self.dice.choice(sorted(self.present)))
        elif event < 0.15:
            self.suspended = not self.suspended
        elif event < 0.25:
            self.hold = not self.hold
        elif event < 0.3:
            node = self.dice.choice(GRAPH.nodes)
            self.elsewhere = {} if self.elsewhere else {node.outputs[0].key: "older"}
        elif event < 0.4:
            self.retry()

    def retry(self) -> None:
        """A user asks for one more try."""
        for stage, attempts in self.attempts.items():
            self.attempts[stage] = [replace(item, former=item.outcome is not None) for item in attempts]

    def calm_down(self) -> None:
        """From now on everything goes well."""
        self.suspended, self.hold, self.elsewhere = False, False, {}
        self.now += 1.0
        self.retry()


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), turns=st.integers(0, 60))
def test_whatever_happens_it_neither_doubles_nor_forgets_nor_loops(seed: int, turns: int) -> None:
    world = World(seed)
    for _ in range(turns):
        world.act()
        world.happen()
    for stage, attempts in list(world.attempts.items()):
        if attempts and attempts[-1].outcome is None:
            world.end(stage, Reason.PREEMPTED)
    world.calm_down()
    for _ in range(3 * len(GRAPH.stages)):
        if world.act() is Phase.SUCCEEDED:
            break
        world.now += 400.0
        for stage, attempts in list(world.attempts.items()):
            if attempts[-1].outcome is None:
                world.end(stage, Reason.SUCCEEDED)
    assert world.act() is Phase.SUCCEEDED, "once things go well it comes to its end in as many turns as it has stages"


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_without_progress_it_ends(seed: int) -> None:
    """Failures that change nothing are not answered for ever."""
    world = World(seed)
    bad = [reason for reason in Reason if reason is not Reason.SUCCEEDED]
    for _ in range(len(GRAPH.stages) * (SPEC.retries.limit + 8)):
        if world.act() is Phase.FAILED:
            return
        world.now += SPEC.retries.max_delay_seconds
        for stage, attempts in list(world.attempts.items()):
            if attempts[-1].outcome is None:
                world.end(stage, world.dice.choice(bad))
                world.reached[stage] = 0
                world.attempts[stage][-1] = replace(world.attempts[stage][-1], reached=0)
    raise AssertionError("it went on for ever")
