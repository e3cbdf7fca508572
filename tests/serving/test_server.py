"""The process around the API: health, the page, the port, and the end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from serve_process import start_serve

from nanochat.inference import Engine, Event, Sampling, engine
from nanochat.inference.reply import Reply
from nanochat.inference.sampling import Sampler
from nanochat.model.export import save_model
from nanochat.model.transformer import Transformer
from nanochat.serving.admission import Overloaded
from nanochat.serving.reservations import Visitor
from nanochat.serving.server import bind
from nanochat.serving.service import EngineFailed, EngineService, RequestFailed
from nanochat.spec.errors import UserError
from nanochat.tokenizer import Tokenizer

SOMEONE = Visitor("someone", 1)


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


ASKED = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 40, "min_tokens": 40},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 40, "min_tokens": 40},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 40},
}


@pytest.mark.parametrize("path", ASKED)
def test_what_the_engine_finds_wrong_with_a_request_ends_its_stream_as_the_protocol_does(
    server: Any, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    accept, told = Reply.accept, iter(range(40))

    def refuse(*given: Any, **named: Any) -> Any:
        if next(told) == 2:
            raise UserError("The answer can't be held to this schema: it is too much.")
        return accept(*given, **named)

    monkeypatch.setattr(Reply, "accept", refuse)
    answer = httpx.post(server.url + path, json=ASKED[path] | {"stream": True})  # raises where the body is cut
    *_, before, last = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    if path == "/v1/responses":
        event = json.loads(last)
        assert event["type"] == "response.failed" and event["response"]["status"] == "failed"
        assert event["response"]["error"]["code"] == "invalid_prompt"
        assert "it is too much" in event["response"]["error"]["message"]
    else:
        error = json.loads(before)["error"]
        assert last == "[DONE]" and error["type"] == "invalid_request_error" and "it is too much" in error["message"]


@pytest.fixture
def service(model: Transformer, tokenizer: Tokenizer) -> Iterator[EngineService]:
    service = EngineService(Engine(model, tokenizer, slots=2), queue=8)
    service.start()
    yield service
    service.stop()


class Heard:
    """All that was delivered about some requests."""

    def __init__(self, service: EngineService, *, samplings: list[Sampling], prompt: Sequence[int] = (1, 2, 3)) -> None:
        self.ends: dict[int, str | Exception] = {}
        service.submit([(prompt, samplings)], self._deliver, SOMEONE)

    def _deliver(self, index: int, what: Event | Exception) -> None:
        if isinstance(what, Exception) or what.finish_reason:
            self.ends[index] = what if isinstance(what, Exception) else what.finish_reason or ""


def test_an_error_of_a_request_ends_it_alone(
    service: EngineService, monkeypatch: pytest.MonkeyPatch, until: Callable[..., None]
) -> None:
    """In each place where a request's own data are looked at: settings, number, reply, delivery."""
    long, bad = Sampling(max_tokens=40, min_tokens=40), Sampling(max_tokens=7, temperature=1.0, seed=13)

    def unless(bad_one: Callable[..., bool], original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if bad_one(*given):
                raise ValueError("not this one")
            return original(*given, **named)

        return call

    places = [
        (Sampler, "put", lambda _self, _row, sampling: sampling == bad),
        (engine, "uniform", lambda seed, _position: seed == 13),
        (Reply, "accept", lambda self, _token: self._stop == ("stop",)),
    ]
    for owner, name, bad_one in places:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, unless(bad_one, getattr(owner, name)))
            heard = Heard(service, samplings=[long, replace(bad, stop=("stop",)) if owner is Reply else bad, long])
            until(lambda heard=heard: len(heard.ends) == 3)
        error = heard.ends.pop(1)
        assert isinstance(error, RequestFailed) and "not this one" in str(error)
        assert set(heard.ends.values()) == {"length"}
        until(lambda: service.open == 0)
    assert service.alive


def test_who_can_not_be_told_is_forgotten(service: EngineService, until: Callable[..., None]) -> None:
    def deliver(_index: int, _what: Event | Exception) -> None:
        raise OSError("gone")

    service.submit([([1], [Sampling(max_tokens=400, min_tokens=400)])], deliver, SOMEONE)
    heard = Heard(service, samplings=[Sampling(max_tokens=3)])
    until(lambda: len(heard.ends) == 1 and service.open == 0)
    assert set(heard.ends.values()) <= {"length", "stop"} and service.alive


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=0), Sampling(max_tokens=3, logit_bias=((10**6, 1.0),))])
def test_settings_that_the_engine_refuses(
    service: EngineService, sampling: Sampling, until: Callable[..., None]
) -> None:
    refused = Heard(service, samplings=[sampling])
    heard = Heard(service, samplings=[Sampling(max_tokens=3)])
    until(lambda: len(heard.ends) == len(refused.ends) == 1 and service.open == 0)
    assert isinstance(refused.ends[0], UserError) and not isinstance(heard.ends[0], Exception)


def test_an_engine_that_fails_is_made_anew(
    service: EngineService, monkeypatch: pytest.MonkeyPatch, until: Callable[..., None]
) -> None:
    """Requests that were being answered end with the error; those that waited are answered."""
    original, failures = Transformer.extend, iter([MemoryError("too little")])

    def fail_once(*given: Any, **named: Any) -> Any:
        for failure in failures:
            raise failure
        return original(*given, **named)

    monkeypatch.setattr(Transformer, "extend", fail_once)
    heard = Heard(service, samplings=[Sampling(max_tokens=3, min_tokens=3)] * 6)
    until(lambda: len(heard.ends) == 6 and service.open == 0)
    failed = [each for each in heard.ends.values() if isinstance(each, EngineFailed)]
    assert 1 <= len(failed) <= 2 and "too little" in str(failed[0])
    assert list(heard.ends.values()).count("length") == 6 - len(failed)
    assert service.alive


def test_a_panic_of_a_compiled_module_is_a_failure_too(
    service: EngineService, monkeypatch: pytest.MonkeyPatch, until: Callable[..., None]
) -> None:
    class Panic(BaseException):
        pass

    def panic(_self: Engine) -> None:
        raise Panic("called `Result::unwrap()`")

    monkeypatch.setattr(Engine, "step", panic)
    heard = Heard(service, samplings=[Sampling(max_tokens=3)])
    until(lambda: not service.alive)
    assert isinstance(heard.ends[0], EngineFailed) and "unwrap" in str(heard.ends[0])


def test_a_process_whose_engine_has_failed_ends(folder: Path, until: Callable[..., None]) -> None:
    failing = "def fail(engine): raise RuntimeError('out of luck')\nEngine.step = fail"
    process, url = start_serve(folder, before=failing, stderr=subprocess.PIPE, text=True)
    try:
        answers: list[int] = []

        def answered() -> bool:
            body = {"messages": [{"role": "user", "content": "Hi"}]}
            with contextlib.suppress(httpx.TransportError):
                answers.append(httpx.post(f"{url}/v1/chat/completions", json=body).status_code)
            return bool(answers)

        until(answered)
        assert answers == [500]
        assert httpx.get(f"{url}/livez").status_code == 503
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1 and "the engine failed and could not be made anew" in said
    finally:
        process.kill()
        process.wait()


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
        service.submit([([1], [])], lambda _index, _what: None, SOMEONE)
    service.stop()
    with pytest.raises(EngineFailed):
        service.submit([([1], [])], lambda _index, _what: None, SOMEONE)
    assert not service.alive


@pytest.fixture
def folder(tmp_path: Path, model: Transformer, tokenizer: Tokenizer) -> Path:
    save_model(tmp_path, model, {"stage": "sft", "step": 3})
    tokenizer.save(tmp_path)
    return tmp_path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_finishes_what_was_begun(
    folder: Path, ready: Callable[[str], bool], until: Callable[..., None], number: signal.Signals
) -> None:
    keys, log = {**os.environ, "NANOCHAT_API_KEYS": "secret, other"}, subprocess.PIPE
    process, url = start_serve(folder, env=keys, stdout=log, stderr=log, text=True)
    headers = {"Authorization": "Bearer other"}

    try:
        until(lambda: ready(url))
        assert httpx.get(f"{url}/v1/models").status_code == 401
        body = {"messages": [{"role": "user", "content": "Hi"}], "min_tokens": 450, "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60) as response:
            lines = response.iter_lines()
            assert '"model":"nanochat"' in next(lines)
            process.send_signal(number)
            rest = list(lines)
        assert rest[-2] == "data: [DONE]"
        said, logged = process.communicate(timeout=30)
        assert process.returncode == 0
        assert said == f"Serving the sft model as nanochat at {url} (API: {url}/v1). Ctrl-C ends it.\nEnded.\n"
        time = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "
        assert re.search(time + "(INFO|WARNING) answers are computed by ", logged, re.MULTILINE)
        assert re.search(time + "INFO POST /v1/chat/completions 200 .* completion=", logged, re.MULTILINE)
    finally:
        process.kill()
        process.wait()
