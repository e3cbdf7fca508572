"""The process around the API: health, the page, the port, and the end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from nanochat.inference import Engine
from nanochat.model.export import save_model
from nanochat.model.transformer import Transformer
from nanochat.serving.page import content_security_policy, read_page
from nanochat.serving.server import bind
from nanochat.serving.service import EngineFailed, EngineService, Overloaded
from nanochat.spec.errors import UserError
from nanochat.tokenizer import Tokenizer


def test_health(server: Any) -> None:
    health = httpx.get(f"{server.url}/health")
    assert health.status_code == 200
    assert health.json()["status"] == "ok"
    assert httpx.get(f"{server.url}/livez").status_code == 200
    assert httpx.get(f"{server.url}/readyz").status_code == 200


def test_a_server_that_drains_is_not_ready_and_takes_nothing(start: Callable[..., Any]) -> None:
    server = start()
    server.service.draining = True
    assert httpx.get(f"{server.url}/readyz").status_code == 503
    assert httpx.get(f"{server.url}/livez").status_code == 200
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body).status_code == 503


def test_an_engine_that_fails_ends_its_requests_and_is_not_alive(
    start: Callable[..., Any], until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: Engine) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(Engine, "step", fail)
    server = start()
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    failed = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert failed.status_code == 500
    assert "out of luck" in failed.json()["error"]["message"]
    until(lambda: httpx.get(f"{server.url}/livez").status_code == 503)
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body).status_code == 503


def test_the_page_allows_only_itself(server: Any) -> None:
    answer = httpx.get(f"{server.url}/")
    assert answer.headers["Content-Type"].startswith("text/html")
    policy = answer.headers["Content-Security-Policy"]
    assert policy == content_security_policy(answer.text)
    assert "unsafe" not in policy and policy.count("'sha256-") == 2
    page = read_page()
    assert "innerHTML" not in page and "https://" not in page and "http://" not in page
    assert len(re.findall(r"<script", page)) == 1 and len(re.findall(r"<style", page)) == 1


def test_a_port_in_use_is_one_sentence() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"^Port {port} on 127.0.0.1 is in use; .*--port\.$"):
            bind("127.0.0.1", port)


def test_a_host_that_is_not_ours_is_one_sentence() -> None:
    with pytest.raises(UserError, match="--host"):
        bind("192.0.2.1", 8000)


def test_a_stopped_service_refuses(model: Transformer, tokenizer: Tokenizer) -> None:
    service = EngineService(Engine(model, tokenizer, slots=1), queue=0)
    service.start()
    service.draining = True
    with pytest.raises(Overloaded):
        service.submit([1], [], lambda _index, _what: None)
    service.stop()
    with pytest.raises(EngineFailed):
        service.submit([1], [], lambda _index, _what: None)
    assert not service.alive


@pytest.fixture
def folder(tmp_path: Path, model: Transformer, tokenizer: Tokenizer) -> Path:
    save_model(tmp_path, model, {"stage": "sft", "step": 3})
    tokenizer.save(tmp_path)
    return tmp_path


def test_sigterm_finishes_what_was_begun(
    folder: Path, ready: Callable[[str], bool], until: Callable[..., None]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = (
        "from pathlib import Path; from nanochat.cli.serve import serve; "
        f"serve(folder=Path({str(folder)!r}), port={port})"
    )
    env = {**os.environ, "NANOCHAT_API_KEYS": "secret, other"}
    process = subprocess.Popen([sys.executable, "-c", script], env=env)
    url, headers = f"http://127.0.0.1:{port}", {"Authorization": "Bearer other"}

    try:
        until(lambda: ready(url))
        assert httpx.get(f"{url}/v1/models").status_code == 401
        body = {"messages": [{"role": "user", "content": "Hi"}], "min_tokens": 450, "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60) as response:
            lines = response.iter_lines()
            assert '"model":"nanochat"' in next(lines)
            process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert rest[-2] == "data: [DONE]"
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
