"""Chat in the terminal, with a model artifact or with a server.

chat(folder=folder)                              # talk until /quit
chat(folder=folder, prompt="What is 12 + 30?")   # one answer on standard output
chat(url="http://127.0.0.1:8000")                # NANOCHAT_API_KEY is sent as the key
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from nanochat.cli import chat_file, options
from nanochat.cli.chat_backends import (
    ChatBackend,
    ContextFull,
    LocalBackend,
    Message,
    ReplySettings,
    Said,
    from_content,
    to_content,
)
from nanochat.cli.chat_display import clean, display, rendered
from nanochat.cli.chat_file import SavedChat
from nanochat.cli.chat_input import typed
from nanochat.cli.chat_remote import RemoteBackend
from nanochat.cli.warned import Warned
from nanochat.spec.bounds import OutOfBounds, Reader, integer, path
from nanochat.spec.errors import NanochatError, UserError

T = TypeVar("T")

LISTED = 20  # chats of a file, by their names


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
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    if url is not None and (int8 or guesses):
        raise UserError(
            "--int8 and --guesses are about a model in this process, and --url names a server: leave out --url or them."
        )
    warnings: deque[str] = deque()
    with Warned(warnings.append):
        if url is not None:
            backend: ChatBackend = RemoteBackend(url, api_key=os.environ.get("NANOCHAT_API_KEY"))
        elif folder is not None:
            with console.status("Loading the model"):
                backend = LocalBackend(folder, int8=int8, guesses=guesses)
        else:
            raise UserError("There is nobody to talk to; name a model or give --url.")
        session = Session(backend, settings, console=console, system=system, warnings=warnings)
        if prompt is not None:
            session.ask(prompt)
        else:
            session.run()


class Session:
    """One conversation: its messages, its settings and the commands that change them. What comes into `warnings` is
    said when neither an answer nor a prompt is on the screen."""

    def __init__(
        self,
        backend: ChatBackend,
        settings: ReplySettings,
        *,
        console: Console,
        system: str | None = None,
        warnings: deque[str] | None = None,
    ) -> None:
        self.messages: list[Message] = []
        self.settings = settings
        self.system = system
        self._name = ""  # of the chat, in files
        self._omitted = 0  # messages at the beginning that no longer fit into the context
        self._unanswered = ""  # the question that was put last, where it has no answer
        self._file: Path | None = None  # of the last /save or /load
        self._told = False  # that the server keeps no room for answers
        self._whole = True  # this conversation is all that the file has
        self._warnings = deque[str]() if warnings is None else warnings
        self._backend = backend
        self._console = console
        self._commands: dict[str, tuple[str, Callable[[str], None]]] = {
            "help": ("show the commands", self._help),
            "clear": ("begin a new conversation", self._clear),
            "retry": ("answer the last question again", self._retry),
            "temperature": (
                "NUMBER: 0 takes the likeliest token, 1 follows the model",
                partial(self._set, "temperature", options.temperature),
            ),
            "topk": (
                "NUMBER: sample from so many of the likeliest tokens, 0 from all",
                partial(self._set, "top_k", options.top_k),
            ),
            "topp": (
                "NUMBER: sample from the likeliest tokens that together reach this probability",
                partial(self._set, "top_p", options.top_p),
            ),
            "maxtokens": (
                "NUMBER: the longest answer, in tokens",
                partial(self._set, "max_tokens", options.max_tokens),
            ),
            "seed": ("NUMBER: the same question has the same answer; without NUMBER, another each time", self._seed),
            "system": (
                "TEXT: begin a new conversation with this system message; without TEXT, with none",
                self._system,
            ),
            "save": ("FILE: write the conversation, as the chat page imports it; without FILE, once more", self._save),
            "load": ("FILE: go on with a conversation that /save or the chat page's Export wrote", self._load),
            "quit": ("end", self._quit),
        }

    def run(self) -> None:
        """Ask until the user quits; Ctrl-C stops an answer, Ctrl-D ends."""
        self._note(f"You talk to {self._backend.name}. /help shows the commands; Ctrl-C stops an answer, Ctrl-D ends.")
        self._warn()
        with suppress(EOFError):
            for line in typed(self._console, self._note):
                try:
                    if line.startswith("/"):
                        self._command(line)
                    else:
                        self.ask(line)
                except NanochatError as error:
                    self._note(error.message)

    def ask(self, question: str) -> None:
        """Put a question and print the answer as it comes. What fails leaves the conversation as it was."""
        self._unanswered = question
        self._exchange(self.messages, question)
        self._name = self._name or chat_file.first_words(question)
        self._unanswered = ""

    def _exchange(self, before: list[Message], question: str) -> None:
        """Go on from `before` with a question and its answer."""
        messages = [*before, {"role": "user", "content": question}]
        said = self._answer(messages)
        self.messages = [*messages, {"role": "assistant", "content": to_content(said)}]

    def _answer(self, messages: list[Message]) -> list[Said]:
        """Say it, forgetting the oldest exchanges where the conversation has outgrown the context."""
        before = omitted = min(self._omitted, len(messages) - 1)
        said = None
        while said is None:
            try:
                said = self._say(messages[omitted:])
            except ContextFull:
                if len(messages) - omitted < 3:
                    raise
                omitted += 2
        self._omitted = min(omitted + (self._backend.dropped or 0), len(messages) - 1)
        for _ in range(before, self._omitted, 2):
            self._note("(The oldest exchange no longer fits into the context and is forgotten.)")
        if said and self._backend.dropped is None and len(messages) > 1 and not self._told:
            self._note("(This server keeps no room for answers: /clear begins a new conversation when they get short.)")
            self._told = True
        return said

    def _say(self, messages: list[Message]) -> list[Said]:
        heard: list[Said] = []
        system = [{"role": "system", "content": self.system}] if self.system else []
        stopped = False
        self._warn()
        # Closing the reply stops the model, whatever ends the loop.
        with (
            closing(self._backend.reply([*system, *messages], self.settings)) as reply,
            display(self._console) as screen,
        ):
            try:
                for said in reply:
                    screen.add(said)
                    heard.append(said)
            except KeyboardInterrupt:
                stopped = True
        if stopped:
            self._note("(stopped)")
        elif self._backend.finish_reason == "length":
            self._note("(cut at the token limit)")
        self._warn()
        return heard

    def _warn(self) -> None:
        while self._warnings:
            self._note(self._warnings.popleft())

    def _note(self, text: str) -> None:
        """Something that is no part of the conversation; not to be mixed with an answer that is piped on."""
        console = (
            self._console
            if self._console.is_terminal
            else Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
        )
        console.print(clean(text), markup=False, style="dim")

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
        now = self.settings
        seed = "random" if now.seed is None else now.seed
        self._note(
            f"Now: temperature {now.temperature:g}, topk {now.top_k}, topp {now.top_p:g}, maxtokens {now.max_tokens}, "
            f"seed {seed}. Alt+Enter begins a line; Ctrl-C empties it; Ctrl-D ends."
        )

    def _clear(self, _argument: str) -> None:
        self._begin(SavedChat(name="", messages=[], system=self.system))
        self._file = None
        self._note("A new conversation.")

    def _begin(self, chat: SavedChat) -> None:
        self.messages, self.system = list(chat.messages), chat.system
        self._name, self._omitted = chat.name, chat.omitted
        open_ = self.messages and self.messages[-1]["role"] == "user"
        self._unanswered = self.messages.pop()["content"] if open_ else ""

    def _retry(self, _argument: str) -> None:
        if self._unanswered:
            self.ask(self._unanswered)
        elif self.messages:
            self._exchange(self.messages[:-2], self.messages[-2]["content"])
        else:
            raise UserError("There is no question yet.")

    def _set(self, name: str, read: Reader[Any], argument: str) -> None:
        self.settings = replace(self.settings, **{name: _value(read, argument)})

    def _seed(self, argument: str) -> None:
        self.settings = replace(self.settings, seed=_value(options.seed, argument) if argument else None)

    def _system(self, argument: str) -> None:
        self.system = _value(options.system, argument) if argument else None
        self._clear("")

    def _save(self, argument: str) -> None:
        file = _value(path, argument).expanduser() if argument else self._file
        if file is None:
            raise UserError("There is no file to write yet: /save FILE names one.")
        if file == self._file and not self._whole:
            raise UserError(f"{file} has more than is loaded (chats, branches, figures or notes): name another file.")
        if file != self._file and file.exists():
            raise UserError(f"{file} is there already: name another file.")
        messages = [*self.messages, *([{"role": "user", "content": self._unanswered}] if self._unanswered else [])]
        settings = {name: value for name, value in asdict(self.settings).items() if value is not None}
        name = self._name or chat_file.first_words(self._unanswered)
        chat_file.save(file, SavedChat(name, messages, settings, self.system, self._omitted))
        self._file, self._whole = file, True
        self._note(f"The conversation is in {file}; the chat page can import it.")

    def _load(self, argument: str) -> None:
        file, number = _file_and_number(argument)
        chats = chat_file.load(file)
        if not chats or (number or 1) > len(chats) or (len(chats) > 1 and not number):
            names = "".join(
                f"\n{place} {chat.name or 'New chat'}" for place, chat in enumerate(chats[:LISTED], start=1)
            )
            raise UserError(f"{file} holds {len(chats)} chats; put the number of one behind it:{names}")
        chat = chats[(number or 1) - 1]
        self._begin(chat)
        self.settings = replace(self.settings, **{"seed": None, **chat.settings})
        self._file, self._whole = file, len(chats) == 1 and chat.whole
        self._note(f"{len(self.messages)} messages of {chat.name or 'a chat'} are loaded.")
        self._show_last()

    def _show_last(self) -> None:
        """The end of the conversation, on a terminal."""
        if not self._console.is_terminal:
            return
        for message in self.messages[-2:]:
            if message["role"] == "user":
                self._note(f"> {message['content']}")
            else:
                self._console.print(rendered(from_content(message["content"])), end="")
        if self._unanswered:
            self._note(f"> {self._unanswered}\nThis question has no answer yet; /retry asks it.")

    def _quit(self, _argument: str) -> None:
        raise EOFError


def _value(read: Reader[T], argument: str) -> T:
    try:
        return read(argument)
    except OutOfBounds as error:
        raise UserError(f"{error}.") from None


def _file_and_number(argument: str) -> tuple[Path, int]:
    """The file that /load was given, and the place of a chat in it, 0 where none was named."""
    file = _value(path, argument).expanduser()
    name, _, number = argument.rpartition(" ")
    if file.exists() or not (name and number.isdecimal()):
        return file, 0
    return Path(name.strip()).expanduser(), _value(integer(1, chat_file.MOST_CHATS), number)
