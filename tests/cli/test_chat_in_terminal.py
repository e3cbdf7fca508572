"""A chat on a pseudo-terminal, by its keys and by what comes to the screen; and the same in a pipe."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

HERE = Path(__file__).parent
COMMAND = [sys.executable, str(HERE / "chat_process.py")]
PATIENCE = 60  # seconds; nothing waits so long but where it fails
SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_=>])")
PROMPTED = b"\x1b[?2004h"  # from now on pasted text is marked: the editor's first word
UP, ALT_ENTER, CTRL_C, CTRL_D, ENTER = "\x1b[A", "\x1b\r", "\x03", "\x04", "\r"


class Terminal:
    """A chat's process and the screen that it writes to."""

    def __init__(self, home: Path, **variables: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "NANOCHAT_HOME": str(home)}
        environment |= variables
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *COMMAND], stdin=slave, stdout=slave, stderr=slave, env=environment
        )
        os.close(slave)
        self.raw = b""
        self._read = 0  # characters of the screen that were looked at
        self._prompts = 0

    @property
    def screen(self) -> str:
        """All that was written, without what moves and colours."""
        return SEQUENCE.sub("", self.raw.decode("utf-8", "replace"))

    def type(self, *keys: str) -> None:
        os.write(self._master, "".join(keys).encode())

    def interrupt(self) -> None:
        """Ctrl-C once input() waits for keys: one that comes just before is only seen at the next key."""
        while psutil.Process(self.process.pid).status() != psutil.STATUS_SLEEPING:
            time.sleep(0.01)
        self.type(CTRL_C)

    def until(self, words: str) -> None:
        """Read until the words come that were not there at the last call."""
        while (at := self.screen.find(words, self._read)) < 0:
            assert self._more(), f"the process ended before it wrote {words!r}:\n{self.screen}"
        self._read = at + len(words)

    def prompted(self) -> None:
        """Read until the next prompt takes keys."""
        self._prompts += 1
        while self.raw.count(PROMPTED) < self._prompts:
            assert self._more(), f"the process ended before its prompt:\n{self.screen}"
        self._read = len(self.screen)

    def end(self) -> int:
        """Read to the end; the exit code."""
        while self._more():
            pass
        return self.process.wait(PATIENCE)

    def _more(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], PATIENCE)
        assert ready, f"nothing came any more:\n{self.screen}"
        try:
            data = os.read(self._master, 65_536)
        except OSError:  # Linux' way to say that nobody has the other end
            return False
        self.raw += data
        return bool(data)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[[], Terminal]]:
    """Begins chats of one home; each has shown its first prompt."""
    begun: list[Terminal] = []

    def begin() -> Terminal:
        begun.append(Terminal(tmp_path / "home"))
        begun[-1].prompted()
        return begun[-1]

    yield begin
    for each in begun:
        each.close()


def test_questions_are_there_in_the_next_session(terminal: Callable[[], Terminal], tmp_path: Path) -> None:
    first = terminal()
    first.type("first question", ENTER)
    first.until("heard 'first question'")
    first.prompted()
    first.type("second", ALT_ENTER, "line", ENTER)
    first.until(r"heard 'second\nline'")
    first.prompted()
    first.type(CTRL_D)
    assert first.end() == 0
    kept = tmp_path / "home" / "chat_history.jsonl"
    assert [json.loads(line) for line in kept.read_text().splitlines()] == ["first question", "second\nline"]
    assert kept.stat().st_mode & 0o777 == 0o600
    second = terminal()
    second.type(UP, UP, UP, ENTER)
    second.until("heard 'first question'")


def test_a_text_that_is_pasted_is_one_question(terminal: Callable[[], Terminal]) -> None:
    chat = terminal()
    chat.type("\x1b[200~one\ntwo\r\nthree\x1b[201~", ENTER)
    chat.until(r"heard 'one\ntwo\nthree'")


def test_ctrl_c_empties_the_line_and_another_ends(terminal: Callable[[], Terminal]) -> None:
    chat = terminal()
    chat.type(CTRL_C, "never asked", ALT_ENTER, "at all", CTRL_C, "asked", ENTER)
    chat.until("heard 'asked'")
    assert "heard 'never" not in chat.screen
    chat.prompted()
    chat.type("half", CTRL_C, CTRL_C)
    assert chat.end() == 0
    assert "ended" in chat.screen and "heard 'half" not in chat.screen


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(terminal: Callable[[], Terminal]) -> None:
    chat = terminal()
    chat.type("hold", ENTER)
    chat.until("holding on")
    chat.type(CTRL_C)
    chat.until("(stopped)")
    chat.prompted()
    chat.type("history", ENTER)
    chat.until("3 messages")


def test_answers_are_markdown(terminal: Callable[[], Terminal]) -> None:
    chat = terminal()
    chat.type(r"say: A **bold** word\n\n- one\n- two\n\n```python\ndef f(): pass\n```\n\nend", ENTER)
    chat.until("A bold word")
    chat.until("• one")
    chat.until("end")
    assert b"\x1b[1mbold\x1b[0m" in chat.raw
    assert b"mdef\x1b[0m" in chat.raw and "```python\n" not in chat.screen.replace("\r", "")


HOSTILE = {
    "title": r"\x1b]0;pwned\x07",
    "clear": r"\x1b[2J\x1b[H",
    "C1": r"\x9b2J\x90q\x9c",
    "clipboard": r"\x1b]52;c;cHduZWQ=\x07",
    "hyperlink": r"\x1b]8;;https://evil.example\x1b\\here\x1b]8;;\x1b\\",
    "device": r"\x1bP+q544e\x1b\\",
    "return": r"over\rwritten \b\b\b \x0b\x0c",
    "direction": r"\u202egnp.exe\u2066\u2069",
    "entities": "&#27;[2J &#x9b;2J &#13;over &#x202e;turned &#8;",
    "in code": r"```\n\x1b]0;pwned\x07\n```\n`\x1b[2J`",
    "in a language": r"```\x1b]0;pwned\x07\ncode\n```",
    "in a link": r"[a](https://evil.example/\x1b]0;pwned\x07 '\x1b[2J') <https://evil.example/\x9b>",
    "in a picture": r"![\x1b[2J](https://evil.example/\x1b]0;pwned\x07)",
    "in a table": r"| a\x1b[2J | b |\n|---|---|\n| \x1b]0;pwned\x07 | 2 |",
}
FORBIDDEN = re.compile("\x1b\\][0-9]|\x1b\\[2J|\x1bP|[\x07\x08\x0b\x0c\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.mark.parametrize("attack", HOSTILE)
def test_an_answer_cannot_control_the_terminal(terminal: Callable[[], Terminal], attack: str) -> None:
    chat = terminal()
    chat.type("\x1b[200~", f"say: {HOSTILE[attack]}", "\x1b[201~", ENTER)
    chat.prompted()
    answer = chat.raw.split(b"\x1b[?2004l")[1].partition(PROMPTED)[0].decode()  # from the editor's last word on
    assert answer.count("\x1b[2K"), "it was drawn over the sign of waiting"
    assert not FORBIDDEN.search(answer) and "\rwritten" not in answer


def test_a_home_that_cannot_be_used_is_told_of_and_the_chat_goes_on(
    terminal: Callable[[], Terminal], tmp_path: Path
) -> None:
    (tmp_path / "home").write_text("")
    chat = terminal()
    assert "Questions are not kept for later chats: " in chat.screen
    assert "set NANOCHAT_HOME to a folder of yours." in chat.screen
    chat.type("one", ENTER)
    chat.until("heard 'one'")


def test_without_the_editor_it_says_so_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "prompt_toolkit.py").write_text("raise ImportError")
    chat = Terminal(tmp_path / "home", PYTHONPATH=str(tmp_path))
    try:
        chat.until("prompt_toolkit is missing: pip install 'nanochat-kubernetes[chat]'.")
        chat.until("> ")
        chat.type("one", ENTER)
        chat.until("heard 'one'")
        chat.until("> ")
        chat.type("half")
        chat.until("half")
        chat.interrupt()
        chat.until("> ")
        chat.interrupt()
        assert chat.end() == 0 and "heard 'half" not in chat.screen
    finally:
        chat.close()
    assert not (tmp_path / "home").exists()


def piped(tmp_path: Path, *lines: str) -> Any:
    return subprocess.run(
        COMMAND,
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        env={**os.environ, "NANOCHAT_HOME": str(tmp_path / "home")},
        timeout=PATIENCE,
    )


def test_a_pipe_gets_the_answers_alone(tmp_path: Path) -> None:
    ran = piped(tmp_path, "one", r"say: **two** :cat: \x1b[2J\u202e", "/nothing", "/quit")
    assert (ran.returncode, ran.stdout) == (0, "heard 'one'\n**two** :cat: [2J\n")
    assert "There is no command /nothing" in ran.stderr and "> " not in ran.stderr
    assert not (tmp_path / "home").exists()


def test_a_chat_is_saved_and_gone_on_with(tmp_path: Path) -> None:
    file = tmp_path / "my chat.json"
    ran = piped(tmp_path, "/save", "one", "/seed 7", f"/save {file}", "two", "/save", "/clear", f"/save {file}")
    assert "There is no file to write yet: /save FILE names one." in ran.stderr
    assert f"{file} is there already: name another file." in ran.stderr
    (kept,) = json.loads(file.read_text())["conversations"]
    assert kept["name"] == "one" and kept["settings"]["seed"] == 7 and len(kept["messages"]) == 4
    ran = piped(tmp_path, f"/load {file}", "history", "/seed", "/retry")
    assert ran.stdout == "5 messages, seed 7\n5 messages, seed None\n"
