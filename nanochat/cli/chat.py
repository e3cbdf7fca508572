"""Chat in the terminal, with a model artifact or with a server.

chat(folder=folder)                              # talk until /quit
chat(folder=folder, prompt="What is 12 + 30?")   # one answer on standard output
chat(url="http://127.0.0.1:8000")                # NANOCHAT_API_KEY is sent as the key
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from nanochat.cli import options
from nanochat.cli.chat_backends import (
    ChatBackend,
    ContextFull,
    LocalBackend,
    Message,
    ReplySettings,
    Said,
)
from nanochat.cli.chat_remote import RemoteBackend
from nanochat.spec.bounds import OutOfBounds, Reader
from nanochat.spec.errors import NanochatError, UserError

T = TypeVar("T")

# A model's words could otherwise move the cursor, change the title or worse.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def chat(
    *,
    folder: Path | None = None,
    url: str | None = None,
    prompt: str | None = None,
    temperature: float = 0.6,
    top_k: int = 50,
    max_tokens: int = 256,
    system: str | None = None,
    int8: bool = False,
    guesses: int = 0,
) -> None:
    """Talk to the model in `folder`, or to the server at `url`. With a prompt: one answer, then return."""
    settings = ReplySettings(temperature=temperature, top_k=top_k, max_tokens=max_tokens)
    console = Console(highlight=False, soft_wrap=True)
    if url is not None and (int8 or guesses):
        raise UserError(
            "--int8 and --guesses are about a model in this process, and --url names a server: leave out --url or them."
        )
    if url is not None:
        backend: ChatBackend = RemoteBackend(url, api_key=os.environ.get("NANOCHAT_API_KEY"))
    elif folder is not None:
        with console.status("Loading the model"):
            backend = LocalBackend(folder, int8=int8, guesses=guesses)
    else:
        raise UserError("There is nobody to talk to; name a model or give --url.")
    session = Session(backend, settings, console=console, system=system)
    if prompt is not None:
        session.ask(prompt)
    else:
        session.run()


class Session:
    """One conversation: its messages, its settings and the commands that change them."""

    def __init__(
        self, backend: ChatBackend, settings: ReplySettings, *, console: Console, system: str | None = None
    ) -> None:
        self.messages: list[Message] = []
        self.settings = settings
        self.system = system
        self._backend = backend
        self._console = console
        self._commands: dict[str, tuple[str, Callable[[str], None]]] = {
            "help": ("show the commands", self._help),
            "clear": ("begin a new conversation", self._clear),
            "regenerate": ("answer the last question again", self._regenerate),
            "temperature": ("NUMBER: 0 takes the likeliest token, 1 follows the model", self._temperature),
            "topk": ("NUMBER: sample from so many of the likeliest tokens, 0 from all", self._top_k),
            "maxtokens": ("NUMBER: the longest answer, in tokens", self._max_tokens),
            "system": (
                "TEXT: begin a new conversation with this system message; without TEXT, with none",
                self._system,
            ),
            "quit": ("end", self._quit),
        }

    def run(self) -> None:
        """Ask until the user quits; Ctrl-C stops an answer, Ctrl-D ends."""
        with suppress(ImportError):
            import readline  # noqa: F401  (gives input() its editing keys and its history)
        self._note(f"You talk to {self._backend.name}. /help shows the commands; Ctrl-C stops an answer.")
        with suppress(EOFError):
            for line in self._lines():
                try:
                    if line.startswith("/"):
                        self._command(line)
                    else:
                        self.ask(line)
                except NanochatError as error:
                    self._note(error.message)

    def ask(self, question: str) -> None:
        """Put a question and print the answer as it comes. What fails leaves the conversation as it was."""
        self.messages.append({"role": "user", "content": question})
        before = list(self.messages)
        try:
            said = self._answer()
        except BaseException:
            self.messages = before[:-1]
            raise
        self.messages.append({"role": "assistant", "content": _content(said)})

    def _lines(self) -> Iterator[str]:
        while True:
            try:
                line = input("> ").strip()
            except KeyboardInterrupt:
                self._console.print()
                return
            if line:
                yield line

    def _answer(self) -> list[Said]:
        """Say it, forgetting the oldest exchanges where the conversation has outgrown the context."""
        while True:
            try:
                return self._say()
            except ContextFull:
                if len(self.messages) < 3:
                    raise
                del self.messages[:2]
                self._note("(The oldest exchange no longer fits into the context and is forgotten.)")

    def _say(self) -> list[Said]:
        heard: list[Said] = []
        system = [{"role": "system", "content": self.system}] if self.system else []
        stopped = False
        # Closing the reply stops the model, whatever ends the loop.
        with closing(self._backend.reply([*system, *self.messages], self.settings)) as reply:
            try:
                for said in reply:
                    self._print(said, before=heard[-1].kind if heard else "")
                    heard.append(said)
            except KeyboardInterrupt:
                stopped = True
        self._console.print()
        if stopped:
            self._note("(stopped)")
        elif self._backend.finish_reason == "length":
            self._note("(cut at the token limit)")
        return heard

    def _print(self, said: Said, *, before: str) -> None:
        """Print a piece; `before` is the kind of the piece before it. A call of the tool and its output are a line."""
        text = _CONTROL.sub("", said.text)
        terminal = self._console.is_terminal
        if terminal and before not in ("", said.kind) and said.kind != "python_output":
            self._console.print()
        if said.kind == "text":
            self._console.print(text, end="", markup=False)
        elif terminal:  # what is piped on is the answer alone
            opens = {"python": "tool: ", "python_output": " = "}[said.kind] if said.kind != before else ""
            self._console.print(opens + text, end="", markup=False, style="dim")
        sys.stdout.flush()

    def _note(self, text: str) -> None:
        """Something that is no part of the conversation; not to be mixed with an answer that is piped on."""
        console = self._console if self._console.is_terminal else Console(stderr=True, highlight=False)
        console.print(text, markup=False, style="dim")

    # --------------------------------------------------------------------------------------------------------
    # Commands

    def _command(self, line: str) -> None:
        name, _, argument = line[1:].partition(" ")
        if name not in self._commands:
            raise UserError(f"There is no command /{name}; /help shows them.")
        self._commands[name][1](argument.strip())

    def _help(self, _argument: str) -> None:
        for name, (meaning, _) in self._commands.items():
            self._note(f"/{name:<12} {meaning}")
        settings = self.settings
        self._note(
            f"Now: temperature {settings.temperature:g}, topk {settings.top_k}, maxtokens {settings.max_tokens}."
        )

    def _clear(self, _argument: str) -> None:
        self.messages.clear()
        self._note("A new conversation.")

    def _regenerate(self, _argument: str) -> None:
        if len(self.messages) < 2:
            raise UserError("There is no answer yet.")
        former = self.messages
        self.messages = former[:-2]
        try:
            self.ask(former[-2]["content"])
        except BaseException:
            self.messages = former
            raise

    def _temperature(self, argument: str) -> None:
        self.settings = replace(self.settings, temperature=_number(options.temperature, argument))

    def _top_k(self, argument: str) -> None:
        self.settings = replace(self.settings, top_k=_number(options.top_k, argument))

    def _max_tokens(self, argument: str) -> None:
        self.settings = replace(self.settings, max_tokens=_number(options.max_tokens, argument))

    def _system(self, argument: str) -> None:
        self.system = argument or None
        self._clear("")

    def _quit(self, _argument: str) -> None:
        raise EOFError


def _number(read: Reader[T], argument: str) -> T:
    try:
        return read(argument)
    except OutOfBounds as error:
        raise UserError(f"{error}.") from None


def _content(heard: list[Said]) -> str | list[dict[str, str]]:
    """A reply as a message's content: a string, or its parts where the tool was used."""
    parts: list[dict[str, str]] = []
    for said in heard:
        if parts and parts[-1]["type"] == said.kind:
            parts[-1]["text"] += said.text
        else:
            parts.append({"type": said.kind, "text": said.text})
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts
