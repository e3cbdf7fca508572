"""`nanochat bench serve`: what it counts of a server's answers, and what it says where there are none."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_shapes import bench, document, sentence

from nanochat.bench.clients import ARRIVALS, CALM, clients_tables
from nanochat.bench.conversations import Answer, Load
from nanochat.bench.serve import busiest, measure_serve, quantiles, serve_tables
from nanochat.model.export import save_model
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.spec.errors import UserError
from nanochat.tokenizer import Tokenizer

LOAD = Load(rate=50, conversations=4, turns=3, words=4, tokens=5)
Reply = Callable[[dict[str, Any]], tuple[int, str]]
WAIT = {"Retry-After": "0"}


def piece(text: str) -> str:
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\n"


def stream(*pieces: str) -> str:
    usage = json.dumps({"choices": [], "usage": {"completion_tokens": len(pieces)}})
    return "".join(piece(text) for text in pieces) + f"data: {usage}\n\ndata: [DONE]\n\n"


@pytest.fixture
def server() -> Iterator[Callable[[Reply], tuple[str, list[dict[str, Any]]]]]:
    """Starts a server that answers as it is told -> its address, and what it was asked."""
    running: list[ThreadingHTTPServer] = []

    def start(reply: Reply) -> tuple[str, list[dict[str, Any]]]:
        asked: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked.append(body)
                status, text = reply(body)
                self.send_response(status)
                for name, value in WAIT.items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(BrokenPipeError):  # who has read the first error reads no further
                    self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None: ...

        found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        running.append(found)
        threading.Thread(target=found.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{found.server_address[1]}", asked

    yield start
    for found in running:
        found.shutdown()
        found.server_close()


def test_every_turn_has_all_that_was_said_before(server: Any) -> None:
    url, asked = server(lambda _body: (200, stream("a", "b", "c")))
    found = measure_serve(url, LOAD)
    assert (found["answers"], found["refused"], len(asked)) == (12, 0, 12)
    assert sorted(len(body["messages"]) for body in asked) == [1] * 4 + [3] * 4 + [5] * 4
    longest = max(asked, key=lambda body: len(body["messages"]))
    assert [message["content"] for message in longest["messages"][1::2]] == ["abc", "abc"]
    assert all(len(message["content"].split()) == 4 for message in longest["messages"][::2])
    assert all(body["max_tokens"] == 5 and body["stream"] for body in asked)
    counts = {name: waits["count"] for name, waits in found["waits"].items()}
    assert counts["first token of a first turn"] == 4 and counts["first token of a later turn"] == 8
    assert counts["between tokens"] == 24
    assert found["tokens_per_second"] == pytest.approx(36 / found["seconds"])
    assert "12 answers" in serve_tables(found)[0].title


def test_a_conversation_that_is_refused_ends_and_is_counted(server: Any) -> None:
    url, asked = server(lambda body: (429, "{}") if len(body["messages"]) > 1 else (200, stream("a")))
    found = measure_serve(url, LOAD)
    assert (found["answers"], found["refused"], len(asked)) == (4, 4, 8)
    assert list(found["waits"]) == ["first token of a first turn"]


def test_a_conversation_that_is_refused_comes_back_when_it_is_told(server: Any) -> None:
    seen: Counter[str] = Counter()

    def reply(body: dict[str, Any]) -> tuple[int, str]:
        question = body["messages"][-1]["content"]
        seen[question] += 1
        return (429, "{}") if seen[question] <= 2 else (200, stream("a"))

    url, asked = server(reply)
    found = measure_serve(url, replace(LOAD, retries=2))
    assert (found["answers"], found["refused"], len(asked)) == (12, 24, 36)
    assert found["came_back"] == {"taken": 12, "count": 24} and found["told_to_wait"]["p99"] == 0
    assert "of 24 that came back when they were told 12 taken" in serve_tables(found)[0].title
    seen.clear()
    found = measure_serve(url, replace(LOAD, retries=1))
    assert (found["answers"], found["refused"], found["came_back"]) == (0, 8, {"taken": 0, "count": 4})


def test_mixed_conversations_differ_and_some_answers_are_broken_off(server: Any) -> None:
    url, asked = server(lambda body: (200, stream(*"abcdefgh"[: body["max_tokens"]])))
    load = Load(rate=500, conversations=40, turns=2, words=20, tokens=8, mixed=True)
    found = measure_serve(url, load)
    assert found["answers"] == len(asked) == 80
    bodies = [(body["max_tokens"], body["temperature"], "seed" in body) for body in asked]
    assert {tokens for tokens, _, _ in bodies} == set(range(1, 9))
    assert {temperature for _, temperature, _ in bodies} == {0, 0.8} and 8 < sum(seed for _, _, seed in bodies) < 40
    assert {len(body["messages"][-1]["content"].split()) for body in asked} > {1, 20}
    said = sum(body["max_tokens"] for body in asked)
    assert said * 0.8 < found["tokens_per_second"] * found["seconds"] < said


def test_answers_that_nobody_reads_are_asked_for_meanwhile(server: Any) -> None:
    url, asked = server(lambda _body: (200, stream("a")))
    found = measure_serve(url, replace(LOAD, unread=3))
    assert found["answers"] == 12 and len(asked) == 15
    assert sum(body.get("top_logprobs") == 20 for body in asked) == 3


@pytest.mark.parametrize(
    ("status", "text", "words"),
    [
        (400, "too long", "refuses with 400: too long"),
        (200, 'data: {"error": {"message": "out of memory"}}\n\n', "broke off: .*out of memory"),
        (200, "data: nonsense\n\n", "does not answer as OpenAI's API does"),
    ],
)
def test_a_server_that_fails_is_told(server: Any, status: int, text: str, words: str) -> None:
    url, _ = server(lambda _body: (status, text))
    with pytest.raises(UserError, match=words):
        measure_serve(url, LOAD)


def test_no_server_is_told(tmp_path: Path) -> None:
    done = bench(tmp_path, "serve", "--url", "http://127.0.0.1:9", shape=False)
    assert "the server at http://127.0.0.1:9 does not answer" in sentence(done)


def test_shares_and_how_many_at_once() -> None:
    assert quantiles([float(value) for value in range(100, 0, -1)]) == {"p50": 51, "p90": 91, "p99": 100, "count": 100}
    assert quantiles([2.0]) == {"p50": 2.0, "p90": 2.0, "p99": 2.0, "count": 1}
    spans = [(0.0, 4.0), (1.0, 2.0), (1.5, 3.0), (5.0, 6.0)]
    assert busiest([Answer(0, asked, came=[ended]) for asked, ended in spans]) == 3


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a tiny model."""
    tokenizer = Tokenizer([bytes([value]) for value in range(256)])
    config = ModelConfig(depth=1, width=32, heads=2, kv_heads=2, sequence_length=256, vocab_size=tokenizer.vocab_size)
    model = Transformer(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(generator=torch.Generator().manual_seed(1))
    tokenizer.save(tmp_path / "model")
    save_model(tmp_path / "model", model, {"stage": "sft"})
    return tmp_path / "model"


def test_a_model_is_served_and_asked(tmp_path: Path, model: Path) -> None:
    options = ("--rate", "20", "--conversations", "2", "--turns", "2", "--words", "2", "--tokens", "4", "--json")
    found = document(bench(tmp_path, "serve", str(model), *options, shape=False))
    assert (found["answers"], found["refused"]) == (4, 0)
    assert found["load"] == asdict(Load(rate=20, conversations=2, turns=2, words=2, tokens=4))
    assert found["memory"] is None or found["memory"]["late"] > 1


def test_a_server_takes_turns_with_its_engine(tmp_path: Path, model: Path) -> None:
    options = ("--clients", "5", "--slots", "2", "--tokens", "6", "--rounds", "5", "--busy", "1", "--json")
    found = document(bench(tmp_path, "serve", str(model), *options, shape=False))
    for item in found["measured"]:
        tokens = item["figures"]["tokens"]
        assert (tokens["low"], tokens["high"], tokens["rounds"]) == (30, 30, 5)
    assert [item["name"] for item in found["measured"]] == ["engine", "server"]
    assert found["first_token"]["count"] == 25 and 0 < found["first_token"]["p50"] <= found["first_token"]["p99"]
    engine, server = (item["figures"]["seconds"] for item in found["measured"])
    share = found["share"]["seconds"]
    assert engine["low"] / server["high"] <= share["median"] <= engine["high"] / server["low"]
    later = found["arrivals"]
    assert later["first_token"]["count"] == 5 * ARRIVALS and later["first_token"]["p50"] > 0
    assert later["requests_per_second"] == CALM * found["requests_per_second"]["median"]
    title, arrivals = (table.title for table in clients_tables(found))
    assert f"{5 * ARRIVALS} requests that come by themselves" in arrivals
    assert "5 clients at once on 2 slots, 6 tokens each, beside 1 busy processes" in title


def test_clients_need_a_model(tmp_path: Path) -> None:
    done = bench(tmp_path, "serve", "--url", "http://127.0.0.1:9", "--clients", "2", shape=False)
    assert "name a model instead" in sentence(done)
