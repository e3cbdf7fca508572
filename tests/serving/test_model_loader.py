"""The server of a cluster: what it says before it has a model, and which models it serves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi.testclient import TestClient
from s3_server import BUCKET, CREDENTIALS, S3Server
from serve_process import free_port

from nanochat.model.artifact import fingerprint
from nanochat.model.export import save_model
from nanochat.model.transformer import Transformer
from nanochat.serving.app import create_app
from nanochat.serving.holder import ModelHolder
from nanochat.serving.loader import Loader, Wanted
from nanochat.serving.settings import ServerSettings
from nanochat.storage import Artifacts, Manifest, Profile, open_store
from nanochat.tokenizer import Tokenizer

KEY = "4f0c" * 8
Until = Callable[[Callable[[], bool]], None]


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Server]:
    """A server of this test's own, which it may kill."""
    with S3Server.start(tmp_path) as server:
        yield server


@pytest.fixture
def publish(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> Callable[[S3Server], Manifest]:
    """Stores the model as an artifact."""

    def store(server: S3Server) -> Manifest:
        profile = Profile(root=f"s3://{BUCKET}/nanochat", endpoint=server.endpoint)
        with Artifacts(open_store(profile), tmp_path / "trainer").writer("model", KEY, "01-ab") as writer:
            save_model(writer.folder, model, {"stage": "sft", "step": 3, "questions": ["Who are you?", 5]})
            tokenizer.save(writer.folder)
            return writer.commit(recipe={}, inputs={}, metadata={})

    return store


def wanted(server: S3Server, cache: Path, **changes: Any) -> Wanted:
    uri = f"s3://{BUCKET}/nanochat/artifacts/model/{KEY}/01-ab"
    given = Wanted(uri=uri, version="3", fingerprint="", name="nanochat", endpoint=server.endpoint, cache=cache)
    return replace(given, **changes)


@pytest.fixture
def begin() -> Iterator[Callable[[Wanted], ModelHolder]]:
    """Starts a loader; its host is closed with the test."""
    begun: list[tuple[ModelHolder, Loader]] = []

    def start(model: Wanted) -> ModelHolder:
        host = ModelHolder(model.reason)
        loader = Loader(host, model, slots=2, delays=(0.05,))
        loader.start()
        begun.append((host, loader))
        return host

    yield start
    for host, loader in begun:
        loader.stop()
        if loader._thread.ident is not None:
            loader._thread.join()
        host.close()


def test_without_a_model_it_lives_and_says_why(tmp_path: Path, begin: Callable[[Wanted], ModelHolder]) -> None:
    host = begin(Wanted.from_environment({"NANOCHAT_CACHE": str(tmp_path)}))
    with TestClient(create_app(host, ServerSettings(api_keys=frozenset({"secret"})))) as client:
        assert client.get("/livez").status_code == 200
        ready = client.get("/readyz")
        assert ready.status_code == 503 and ready.text.startswith("no model is named to this server yet: ")
        assert client.get("/health").json() == {"status": ready.text}
        assert client.get("/v1/models").status_code == 401, "the key comes first"
        headers = {"Authorization": "Bearer secret"}
        for answer in (
            client.get("/v1/models", headers=headers),
            client.post(
                "/v1/chat/completions", headers=headers, json={"messages": [{"role": "user", "content": "Hi"}]}
            ),
        ):
            assert answer.status_code == 503 and answer.headers["Retry-After"] == "5"
            error = answer.json()["error"]
            assert error["code"] == "no_model" and "no model is named to this server yet" in error["message"]
        assert "setTimeout(() => this.look()" in client.get("/page/connection.js").text, "the page looks again"
        assert 'nanochat_rejected_total{reason="no_model",version=""} 2.0' in client.get("/metrics").text


def test_a_server_waits_for_the_store_and_outlives_it(
    s3: S3Server,
    publish: Callable[[S3Server], Manifest],
    begin: Callable[[Wanted], ModelHolder],
    tmp_path: Path,
    until: Until,
) -> None:
    s3.kill()
    host = begin(wanted(s3, tmp_path / "node"))
    assert host.unready == "loading version 3 of nanochat"
    until(lambda: "does not answer" in host.unready)
    assert host.unready.startswith("version 3 of nanochat cannot be served: ")
    assert host.unready.endswith("; it is tried again") and host.alive
    s3.restart()
    if not s3.persistent:
        urllib.request.urlopen(urllib.request.Request(f"{s3.endpoint}/{BUCKET}", method="PUT")).close()
    until(lambda: "there is no model at" in host.unready)
    manifest = publish(s3)
    until(lambda: not host.unready)
    assert host.model is not None and host.model.served.full_name == "nanochat:3"
    assert host.model.served.fingerprint == fingerprint(manifest)
    assert host.model.served.questions == ("Who are you?",)

    s3.kill()
    again = begin(wanted(s3, tmp_path / "node", fingerprint=fingerprint(manifest)))
    until(lambda: not again.unready)
    elsewhere = begin(wanted(s3, tmp_path / "another node"))
    until(lambda: "does not answer" in elsewhere.unready)


def test_damage_in_the_store_is_never_served(
    s3: S3Server,
    publish: Callable[[S3Server], Manifest],
    begin: Callable[[Wanted], ModelHolder],
    tmp_path: Path,
    until: Until,
) -> None:
    manifest = publish(s3)
    store = open_store(Profile(root=f"s3://{BUCKET}/nanochat", endpoint=s3.endpoint))
    path = f"artifacts/model/{KEY}/01-ab/model.safetensors"
    good = store.read(path, 1 << 20)
    store.write(path, good[:-1] + bytes([good[-1] ^ 1]))
    host = begin(wanted(s3, tmp_path / "node"))
    until(lambda: "model.safetensors is not what was written" in host.unready)
    store.write(path, good[:-1])
    until(lambda: "bytes instead of" in host.unready)
    assert store.exists(f"artifacts/model/{KEY}/manifest.json"), "a server changes nothing in the store"
    store.write(path, good)
    until(lambda: not host.unready)
    assert host.model is not None and host.model.served.fingerprint == fingerprint(manifest)


def test_damage_in_the_cache_is_made_good(
    s3: S3Server,
    publish: Callable[[S3Server], Manifest],
    begin: Callable[[Wanted], ModelHolder],
    tmp_path: Path,
    until: Until,
) -> None:
    publish(s3)
    first = begin(wanted(s3, tmp_path / "node"))
    until(lambda: not first.unready)
    (weights,) = (tmp_path / "node" / "entries").glob("*/model.safetensors")
    good = weights.read_bytes()
    damaged = weights.with_suffix(".new")
    damaged.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    damaged.replace(weights)
    second = begin(wanted(s3, tmp_path / "node"))
    until(lambda: not second.unready)
    assert weights.read_bytes() == good


def test_other_weights_are_refused_before_they_are_fetched(
    s3: S3Server,
    publish: Callable[[S3Server], Manifest],
    begin: Callable[[Wanted], ModelHolder],
    tmp_path: Path,
    until: Until,
) -> None:
    found = fingerprint(publish(s3))
    host = begin(wanted(s3, tmp_path / "node", fingerprint="0123456789abcdef"))
    until(lambda: f"its fingerprint is {found} instead of 0123456789abcdef" in host.unready)
    assert not (tmp_path / "node" / "entries").exists()


def test_the_process(
    s3: S3Server, publish: Callable[[S3Server], Manifest], ready: Callable[[str], bool], tmp_path: Path, until: Until
) -> None:
    found = fingerprint(publish(s3))
    port = free_port()
    env = os.environ | {
        "NANOCHAT_MODEL_URI": wanted(s3, tmp_path).uri, "NANOCHAT_MODEL_VERSION": "3", "NANOCHAT_MODEL_NAME": "demo",
        "NANOCHAT_MODEL_FINGERPRINT": found, "NANOCHAT_ENDPOINT": s3.endpoint, "NANOCHAT_CACHE": str(tmp_path / "node"),
    }  # fmt: skip
    command = [sys.executable, "-m", "nanochat.serving", "--host", "127.0.0.1", "--port", str(port), "--linger", "1"]
    process = subprocess.Popen(command, env=env)
    url = f"http://127.0.0.1:{port}"

    try:
        until(lambda: ready(url))
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            (model,) = client.models.list().data
            assert (
                model.model_dump() | {"id": "demo", "version": "3", "system_fingerprint": found} == model.model_dump()
            )
            ask: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
            for name in ("demo", "demo:3"):
                answer = client.chat.completions.create(model=name, **ask)
                assert (answer.model, answer.system_fingerprint) == ("demo:3", found)
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(model="demo:2", **ask)
        # Behind a service, requests still come for a moment after SIGTERM: they are answered, on their last connection.
        with httpx.Client(base_url=url, timeout=20) as kept:
            kept.get("/livez")
            process.send_signal(signal.SIGTERM)
            until(lambda: kept.get("/readyz").status_code == 503)
            late = kept.post("/v1/chat/completions", json={"messages": ask["messages"], "max_tokens": 3})
            assert late.status_code == 200 and late.headers["Connection"] == "close"
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()


def test_each_choice_counts_its_prompt_as_what_it_reused_of_it(start: Callable[..., Any]) -> None:
    server = start(slots=4)
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    for choices in (1, 4):
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body | {"n": choices}, timeout=60).json()
    prompt = answer["usage"]["prompt_tokens"]
    told = httpx.get(f"{server.url}/metrics").text
    assert f'nanochat_prompt_tokens_total{{version=""}} {5.0 * prompt}' in told
    assert f'nanochat_prompt_tokens_reused_total{{version=""}} {4.0 * prompt}' in told


def test_metrics_follow_the_requests(start: Callable[..., Any], until: Until) -> None:
    server = start(slow=True, slots=1, queue=1, version="3")
    body = {"messages": [{"role": "user", "content": "Hi"}], "min_tokens": 400}

    def metrics() -> dict[str, float]:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        told = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}
        assert len(told) < 60 and 'version=""' not in str(told), "all is counted for the one version"
        return {name.replace('{version="3"}', ""): value for name, value in told.items()}

    assert metrics()['nanochat_model_info{fingerprint="f00dfeed",name="tiny",version="3"}'] == 1
    httpx.post(f"{server.url}/v1/chat/completions", json=body | {"min_tokens": 5, "max_tokens": 5}, timeout=60)
    told = metrics()
    assert told["nanochat_generated_tokens_total"] == 5 and told["nanochat_prompt_tokens_total"] > 1
    assert told["nanochat_time_to_first_token_seconds_count"] == 1
    assert told["nanochat_inter_token_seconds_count"] == 4
    assert told["nanochat_requests_running"] == told["nanochat_requests_waiting"] == 0
    assert told["nanochat_prompt_tokens_reused_total"] == 0
    # The last token of an answer is chosen and not computed.
    assert told["nanochat_kv_cache_tokens"] == told["nanochat_prompt_tokens_total"] + 5 - 1
    assert told["nanochat_kv_cache_capacity_tokens"] == 512
    httpx.post(f"{server.url}/v1/chat/completions", json=body | {"min_tokens": 1, "max_tokens": 1}, timeout=60)
    assert metrics()["nanochat_prompt_tokens_reused_total"] == told["nanochat_prompt_tokens_total"]

    gone = [threading.Event(), threading.Event()]

    def ask(leave: threading.Event) -> None:
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body | {"stream": True}, timeout=60):
            leave.wait()

    def running_and_waiting() -> tuple[float, float]:
        told = metrics()
        return told["nanochat_requests_running"], told["nanochat_requests_waiting"]

    first = threading.Thread(target=ask, args=(gone[0],))
    first.start()
    until(lambda: running_and_waiting() == (1, 0))
    second = threading.Thread(target=ask, args=(gone[1],))
    second.start()
    until(lambda: running_and_waiting() == (1, 1))
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body).status_code == 429
    assert metrics()['nanochat_rejected_total{reason="overloaded",version="3"}'] == 1
    for event, thread in zip(gone, (first, second), strict=True):
        event.set()
        thread.join()
    until(lambda: metrics()["nanochat_cancelled_total"] == 2)
    until(lambda: running_and_waiting() == (0, 0))


def test_a_server_needs_only_its_own_extra() -> None:
    blocked = ["pyarrow", "rustbpe", "matplotlib", "mlflow", "typer", "rich", "kopf", "kubernetes", "datasets"]
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {blocked}: raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import nanochat.serving.command\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
