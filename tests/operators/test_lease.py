"""One controller at a time."""

from __future__ import annotations

from typing import Any

import pytest

from operators.kube_error import KubeError
from operators.lease import Lease


class Server:
    """The one Lease of an API server, with versions as it has them."""

    def __init__(self) -> None:
        self.spec: dict[str, Any] | None = None
        self.version = 0
        self.down = False

    def within(self, _: Any) -> Server:
        return self

    def get(self, *_: Any) -> Any:
        if self.down:
            raise KubeError("no route")
        return None if self.spec is None else {"metadata": {"resourceVersion": str(self.version)}, "spec": self.spec}

    def create(self, _: Any, body: Any) -> Any:
        if self.spec is not None:
            return None
        self.spec, self.version = body["spec"], 1
        return body

    def json(self, verb: str, _: str, *, body: Any, **__: Any) -> Any:
        assert self.spec is not None
        if verb == "update" and body["metadata"]["resourceVersion"] != str(self.version):
            raise KubeError("conflict", status=409)
        self.spec, self.version = self.spec | body["spec"], self.version + 1


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def lease(server: Server, who: str, clock: Clock) -> Lease:
    return Lease(server, "system", "nanochat", who, seconds=15, clock=clock)  # type: ignore[arg-type]


def test_the_first_has_it_and_the_second_waits(clock: Clock) -> None:
    server = Server()
    one, two = lease(server, "one", clock), lease(server, "two", clock)
    assert one.take() and not two.take()
    assert one.held and not two.held
    assert one.take(), "it renews its own"


def test_one_that_was_not_renewed_runs_out(clock: Clock) -> None:
    server = Server()
    one, two = lease(server, "one", clock), lease(server, "two", clock)
    assert one.take() and not two.take()
    clock.now = 14.0
    assert not two.take()
    assert one.take()
    clock.now = 20.0
    assert not two.take(), "it was renewed meanwhile"
    clock.now = 36.0
    assert two.take()
    assert not one.take() and not one.held


def test_one_that_was_let_go_is_free_at_once(clock: Clock) -> None:
    server = Server()
    one, two = lease(server, "one", clock), lease(server, "two", clock)
    assert one.take() and not two.take()
    one.release()
    assert two.take()


def test_of_two_that_take_it_at_once_one_has_it(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    one, two = lease(server, "one", clock), lease(server, "two", clock)
    one.take()
    one.release()
    read = server.get

    def slow(*arguments: Any, **options: Any) -> Any:
        found = read(*arguments, **options)
        monkeypatch.setattr(server, "get", read)
        assert one.take(), "it was faster"
        return found

    monkeypatch.setattr(server, "get", slow)
    assert not two.take()


def test_a_server_that_is_down_gives_nothing(clock: Clock) -> None:
    server = Server()
    one = lease(server, "one", clock)
    server.down = True
    assert not one.take()
    server.down = False
    assert one.take()
