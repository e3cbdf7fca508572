"""The controller's loop over many pipelines, on an API server in memory."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import FakeKube

from operators import controller as module
from operators import reconciler, status
from operators.config import Config
from operators.controller import Controller
from operators.kube_client import PIPELINES


def declare(kube: FakeKube, name: str, store: str, **spec: Any) -> None:
    head = {"apiVersion": "nanochat.dev/v1alpha1", "kind": "ChatPipeline"}
    small = {"model": {"depth": 2}, "sources": {"text": {"kind": "world", "shards": 1}}, "store": store}
    body = {**head, "metadata": {"name": name, "namespace": "team"}, "spec": {**small, **spec}}
    kube.declare(body, uid=f"{name}-uid")


async def reached(*wanted: Callable[[], bool]) -> None:
    while not all(holds() for holds in wanted):
        await asyncio.sleep(0.02)


def test_a_store_that_never_answers_is_said_and_holds_up_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two pipelines on it one has the only thread and one waits for that; a third has another store."""
    assert reconciler.ACTIVE_SECONDS + module.SLOW_SECONDS + 5.0 <= 30.0, "said within 30 s"
    monkeypatch.setattr(module, "SLOW_SECONDS", 0.2)
    monkeypatch.setattr(module, "RECONCILES_AT_ONCE", 1)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "password")
    kube = FakeKube(1_800_000_000.0)

    def storage(name: str) -> tuple[str, str, str]:
        return status.condition(kube.status_of(name), status.REACHABLE) or ("", "", "")

    async def look(controller: Controller, silent: socket.socket) -> None:
        controller._asyncio = asyncio.get_running_loop()
        controller.synced.set()
        ticking = asyncio.create_task(controller.tick())
        for name in ("one", "two", "well", "over"):
            controller.wake("team", name)
        await reached(
            lambda: storage("one")[:2] == ("Unknown", "Slow"),
            lambda: storage("two")[:2] == ("Unknown", "Slow"),
            lambda: kube.created == ["well-well-dataset-1"],
            lambda: storage("well")[:2] == ("True", "Reached"),
        )
        assert kube.status_of("one")["message"].startswith("the store or the API server has kept the controller")
        assert controller.health() == "" and kube.status_of("over") == over, "it needs nothing of the store"
        silent.close()  # what waits for an answer fails now
        await reached(lambda: storage("one")[:2] == ("False", "Unreachable"), lambda: storage("two")[0] == "False")
        controller.reconcilers["team", "one"].tell_slow(20.0)
        assert storage("one")[0] == "False", "that is known"
        assert kube.status_of("one")["phase"] == kube.status_of("two")["phase"] == "Waiting"
        for task in (ticking, *controller.tasks.values()):
            task.cancel()

    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:  # the kernel accepts, and nobody answers
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        profiles = {
            "silent": {"root": "s3://bucket/x", "endpoint": endpoint},
            "well": {"root": str(tmp_path / "store")},
        }
        config = Config.model_validate({"image": "trainer", "profiles": profiles}, by_alias=True)
        controller = Controller(config, kube, "", tmp_path)  # type: ignore[arg-type]
        for name in ("one", "two"):
            declare(kube, name, "silent")
        declare(kube, "well", "well")
        declare(kube, "over", "silent", cancel=True)
        true = [{"type": name, "status": "True"} for name in ("Accepted", status.REACHABLE)]
        over = {"phase": "Cancelled", "observedGeneration": 1, "run": "runs/team.over/over-uid", "conditions": true}
        kube.change(PIPELINES, kube[PIPELINES]["over"] | {"status": over})
        controller.index.resync("")
        asyncio.run(look(controller, silent))
    for pool in controller.pools.values():
        pool.shutdown()
