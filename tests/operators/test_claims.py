"""Who makes what several need."""

from __future__ import annotations

from operators.claims import Claims

ROOT = "s3://store"


def claims() -> tuple[Claims, list[int]]:
    woken: list[int] = []
    found = Claims(changed=lambda: woken.append(1))
    found.expect("b", "younger", "2026-01-02T00:00:00Z")
    found.expect("a", "older", "2026-01-01T00:00:00Z")
    return found, woken


def test_the_older_one_makes_it() -> None:
    found, _ = claims()
    found.settle("a", ROOT, {"k", "l"})
    found.settle("b", ROOT, {"k", "m"})
    assert found.elsewhere("b", ROOT, {"k", "m"}) == {"k": "older"}
    assert found.elsewhere("a", ROOT, {"k", "m"}) == {}


def test_another_store_is_another_matter() -> None:
    found, _ = claims()
    found.settle("a", "s3://elsewhere", {"k"})
    assert found.elsewhere("b", ROOT, {"k"}) == {}


def test_nobody_starts_before_the_older_ones_are_known() -> None:
    found, _ = claims()
    assert found.unsettled("b") == "older"
    assert found.unsettled("a") == ""
    found.settle("a")
    assert found.unsettled("b") == ""


def test_those_that_wait_are_woken_when_it_lets_go() -> None:
    found, woken = claims()
    found.settle("a", ROOT, {"k"})
    woken.clear()
    found.settle("a", ROOT, {"k"})
    assert woken == []
    found.settle("a", ROOT, set())
    assert woken == [1] and found.elsewhere("b", ROOT, {"k"}) == {}
    found.drop("a")
    assert woken == [1, 1] and found.unsettled("b") == ""


def test_of_two_older_ones_the_oldest_is_named() -> None:
    found, _ = claims()
    found.expect("c", "youngest", "2026-01-03T00:00:00Z")
    for uid in ("a", "b"):
        found.settle(uid, ROOT, {"k"})
    assert found.elsewhere("c", ROOT, {"k"}) == {"k": "older"}
