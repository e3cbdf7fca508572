"""Events: what is written of what is said, and how much of it."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes.client import V1ObjectReference

from operators import events as module
from operators.events import BURST, Events
from operators.kube_client import Resource
from operators.kube_error import KubeError, Object


class Writes:
    """An API server that takes Events, unless it is away."""

    def __init__(self) -> None:
        self.created: list[Object] = []
        self.counts: list[int] = []
        self.away = False

    def within(self, _timeout: tuple[float, float]) -> Writes:
        return self

    def create(self, _resource: Resource, body: Object) -> Object:
        if self.away:
            raise KubeError("the API server cannot be reached")
        self.created.append(body)
        return body

    def json(self, _verb: str, _path: str, *, body: Object, **_options: Any) -> Object:
        self.counts.append(body["count"])
        return body


class Said:
    """Events at the test's own time."""

    def __init__(self) -> None:
        self.now, self.kube = 1_800_000_000.0, Writes()
        self.events = Events(self.kube, "controller", clock=lambda: self.now)  # type: ignore[arg-type]

    def say(self, message: str, uid: str = "u1") -> None:
        self.events.emit(V1ObjectReference(name="demo", namespace="team", uid=uid), "Normal", "Started", message)
        self.events.flush()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    monkeypatch.setattr(module, "RATE", 1e9)
    return Said()


def test_the_same_news_raises_a_count(said: Said) -> None:
    for _ in range(3):
        said.say("base attempt 1")
    said.say("base attempt 2")
    assert [body["message"] for body in said.kube.created] == ["base attempt 1", "base attempt 2"]
    assert said.kube.counts == [2, 3]


def test_one_object_has_a_burst_and_then_one_every_five_minutes(said: Said) -> None:
    for number in range(BURST + 10):
        said.say(f"news {number}")
    assert len(said.kube.created) == BURST
    said.say("of another", uid="u2")
    assert len(said.kube.created) == BURST + 1, "others may still say something"
    said.now += 301
    said.say("later")
    said.say("and more")
    assert [body["message"] for body in said.kube.created][BURST:] == ["of another", "later"]


def test_an_api_server_that_is_away_ends_nothing(said: Said) -> None:
    said.kube.away = True
    said.say("lost")
    said.kube.away = False
    said.say("written")
    assert [body["message"] for body in said.kube.created] == ["written"]


def test_little_is_remembered(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    for number in range(10):
        said.say("news", uid=f"u{number}")
    assert len(said.kube.created) == 10
    assert len(said.events._counts) == len(said.events._buckets) == 3
