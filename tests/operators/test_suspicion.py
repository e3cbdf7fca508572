"""Suspicion of nodes: on the one whose rank stood, added up, fading, and never more than one pipeline may say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nanochat.pipeline.outcomes import Outcome, Reason
from operators.attempts import JobAttempt
from operators.suspicion import HALF_LIFE, MOST_NODES, MOST_OF_ONE, SHARED, STOOD, Suspicion, blame

PLACEMENT = {"0": "a", "1": "b", "2": "c"}
NOW = 1e6


def record(number: int = 1, *, ended: float = NOW, against: dict[str, float] | None = None) -> JobAttempt:
    return JobAttempt(
        stage="base",
        number=number,
        job=f"demo-base-{number}",
        nodes=3,
        processes=2,
        placement=PLACEMENT,
        hosts=("a", "b", "c"),
        ended=ended,
        blame=against or {},
    )


@pytest.mark.parametrize(
    ("outcome", "stood", "expected"),
    [
        pytest.param(Outcome(Reason.STALLED), ("b",), {"b": STOOD}, id="it stood"),
        pytest.param(Outcome(Reason.STALLED), ("a", "b"), {"a": STOOD / 2, "b": STOOD / 2}, id="two stood"),
        pytest.param(Outcome(Reason.STALLED), (), dict.fromkeys("abc", SHARED / 3), id="nobody knows"),
        pytest.param(Outcome(Reason.INFRASTRUCTURE, rank=3), (), {"b": SHARED}, id="a rank that died"),
        pytest.param(
            Outcome(Reason.INFRASTRUCTURE, rank=3, peer_lost=True),
            (),
            dict.fromkeys("abc", SHARED / 3),
            id="lost a peer",
        ),
        pytest.param(Outcome(Reason.INFRASTRUCTURE, rank=99), (), dict.fromkeys("abc", SHARED / 3), id="no such rank"),
        *(
            pytest.param(Outcome(reason, rank=0), (), {}, id=str(reason))
            for reason in Reason
            if reason not in (Reason.STALLED, Reason.INFRASTRUCTURE)
        ),
    ],
)
def test_what_an_end_says_about_nodes(outcome: Outcome, stood: tuple[str, ...], expected: dict[str, float]) -> None:
    assert blame(record(), outcome, stood) == pytest.approx(expected)


def test_of_one_node_it_is_known() -> None:
    alone = replace(record(), placement={"0": "a"}, hosts=("a",))
    assert blame(alone, Outcome(Reason.STALLED), ()) == {"a": STOOD}


def test_it_adds_up_over_attempts_and_pipelines_and_fades() -> None:
    suspicion = Suspicion()
    suspicion.learn("one", [record(1, against={"a": 1.0}), record(2, against={"a": 1.0, "b": 0.1})])
    for _ in range(3):  # again and again does no harm
        suspicion.learn("two", [record(1, against={"b": 1.0}), record(2)])
    assert list(suspicion.scores(NOW).items()) == [("a", 2.0), ("b", 1.1)]
    assert suspicion.scores(NOW - 3600) == suspicion.scores(NOW), "a clock that was set back"
    assert suspicion.scores(NOW + HALF_LIFE)["a"] == pytest.approx(1.0)
    assert suspicion.scores(NOW + 20 * HALF_LIFE) == {}


def test_a_pipelines_word_has_bounds() -> None:
    """What records say can be written by whoever has the store."""
    suspicion = Suspicion()
    odd: dict[str, Any] = {"A b": 1.0, "": 1.0, "x" * 300: 1.0, "good\n": 1.0, "-a": 1.0}
    suspicion.learn("one", [record(n, ended=1e11, against={"a": 1e9, **odd}) for n in range(1, 50)])
    suspicion.learn("two", [record(against={f"n{n}": 1.0 for n in range(5000)})])
    scores = suspicion.scores(NOW)
    assert scores.pop("a") == MOST_OF_ONE
    assert len(scores) == MOST_NODES - 1 and set(scores.values()) == {1.0}
    assert all(node.startswith("n") for node in scores)
