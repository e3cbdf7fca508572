"""Chat in the terminal: history, commands, forgetting, and both kinds of backends."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.console import Console
from typer.testing import CliRunner

from nanochat.cli import chat_remote
from nanochat.cli.chat import Session, chat
from nanochat.cli.chat_backends import ContextFull, LocalBackend, Message, ReplySettings, Said
from nanochat.cli.chat_remote import RemoteBackend
from nanochat.cli.main import app
from nanochat.cli.warned import Warned
from nanochat.model.export import save_model
from nanochat.model.transformer import Transformer
from nanochat.runtime import native_code
from nanochat.serving.settings import ServerSettings
from nanochat.spec.errors import UserError
from nanochat.tokenizer import Tokenizer

SETTINGS = ReplySettings(temperature=0.0, top_k=0, max_tokens=12)


class FakeBackend:
    """Answers with what it was asked, and notes all it was given; holds `room` messages."""

    name = "an echo"

    def __init__(self, *, room: int = 100, fails: bool = False) -> None:
        self.finish_reason = "stop"
        self.dropped = 0
        self.given: list[tuple[list[Message], ReplySettings]] = []
        self.room = room
        self.fails = fails

    def reply(self, messages: Sequence[Message], settings: ReplySettings) -> Generator[Said]:
        if len(messages) > self.room:
            raise ContextFull("full")
        if self.fails:
            raise UserError("no luck")
        self.given.append((list(messages), settings))
        if "+" in messages[-1]["content"]:
            yield Said("python", "1+")
            yield Said("python", "11")
            yield Said("python_output", "1")
            yield Said("python_output", "2")
        yield Said("text", "You said: ")
        yield Said("text", messages[-1]["content"])


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Session, str]]:
    """Types lines into a session and returns it with what the screen shows."""

    def run(backend: FakeBackend, *lines: str, system: str | None = None) -> tuple[Session, str]:
        screen = io.StringIO()
        waiting = iter(lines)

        def typed(_prompt: str) -> str:
            line = next(waiting, None)
            if line is None:
                raise EOFError
            return line

        monkeypatch.setattr("builtins.input", typed)
        console = Console(file=screen, force_terminal=True, color_system=None, width=200)
        session = Session(backend, SETTINGS, console=console, system=system)
        session.run()
        return session, screen.getvalue()

    return run


def test_history_is_kept_and_cleared(talk: Callable[..., tuple[Session, str]]) -> None:
    backend = FakeBackend()
    session, screen = talk(backend, "one", "", "two", "/clear", "three")
    assert [[m["content"] for m in messages] for messages, _ in backend.given] == [
        ["one"], ["one", "You said: one", "two"], ["three"],
    ]  # fmt: skip
    assert "You said: two" in screen
    assert len(session.messages) == 2


def test_commands_change_settings_and_errors_change_nothing(
    talk: Callable[..., tuple[Session, str]],
) -> None:
    backend = FakeBackend()
    _, screen = talk(
        backend, "/temperature 0.5", "/topk 7", "/maxtokens 99", "/temperature hot", "/nothing", "one", "/help"
    )
    assert backend.given[0][1] == ReplySettings(temperature=0.5, top_k=7, max_tokens=99)
    assert "'hot' is not a number from 0 to 2." in screen
    assert "There is no command /nothing" in screen
    for name in (
        "help",
        "clear",
        "retry",
        "temperature",
        "topk",
        "maxtokens",
        "system",
        "seed",
        "topp",
        "save",
        "load",
        "quit",
    ):
        assert f"/{name}" in screen


def test_retrying_asks_the_same_again(talk: Callable[..., tuple[Session, str]]) -> None:
    backend = FakeBackend()
    session, screen = talk(backend, "/retry", "one", "/retry", "/quit", "never asked")
    assert "There is no question yet." in screen
    assert [messages for messages, _ in backend.given] == [[{"role": "user", "content": "one"}]] * 2
    assert len(session.messages) == 2


def test_a_question_that_failed_is_asked_again(talk: Callable[..., tuple[Session, str]], tmp_path: Path) -> None:
    backend, file = FakeBackend(fails=True), tmp_path / "chat.json"
    session, _ = talk(backend, "one", f"/save {file}")
    assert [each["role"] for each in json.loads(file.read_text())["conversations"][0]["messages"]] == ["user"]
    backend.fails = False
    session, screen = talk(backend, f"/load {file}", "/retry", "/retry")
    assert "This question has no answer yet; /retry asks it." in screen
    assert [messages for messages, _ in backend.given] == [[{"role": "user", "content": "one"}]] * 2
    assert len(session.messages) == 2


def test_one_chat_of_several_in_a_file_is_chosen(talk: Callable[..., tuple[Session, str]], tmp_path: Path) -> None:
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for file, question in zip(files, ("1 + 1?", "\u202eHi"), strict=True):
        talk(FakeBackend(), question, f"/save {file}")
    first, second = (json.loads(file.read_text()) for file in files)
    first["conversations"] += second["conversations"]
    both = tmp_path / "both.json"
    both.write_text(json.dumps(first))
    session, screen = talk(FakeBackend(), f"/load {both}", f"/load {both} 3", f"/load {both} x", f"/load {both} 2")
    assert screen.count(f"{both} holds 2 chats; put the number of one behind it:\n1 Hi\n2 1 + 1?\n") == 2
    assert f"There is no file {both} x; name one" in screen
    assert "2 messages of 1 + 1? are loaded.\n> 1 + 1?\ntool: 1+11 = 12\nYou said: 1 + 1?\n" in screen
    assert session.messages[-1]["content"][0] == {"type": "python", "text": "1+11"}


def test_a_file_that_has_more_than_is_loaded_is_not_written_over(
    talk: Callable[..., tuple[Session, str]], tmp_path: Path
) -> None:
    file, other = tmp_path / "page.json", tmp_path / "other.json"
    talk(FakeBackend(), "one", f"/save {file}")
    plain = json.loads(file.read_text())
    answer = plain["conversations"][0]["messages"][1]
    answer["note"] = "stopped"
    plain["conversations"][0]["messages"].append({**answer, "note": ""})  # another branch
    file.write_text(json.dumps(plain))
    for name in ("", f" {file}"):
        _, screen = talk(FakeBackend(), f"/load {file}", "two", f"/save{name}")
        assert f"{file} has more than is loaded (chats, branches, figures or notes): name another file." in screen
    assert json.loads(file.read_text()) == plain
    talk(FakeBackend(), f"/load {file}", "two", f"/save {other}", "three", "/save")
    assert len(json.loads(other.read_text())["conversations"][0]["messages"]) == 6
    talk(FakeBackend(), f"/load {other}", "four", "/save")
    assert len(json.loads(other.read_text())["conversations"][0]["messages"]) == 8


def test_a_loaded_chat_has_its_settings(talk: Callable[..., tuple[Session, str]], tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    talk(FakeBackend(), "/system Be brief.", "/seed 7", "/topp 0.5", "/temperature 1", "one", f"/save {file}")
    backend = FakeBackend()
    talk(backend, f"/load {file}", "two", "/clear", "/seed", "three", "/topp 2")
    messages, settings = backend.given[0]
    assert messages[0] == {"role": "system", "content": "Be brief."} and len(messages) == 4
    assert settings == replace(SETTINGS, temperature=1.0, top_p=0.5, seed=7)
    assert backend.given[1] == ([messages[0], {"role": "user", "content": "three"}], replace(settings, seed=None))


def test_system_messages_come_first(talk: Callable[..., tuple[Session, str]]) -> None:
    backend = FakeBackend()
    talk(backend, "one", "/system Be brief.", "two", system="Be kind.")
    assert backend.given[0][0][0] == {"role": "system", "content": "Be kind."}
    assert backend.given[1][0] == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "two"},
    ]  # fmt: skip


def test_the_oldest_exchanges_are_forgotten_when_the_context_is_full(
    talk: Callable[..., tuple[Session, str]],
) -> None:
    backend = FakeBackend(room=3)
    _, screen = talk(backend, "one", "two", "three")
    assert [m["content"] for m in backend.given[-1][0]] == ["two", "You said: two", "three"]
    assert "no longer fits" in screen
    session, screen = talk(FakeBackend(room=0), "one")
    assert "full" in screen and session.messages == []


def test_what_a_backend_leaves_out_is_told_and_not_asked_again(talk: Callable[..., tuple[Session, str]]) -> None:
    backend = FakeBackend()
    backend.dropped = 2
    _, screen = talk(backend, "one", "two", "three")
    assert [[m["content"] for m in messages] for messages, _ in backend.given] == [
        ["one"], ["one", "You said: one", "two"], ["two", "You said: two", "three"],
    ]  # fmt: skip
    assert screen.count("(The oldest exchange no longer fits into the context and is forgotten.)") == 2
    assert "keeps no room" not in screen


def test_tool_calls_are_shown_and_kept_in_the_history(talk: Callable[..., tuple[Session, str]]) -> None:
    session, screen = talk(FakeBackend(), "1 + 11?")
    assert screen.rpartition("\x1b[2K")[2].startswith("tool: 1+11 = 12\nYou said: 1 + 11?\n")
    assert [part["type"] for part in session.messages[-1]["content"]] == ["python", "python_output", "text"]


def test_a_reply_cannot_control_the_terminal(talk: Callable[..., tuple[Session, str]]) -> None:
    _, screen = talk(FakeBackend(), "[bold]\x1b]0;title\x07\u009b2J")
    assert "[bold]]0;title2J" in screen
    assert "\x1b]0" not in screen and "\u009b" not in screen


def test_what_fails_leaves_the_conversation_as_it_was(talk: Callable[..., tuple[Session, str]]) -> None:
    session, screen = talk(FakeBackend(fails=True), "one")
    assert "no luck" in screen and session.messages == []


@pytest.fixture
def folder(tmp_path: Path, model: Transformer, tokenizer: Tokenizer) -> Path:
    save_model(tmp_path, model, {"stage": "sft"})
    tokenizer.save(tmp_path)
    return tmp_path


def said(backend: Any, messages: Sequence[Message]) -> list[Said]:
    return list(backend.reply(messages, SETTINGS))


def text(pieces: Sequence[Said]) -> str:
    return "".join(piece.text for piece in pieces if piece.kind == "text")


def test_both_kinds_of_backends_answer_and_stop(folder: Path, server: Any, until: Callable[..., None]) -> None:
    question = [{"role": "user", "content": "What is 12 + 30?"}]
    local, remote = LocalBackend(folder), RemoteBackend(f"{server.url}/v1/")
    assert (local.name, remote.name) == ("the sft model", "tiny")
    assert text(said(remote, question))
    assert remote.finish_reason in ("stop", "length")
    assert text(said(local, question))
    assert local.finish_reason in ("stop", "length")
    for backend in (local, remote):
        reply = backend.reply(question, SETTINGS)
        next(reply)
        reply.close()
    until(lambda: server.service.open == 0)


def test_one_question_prints_one_answer(folder: Path, server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    chat(folder=folder, prompt="Hello", max_tokens=5, temperature=0.0, top_k=0)
    local = capsys.readouterr()
    assert local.out.strip()
    chat(url=server.url, prompt="Hello", max_tokens=5, temperature=0.0, top_k=0)
    assert capsys.readouterr().out.strip()


def test_it_is_said_once_where_no_fast_code_answers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native_code, "cxx_compiler", lambda: None)
    chat(folder=folder, prompt="Hello", max_tokens=5, temperature=0.0, top_k=0)
    told = capsys.readouterr()
    why = "warning: answers are computed by PyTorch, which is slower: there is no C++ compiler; install g++"
    assert told.err.startswith(why) and told.err.count("PyTorch") == 1 and "PyTorch" not in told.out


def test_what_goes_wrong_beside_an_answer_is_said_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Troubled(FakeBackend):
        def reply(self, messages: Sequence[Message], settings: ReplySettings) -> Generator[Said]:
            for said in super().reply(messages, settings):
                logging.getLogger("nanochat.test").warning("no code after %s", said.text)
                yield said

    screen, warnings, lines = io.StringIO(), deque(["warning: no code at all"]), iter(["one", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _prompt: next(lines))
    console = Console(file=screen, force_terminal=True, color_system=None, width=200)
    with Warned(warnings.append):
        Session(Troubled(), SETTINGS, console=console, warnings=warnings).run()
    before, _, after = screen.getvalue().partition("You said: one")
    assert before.count("warning: ") == 1 and "warning: no code at all\n" in before
    assert "warning: no code after You said: \nwarning: no code after one\n" in after


@pytest.mark.parametrize("option", [{"int8": True}, {"guesses": 3}], ids=str)
def test_a_local_model_answers_with_each_option_and_a_server_refuses_it(folder: Path, option: dict[str, Any]) -> None:
    question = [{"role": "user", "content": "Hello hello hello"}]
    plain, other = (LocalBackend(folder, **given) for given in ({}, option))
    answers = [text(list(backend.reply(question, SETTINGS))) for backend in (plain, other)]
    assert answers[0] and answers[1]
    if "guesses" in option:
        assert answers[0] == answers[1]
    with pytest.raises(UserError, match="--url names a server: leave out --url or them"):
        chat(url="http://127.0.0.1:9", prompt="Hello", **option)


def test_a_history_that_leaves_no_room_is_full(folder: Path, server: Any) -> None:
    long = "word " * 110
    history = [
        {"role": "user", "content": long}, {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": long},
    ]  # fmt: skip
    for backend in (LocalBackend(folder), RemoteBackend(server.url)):
        with pytest.raises(ContextFull):
            said(backend, [{"role": "user", "content": long * 9}])
        with pytest.raises(ContextFull):
            said(backend, [*history[:2], {"role": "user", "content": long * 5}])


def test_a_server_keeps_room_for_an_answer(server: Any) -> None:
    backend = RemoteBackend(server.url)
    history = [{"role": role, "content": "word " * 20} for _ in range(8) for role in ("user", "assistant")]
    list(backend.reply([*history, {"role": "user", "content": "Hi"}], replace(SETTINGS, max_tokens=60)))
    assert backend.dropped
    said(backend, [{"role": "user", "content": "Hi"}])
    assert backend.dropped == 0


class Stranger(http.server.BaseHTTPRequestHandler):
    """Some other server of OpenAI's protocol; it notes what it is sent, and streams `says`."""

    sent: ClassVar[list[dict[str, Any]]] = []
    says: ClassVar[bytes] = b""
    knows: ClassVar[bool] = True  # that there is a field `truncation`

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b'{"data": [{"id": "m"}]}')

    def do_POST(self) -> None:
        self.sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        known = self.knows or "truncation" not in self.sent[-1]
        self._answer(self.says if known else b'{"detail": "no such field"}', status=200 if known else 422)

    def _answer(self, body: bytes, *, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def stranger() -> Iterator[tuple[type[Stranger], str]]:
    class Handler(Stranger):
        sent: ClassVar[list[dict[str, Any]]] = []

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Handler, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_seed_makes_a_local_answer_repeatable_and_is_sent(folder: Path, stranger: Any) -> None:
    handler, url = stranger
    handler.says = EVENT + b"data: [DONE]\n\n"
    question, seeded = [{"role": "user", "content": "Hi"}], replace(SETTINGS, temperature=1.0, top_p=0.9, seed=7)
    backend = LocalBackend(folder)
    assert text(list(backend.reply(question, seeded))) == text(list(backend.reply(question, seeded)))
    list(RemoteBackend(url).reply(question, seeded))
    assert handler.sent[0]["seed"] == 7 and handler.sent[0]["top_p"] == 0.9


@pytest.mark.parametrize("top_k", [0, 7])
def test_what_the_user_set_is_sent(stranger: Any, top_k: int) -> None:
    handler, url = stranger
    handler.says = b'data:{"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n: ping\n\ndata: [DONE]\n\n'
    options = ["--url", url, "-p", "Hi", "--top-k", str(top_k), "--temperature", "0", "--max-tokens", "3"]
    assert CliRunner().invoke(app, ["chat", *options]).exit_code == 0
    assert handler.sent == [
        {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True, "temperature": 0.0,
         "top_k": top_k, "max_tokens": 3, "truncation": "auto"}
    ]  # fmt: skip


@pytest.mark.parametrize("knows", [False, True], ids=["refuses", "ignores"])
def test_a_server_that_cannot_keep_room_answers_and_it_is_said_once(
    talk: Callable[..., tuple[Session, str]], stranger: Any, knows: bool
) -> None:
    handler, url = stranger
    handler.says, handler.knows = EVENT + b"data: [DONE]\n\n", knows
    session, screen = talk(RemoteBackend(url), "one", "two", "three")  # pyright: ignore[reportArgumentType]
    assert len(session.messages) == 6
    assert ["truncation" in body for body in handler.sent] == ([True] * 3 if knows else [True, False, False, False])
    assert screen.count("(This server keeps no room for answers: /clear begins a new conversation") == 1


@pytest.mark.parametrize("dropped", ["-2", "3", "2.0", '"2"', "9e9", "null"])
def test_a_number_of_dropped_messages_that_makes_no_sense_is_one_sentence(stranger: Any, dropped: str) -> None:
    handler, url = stranger
    handler.says = EVENT.replace(b"}\n", b', "dropped_messages": ' + dropped.encode() + b"}\n") + b"data: [DONE]\n\n"
    with pytest.raises(UserError, match="does not speak OpenAI's protocol"):
        said(RemoteBackend(url), [{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize(
    "says", [b"data: {", b"data: 5", b"data: {}", b'data: {"error": "no"}', b'data: {"choices": [{"delta": 5}]}']
)
def test_a_stream_that_is_no_answer_is_one_sentence(stranger: Any, says: bytes) -> None:
    handler, url = stranger
    handler.says = says + b"\n\n"
    with pytest.raises(UserError, match="does not speak OpenAI's protocol"):
        said(RemoteBackend(url), [{"role": "user", "content": "Hi"}])


EVENT = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'


@pytest.mark.parametrize(
    "says",
    [
        b"<html></html>", b'data: {"choices":[{"delta":{"content":"\xff"}}]}', b"data: " + b"[" * 100_000,
        b'data: {"choices":[{"index":' + b"9" * 100_000 + b"}]}", b'data: {"choices":[{"delta":{"content":[1]}}]}',
        b'data: {"choices":[{"delta":{"part":{"type":"image","text":"x"}}}]}', b"data: " + b"a" * (3 << 20),
    ],
    ids=["a page", "not UTF-8", "deep", "a large number", "no text", "no kind", "an endless line"],
)  # fmt: skip
def test_a_stream_of_the_wrong_kind_is_one_sentence(stranger: Any, says: bytes) -> None:
    handler, url = stranger
    handler.says = says + b"\n\n"
    with pytest.raises(UserError, match="does not speak OpenAI's protocol"):
        said(RemoteBackend(url), [{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize(
    ("begin", "again", "sentence"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b": ping\n\n" * 1000, "sent more than"),
        (b"HTTP/1.1 200 OK\r\n\r\n", EVENT * 1000, "sent more than"),
        (b"HTTP/1.1 500 No\r\n\r\n", b"a" * 65_536, "sent more than"),
        (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n" * 1000, "broke off"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, "said nothing for 1 seconds"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + EVENT, b"", "said nothing for 1 seconds"),
    ],
    ids=["comments", "events", "an error", "headers", "informational answers", "silence"],
)
def test_an_answer_without_an_end_is_given_up(
    stranger: Any, monkeypatch: pytest.MonkeyPatch, begin: bytes, again: bytes, sentence: str
) -> None:
    handler, url = stranger
    ended = threading.Event()

    def post(self: Stranger) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.wfile.write(begin)
        with contextlib.suppress(ConnectionError):
            while again:
                self.wfile.write(again)
        ended.wait()

    monkeypatch.setattr(handler, "do_POST", post)
    monkeypatch.setattr(chat_remote, "MOST_ANSWER", 1 << 20)
    backend = RemoteBackend(url)
    monkeypatch.setattr(chat_remote, "SILENT_SECONDS", 1 if "nothing" in sentence else 60)
    with pytest.raises(UserError, match=sentence):
        said(backend, [{"role": "user", "content": "Hi"}])
    ended.set()


def test_an_answer_that_ends_early_is_told(stranger: Any) -> None:
    handler, url = stranger
    handler.says = EVENT
    with pytest.raises(UserError, match="ended its answer early"):
        said(RemoteBackend(url), [{"role": "user", "content": "Hi"}])


def test_a_strangers_own_words_are_short_and_on_one_line(stranger: Any) -> None:
    handler, url = stranger
    handler.says = b'data: {"error": {"message": "a\\u001b[31m\\n' + b"b" * 5000 + b'"}}\n\n'
    with pytest.raises(UserError) as refused:
        said(RemoteBackend(url), [{"role": "user", "content": "Hi"}])
    assert refused.value.message.startswith("The server says: a [31m bbb") and len(refused.value.message) < 600


def test_what_is_no_text_is_refused_in_a_sentence(server: Any) -> None:
    with pytest.raises(UserError, match="refused"):
        said(RemoteBackend(server.url), [{"role": "user", "content": "a\udcff"}])
    with pytest.raises(UserError, match="NANOCHAT_API_KEY"):
        RemoteBackend(server.url, api_key="schl\u00fcssel")


def test_a_server_that_is_not_there_or_refuses_is_one_sentence(
    start: Callable[..., Any], server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="No server answers"):
        RemoteBackend("http://127.0.0.1:9")
    guarded = start(settings=ServerSettings(api_keys=frozenset({"key"})))
    monkeypatch.delenv("NANOCHAT_API_KEY", raising=False)
    with pytest.raises(UserError, match="NANOCHAT_API_KEY"):
        chat(url=guarded.url, prompt="Hello")
    monkeypatch.setenv("NANOCHAT_API_KEY", "key")
    chat(url=guarded.url, prompt="Hello", max_tokens=2)
    with pytest.raises(UserError, match="nobody to talk to"):
        chat(prompt="Hello")
    with pytest.raises(UserError, match="does not speak"):
        RemoteBackend(f"{server.url}/?")
