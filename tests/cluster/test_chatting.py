"""The chat API on a cluster: it follows the registry while people chat, and needs nobody once it has a model."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from documents import SEED, WORLD, document
from openai import OpenAI
from site_of_tests import CONTROLLER, MLFLOW, SERVER, SYSTEM, Site, Status

from nanochat.storage.manifest import Manifest
from nanochat.tracking.registry import FOLDER_TAG, Candidate, Registry

pytestmark = pytest.mark.cluster

CLIENTS = 8


@contextmanager
def registry(site: Site) -> Iterator[Registry]:
    with site.forward(SYSTEM, f"service/{MLFLOW}", 5000) as url:
        yield Registry(url)


def release(site: Site, name: str, seed: int) -> Status:
    """Run a pipeline that releases its model, to the end."""
    site.delete(name)
    changes: dict[str, Any] = {"seed": seed, "stages.base.steps": 40, "stages.release": {"enabled": True}}
    site.apply(document(WORLD, name, **changes))
    return site.wait(name, lambda s: s["phase"] == "Succeeded", seconds=600)


def serving(status: Status) -> dict[str, str]:
    """The condition Serving; empty where there is none."""
    return next((item for item in status.get("conditions", ()) if item["type"] == "Serving"), {})


def is_served(status: Status) -> bool:
    return serving(status).get("status") == "True"


def ask(address: str) -> str:
    """Ask one question; the fingerprint of who answered."""
    client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60)
    with client:
        said = client.chat.completions.create(
            model="nanochat", messages=[{"role": "user", "content": "Who are you?"}], max_tokens=4
        )
    assert said.choices[0].finish_reason in ("stop", "length")
    return said.system_fingerprint or ""


@contextmanager
def chatting(address: str) -> Iterator[Callable[[], set[str]]]:
    """Eight clients that ask all the time, each over a connection that it keeps; yields who has answered lately."""
    done = threading.Event()
    failures: list[str] = []
    answered: list[str] = []

    def client() -> None:
        # max_retries=0: what fails once is a failure.
        with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client:
            while not done.is_set():
                try:
                    said = client.chat.completions.create(
                        model="nanochat",
                        messages=[{"role": "user", "content": "What is 2 + 3?"}],
                        max_tokens=8,
                        stream=True,
                    )
                    answered.append({chunk.system_fingerprint or "" for chunk in said}.pop())
                except Exception as error:
                    failures.append(f"{time.strftime('%H:%M:%S')} {error!r} for {error.__cause__!r}")
                time.sleep(0.2)

    def lately() -> set[str]:
        recent = set(answered)
        answered.clear()
        return recent

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield lately
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []


def break_model(site: Site, status: Status) -> Candidate:
    """A release like the pipeline's, whose weights are not those of its manifest."""
    key = next(stage["keys"]["model/sft"] for stage in status["stages"] if stage["name"] == "sft")
    store, other = site.store(), "f" * 32
    manifest = Manifest.from_bytes(store.read(f"artifacts/model/{key}/manifest.json", 1 << 20))
    for record in manifest.files:
        data = store.read(f"artifacts/model/{key}/{manifest.launch}/{record.path}", 1 << 20)
        if record.path.endswith(".safetensors"):
            data = data[:-64] + bytes(64)
        store.write(f"artifacts/model/{other}/{manifest.launch}/{record.path}", data)
    store.write(f"artifacts/model/{other}/manifest.json", replace(manifest, key=other).to_bytes())
    return Candidate(
        source=store.uri(f"artifacts/model/{other}/{manifest.launch}"),
        key=other,
        metrics={},
        tags={FOLDER_TAG: status["run"]},
    )


def test_the_alias_moves_while_people_chat(site: Site, chat: str) -> None:
    """No request fails; a version that does not become ready is never served; rollback points back."""
    with pytest.raises(urllib.error.URLError):  # no pod is ready
        urllib.request.urlopen(f"{chat}/readyz", timeout=5)
    pods = site.get("pods", "-n", SYSTEM, "-l", "app.kubernetes.io/component=inference")["items"]
    assert {pod["status"]["phase"] for pod in pods} == {"Running"}
    why = "import urllib.request as r, urllib.error as e\ntry: r.urlopen('http://127.0.0.1:8000/readyz')\n"
    why += "except e.HTTPError as found: print(found.code, found.read().decode())"
    said = site.kubectl("-n", SYSTEM, "exec", pods[0]["metadata"]["name"], "--", "python", "-c", why)
    assert said.startswith("503 no model is named to this server yet")

    release(site, "first", SEED + 31)
    site.wait("first", is_served, seconds=180, what="the first model to be served")
    first = ask(chat)
    with chatting(chat) as lately:
        second_status = release(site, "second", SEED + 32)
        status = site.wait("second", is_served, seconds=180, what="the second model to be served")
        lately()
        time.sleep(5)
        (second,) = lately()
        assert second != first
        assert serving(site.status("first"))["reason"] == "Superseded"

        with registry(site) as found:
            version = found.register("nanochat", break_model(site, second_status))
            found.promote("nanochat", version.version)
        status = site.wait("second", lambda s: serving(s).get("status") == "False", seconds=240, what="the rejection")
        assert serving(status)["reason"] == "RolloutFailed" and version.version in serving(status)["message"]
        assert lately() == {second}
        site.kubectl("-n", SYSTEM, "rollout", "status", f"deployment/{SERVER}", "--timeout=120s")
        site.kill_controller()  # it knows from the Deployment alone what was rejected
        time.sleep(20)
        assert lately() == {second}

        said = site.nanochat("rollback", "second")
        assert "nanochat" in said
        site.wait("second", is_served, seconds=120, what="the rollback")
        site.nanochat("rollback", "first", "--to", "1")
        site.wait("first", is_served, seconds=180, what="the first model again")
        lately()
        time.sleep(5)
        assert lately() == {first}


def test_mlflow_has_the_runs(site: Site, chat: str) -> None:
    """One run a pipeline, one a stage, with what was measured; the controller has sent them."""
    from mlflow.tracking import MlflowClient

    with site.forward(SYSTEM, f"service/{MLFLOW}", 5000) as url:
        client = MlflowClient(url)
        experiment = client.get_experiment_by_name("nanochat")
        assert experiment is not None

        def stages() -> dict[str, str]:
            runs = client.search_runs([experiment.experiment_id], f"tags.`nanochat.run` = '{uid}'")
            return {run.data.tags["nanochat.stage"]: run.info.status for run in runs}

        uid = site.status("first")["run"].rpartition("/")[2]
        deadline = time.monotonic() + 120
        while set(stages().values()) != {"FINISHED"}:
            assert time.monotonic() < deadline, stages()
            time.sleep(2)
        assert {"", "base", "mid", "sft", "eval-sft", "report"} <= set(stages())
        runs = client.search_runs([experiment.experiment_id], f"tags.`nanochat.run` = '{uid}'")
        base = next(run for run in runs if run.data.tags["nanochat.stage"] == "base")
        assert len(client.get_metric_history(base.info.run_id, "train/loss")) == 40


def test_the_chat_api_needs_nobody(site: Site, chat: str) -> None:
    """With the store, MLflow and the controller gone it answers, also from a pod that has just begun."""
    assert ask(chat)
    gone = [("storage", "s3"), (SYSTEM, MLFLOW), (SYSTEM, CONTROLLER)]
    try:
        for namespace, deployment in gone:
            site.kubectl("-n", namespace, "scale", f"deployment/{deployment}", "--replicas=0")
        time.sleep(5)
        before = ask(chat)
        for pod in site.get("pods", "-n", SYSTEM, "-l", "app.kubernetes.io/component=inference")["items"]:
            site.kubectl("-n", SYSTEM, "delete", "pod", pod["metadata"]["name"], "--wait=true", timeout=180)
        site.kubectl("-n", SYSTEM, "rollout", "status", f"deployment/{SERVER}", "--timeout=180s")
        assert ask(chat) == before
    finally:
        for namespace, deployment in gone:
            site.kubectl("-n", namespace, "scale", f"deployment/{deployment}", "--replicas=1")
        for namespace, deployment in gone:
            site.kubectl("-n", namespace, "rollout", "status", f"deployment/{deployment}", "--timeout=180s")


def test_helm_test(site: Site, chat: str) -> None:
    """The release's own check."""
    said = site.run("helm", "test", "nanochat", "--kube-context", f"kind-{site.name}", "-n", SYSTEM, timeout=300)
    assert "Succeeded" in said
