"""The planner as a table of stories: what was observed, and what follows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.pipeline.graph import build_graph
from nanochat.pipeline.outcomes import Outcome, Reason
from nanochat.pipeline.planner import Attempt, Observed, Phase, Start, Stop, decide_retry, plan
from nanochat.spec.pipeline import PipelineSpec

SPEC = PipelineSpec()
GRAPH = build_graph(SPEC)
WIDE = {"cpu": 2, "gpu": 2}


def keys(*stages: str) -> frozenset[str]:
    return frozenset(out.key for stage in stages for out in GRAPH.node(stage).outputs)


def ended(
    number: int, reason: Reason, *, reached: int = 0, size: int = 32, at: float = 10.0, asked: str = ""
) -> Attempt:
    outcome = Outcome(reason=reason, message="a reason")
    return Attempt(number=number, device_batch_size=size, ended=at, outcome=outcome, reached=reached, asked=asked)


def running(number: int = 1, **more: Any) -> Attempt:
    return Attempt(number=number, device_batch_size=32, **more)


def launched(observed: Observed, now: float = 100.0) -> list[str]:
    return [action.stage for action in plan(GRAPH, SPEC, observed, now)[0] if isinstance(action, Start)]


def test_nothing_there_starts_with_the_dataset() -> None:
    assert launched(Observed(present=frozenset())) == ["dataset"]


def test_everything_there_is_success_without_action() -> None:
    actions, status = plan(GRAPH, SPEC, Observed(present=keys(*GRAPH.stages)), 100.0)
    assert actions == []
    assert status.phase is Phase.SUCCEEDED
    assert {item.phase for item in status.stages} == {Phase.CACHED}


def test_only_missing_outputs_are_asked_for() -> None:
    shard = GRAPH.node("dataset").outputs[0].key
    actions, _ = plan(GRAPH, SPEC, Observed(present=frozenset({shard})), 100.0)
    (launch,) = actions
    assert isinstance(launch, Start)
    assert shard not in {out.key for out in launch.outputs}
    assert len(launch.outputs) == len(GRAPH.node("dataset").outputs) - 1


def test_inputs_that_nothing_needs_any_more_are_not_made_again() -> None:
    present = keys(*GRAPH.stages) - keys("dataset")
    actions, status = plan(GRAPH, SPEC, Observed(present=present), 100.0)
    assert actions == []
    assert status.of("dataset").phase is Phase.UNNEEDED
    assert status.phase is Phase.SUCCEEDED


@pytest.mark.parametrize("lost", [{"base"}, {"base", "tokens", "dataset"}, {"report"}])
def test_a_run_that_has_ended_makes_nothing_anew_by_itself(lost: set[str]) -> None:
    every = keys(*GRAPH.stages)
    observed = Observed(present=every - keys(*lost), made=every)
    actions, status = plan(GRAPH, SPEC, observed, 100.0)
    stage = "report" if "report" in lost else "base"
    ref = GRAPH.node(stage).outputs[0].ref
    assert (actions, status.phase) == ([], Phase.SUCCEEDED)
    assert status.message == f"{stage}: {ref} is gone or damaged: `nanochat retry` makes it anew"
    assert launched(replace(observed, made=frozenset())) != [], "when it is asked to"


def test_a_stage_that_had_failed_may_be_tried_while_another_is_gone() -> None:
    present = keys("dataset", "tokenizer", "tokens", "mid", "eval-base")
    observed = Observed(present=present, made=present | keys("base"), attempts={"sft": [ended(1, Reason.USER_ERROR)]})
    actions, status = plan(GRAPH, SPEC, observed, 100.0)
    assert "base" not in [action.stage for action in actions]
    assert (status.of("base").phase, status.of("sft").phase) == (Phase.SUCCEEDED, Phase.FAILED)


def test_the_next_stage_starts_before_the_evaluation() -> None:
    present = keys("dataset", "tokenizer", "tokens", "base")
    assert launched(Observed(present=present)) == ["mid"]
    assert launched(Observed(present=present, slots=WIDE)) == ["mid", "eval-base"]


def test_a_running_stage_is_left_alone() -> None:
    present = keys("dataset", "tokenizer", "tokens")
    actions, status = plan(GRAPH, SPEC, Observed(present=present, attempts={"base": [running()]}), 100.0)
    assert actions == []
    assert status.of("base").phase is Phase.RUNNING
    assert status.of("mid").phase is Phase.WAITING


def test_silence_beyond_the_limit_is_a_stall() -> None:
    present, retries = keys("dataset", "tokenizer", "tokens"), SPEC.retries
    for begun, limit in ((True, retries.stall_seconds), (False, retries.start_seconds)):
        for silence, actions in ((limit, []), (limit + 1, [Stop("base", 1, "stalled")])):
            observed = Observed(present=present, attempts={"base": [running(silence=silence, begun=begun)]})
            assert plan(GRAPH, SPEC, observed, 100.0)[0] == actions


@pytest.mark.parametrize("what", ["suspended", "cancelled"])
def test_suspend_and_cancel_stop_what_runs_once(what: str) -> None:
    present = keys("dataset", "tokenizer", "tokens")
    observed = Observed(present=present, attempts={"base": [running()]}, **{what: True})
    assert plan(GRAPH, SPEC, observed, 2.0)[0] == [Stop("base", 1, what)]
    observed = Observed(present=present, attempts={"base": [running(stopping=True)]}, **{what: True})
    assert plan(GRAPH, SPEC, observed, 2.0)[0] == []
    observed = Observed(present=present, attempts={"base": [ended(1, Reason.PREEMPTED, reached=5)]}, **{what: True})
    actions, status = plan(GRAPH, SPEC, observed, 20.0)
    assert actions == []
    assert status.phase in (Phase.SUSPENDED, Phase.CANCELLED)


@pytest.mark.parametrize(
    ("attempts", "failure", "not_before", "size"),
    [
        pytest.param([], False, 0.0, None, id="first"),
        pytest.param([ended(1, Reason.PREEMPTED, reached=5)], False, 0.0, None, id="preempted after progress"),
        pytest.param([ended(1, Reason.PREEMPTED)], False, 0.0, None, id="preempted early: at once"),
        pytest.param([ended(n, Reason.PREEMPTED) for n in (1, 2)], False, 15.0, None, id="and again: a delay"),
        pytest.param([ended(n, Reason.PREEMPTED) for n in (1, 2, 3)], False, 20.0, None, id="that grows"),
        pytest.param(
            [ended(n, Reason.PREEMPTED) for n in range(1, 90)], False, 310.0, None, id="but it never fails for that"
        ),
        pytest.param(
            [ended(n, Reason.PREEMPTED, asked="suspended") for n in range(1, 9)], False, 0.0, None, id="suspends"
        ),
        pytest.param(
            [ended(n, Reason.INFRASTRUCTURE, asked="yielded") for n in range(1, 9)],
            False,
            0.0,
            None,
            id="a stop that did not go well",
        ),
        pytest.param(
            [ended(n, Reason.STALLED, asked="stalled") for n in range(1, 5)], True, 0.0, None, id="stalls count"
        ),
        pytest.param(
            [*(ended(n, Reason.INFRASTRUCTURE) for n in (1, 2)), ended(3, Reason.PREEMPTED)],
            False,
            0.0,
            None,
            id="taken away after failures: at once",
        ),
        pytest.param([ended(1, Reason.INFRASTRUCTURE)], False, 15.0, None, id="infrastructure waits"),
        pytest.param([ended(n, Reason.INFRASTRUCTURE) for n in (1, 2)], False, 20.0, None, id="and longer"),
        pytest.param([ended(n, Reason.ERROR) for n in range(1, 5)], True, 0.0, None, id="errors end"),
        pytest.param(
            [ended(n, Reason.ERROR, reached=n) for n in range(1, 9)], False, 0.0, None, id="progress resets the count"
        ),
        pytest.param([ended(1, Reason.USER_ERROR)], True, 0.0, None, id="user error fails now"),
        pytest.param([ended(1, Reason.DIVERGED)], True, 0.0, None, id="diverged fails now"),
        pytest.param([ended(1, Reason.OUT_OF_MEMORY)], False, 0.0, 16, id="memory halves the rows"),
        pytest.param(
            [ended(1, Reason.OUT_OF_MEMORY, size=2), ended(2, Reason.INFRASTRUCTURE, size=1)],
            False,
            15.0,
            1,
            id="and keeps them halved",
        ),
        pytest.param([ended(1, Reason.OUT_OF_MEMORY, size=1)], True, 0.0, None, id="one row does not fit"),
    ],
)
def test_outcomes(attempts: list[Attempt], failure: bool, not_before: float, size: int | None) -> None:
    decision = decide_retry(attempts, SPEC)
    assert bool(decision.failure) is failure
    if not failure:
        assert decision.not_before == not_before
        assert decision.device_batch_size == size


def test_a_retry_forgets_attempts_before_it_but_not_their_memory() -> None:
    attempts = [ended(1, Reason.OUT_OF_MEMORY, size=8), ended(2, Reason.USER_ERROR)]
    assert decide_retry(attempts, SPEC).failure
    former = [replace(attempt, former=True) for attempt in attempts]
    assert decide_retry(former, SPEC).device_batch_size == 4


@pytest.mark.parametrize(
    ("stage", "declared", "processes", "tried", "size"),
    [
        ("base", {"totalBatchTokens": 4096}, 1, [32], 4),  # 8 rows of 512 tokens
        ("base", {"totalBatchTokens": 4096}, 1, [32, 4], 2),
        ("base", {"totalBatchTokens": 4096}, 3, [32], 1),  # 3 and 3 and 2 rows
        ("base", {"totalBatchTokens": 65536}, 1, [32], 16),
        ("base", {"scalingRules": True, "steps": 1, "totalBatchTokens": 512}, 1, [32], 2),  # 4 rows, by the rules
        ("mid", {"totalBatchTokens": 4096}, 2, [32], 2),
        ("sft", {"rowsPerStep": 3}, 1, [4], 1),
        ("sft", {}, 16, [4], 1),
        ("rl", {"promptsPerStep": 1, "samplesPerPrompt": 2}, 1, [8], 4),
        ("eval-base", {}, 1, [32], 16),
    ],
)
def test_rows_are_halved_from_those_that_a_process_has_of_a_step(
    stage: str, declared: dict[str, Any], processes: int, tried: list[int], size: int
) -> None:
    spec = PipelineSpec.model_validate(
        {"model": {"sequenceLength": 512}, "stages": {"evalBase" if stage == "eval-base" else stage: declared}}
    )
    graph = build_graph(spec)
    present = frozenset(out.key for node in graph.nodes if node.stage != stage for out in node.outputs)
    attempts = [
        replace(ended(number, Reason.OUT_OF_MEMORY, size=rows), processes=processes)
        for number, rows in enumerate(tried, 1)
    ]
    (action,), _ = plan(graph, spec, Observed(present=present, attempts={stage: attempts}), 100.0)
    assert isinstance(action, Start) and (action.stage, action.device_batch_size) == (stage, size)


@pytest.mark.parametrize(("now", "waits"), [(10.0, True), (14.9, True), (15.1, False), (9.9, False), (-3600.0, False)])
def test_a_clock_that_was_set_back_prolongs_no_delay(now: float, waits: bool) -> None:
    attempts = {"base": [ended(1, Reason.INFRASTRUCTURE, at=10.0)]}
    observed = Observed(present=keys("dataset", "tokenizer", "tokens"), attempts=attempts)
    assert launched(observed, now) == ([] if waits else ["base"])


def test_a_failed_stage_blocks_what_needs_it_and_nothing_else() -> None:
    present = keys("dataset", "tokenizer", "tokens", "base")
    observed = Observed(present=present, attempts={"mid": [ended(1, Reason.USER_ERROR)]}, slots=WIDE)
    actions, status = plan(GRAPH, SPEC, observed, 100.0)
    assert [action.stage for action in actions if isinstance(action, Start)] == ["eval-base"]
    assert status.of("sft").phase is Phase.BLOCKED
    assert status.of("report").phase is Phase.BLOCKED
    present |= keys("eval-base")
    _, status = plan(GRAPH, SPEC, Observed(present=present, attempts=observed.attempts), 100.0)
    assert status.phase is Phase.FAILED
    assert status.message.startswith("mid:")


def test_only_names_the_stage_whose_output_is_missing() -> None:
    observed = Observed(present=keys("dataset", "tokenizer"), selected=frozenset({"base"}))
    actions, status = plan(GRAPH, SPEC, observed, 100.0)
    assert actions == []
    assert status.phase is Phase.FAILED
    assert "--only tokens" in status.message
    assert launched(Observed(present=frozenset(), selected=frozenset({"dataset"}))) == ["dataset"]


REASONS = st.sampled_from([r for r in Reason if r is not Reason.SUCCEEDED])


@settings(max_examples=60)
@given(st.lists(st.tuples(REASONS, st.booleans(), st.floats(0, 60)), max_size=60))
def test_whatever_happens_it_ends_and_never_doubles(story: list[tuple[Reason, bool, float]]) -> None:
    """A world that fails at random: no stage is launched twice at once, none is forgotten, and it ends."""
    present: set[str] = set()
    attempts: dict[str, list[Attempt]] = {}
    now, events = 0.0, iter(story)
    for _ in range(500):
        observed = Observed(present=frozenset(present), attempts=attempts, slots=WIDE)
        actions, status = plan(GRAPH, SPEC, observed, now)
        assert plan(GRAPH, SPEC, observed, now) == (actions, status)
        for action in actions:
            assert isinstance(action, Start)
            history = attempts.setdefault(action.stage, [])
            assert not history or history[-1].outcome is not None
            assert action.attempt == len(history) + 1
            assert set(GRAPH.node(action.stage).needs.values()) <= present
            history.append(Attempt(number=action.attempt, device_batch_size=action.device_batch_size))
        live = [stage for stage, history in attempts.items() if history[-1].outcome is None]
        if not live:
            if status.phase is Phase.RETRYING:
                now = max(now, min(item.until for item in status.stages if item.until is not None))
                continue
            assert status.phase in (Phase.SUCCEEDED, Phase.FAILED)
            return
        for stage in live:
            reason, further, took = next(events, (Reason.SUCCEEDED, True, 1.0))
            now += took
            last = attempts[stage][-1]
            reached = max((a.reached for a in attempts[stage]), default=0) + further
            attempts[stage][-1] = Attempt(
                number=last.number,
                device_batch_size=last.device_batch_size,
                ended=now,
                outcome=Outcome(reason=reason),
                reached=reached,
            )
            if reason is Reason.SUCCEEDED:
                present |= keys(stage)
    raise AssertionError("it went on forever")
