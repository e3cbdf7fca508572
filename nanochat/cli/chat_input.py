"""Questions as a user types them: on a terminal with editing and a history over sessions, from a pipe line by line.

    for question in typed(console, note):
        ...

On a terminal Enter sends, Alt+Enter or Ctrl-J begins a new line, and the arrows go through earlier questions. Ctrl-C
empties what is typed; a second one ends, as Ctrl-D does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

from rich.console import Console

from nanochat.cli.chat_history import HistoryFile
from nanochat.pipeline.profiles import home_folder
from nanochat.spec.errors import UserError

PROMPT = "> "
HISTORY = "chat_history.jsonl"  # in the home
NO_EDITOR = (
    "Questions are not kept for later chats, for prompt_toolkit is missing: pip install 'nanochat-kubernetes[chat]'."
)


def typed(console: Console, note: Callable[[str], None]) -> Iterator[str]:
    """Lines, or several at once, until the user ends; `note` is told in a sentence what does not work here."""
    read = _reader(console, note)
    interrupted = False
    while True:
        try:
            line = read().encode("utf-8", "replace").decode().strip()
        except KeyboardInterrupt:
            console.print()
            if interrupted:
                return
            interrupted = True
        except EOFError:
            return
        else:
            interrupted = False
            if line:
                yield line


def _reader(console: Console, note: Callable[[str], None]) -> Callable[[], str]:
    if not sys.stdin.isatty():
        return lambda: input("")
    if not console.is_terminal:
        return _asked_aside
    try:
        return _editor(note)
    except ImportError:
        note(NO_EDITOR)
    with suppress(ImportError):
        import readline  # noqa: F401  (gives input() its editing keys)
    return lambda: input(PROMPT)


def _asked_aside() -> str:
    """Standard output has the answers alone."""
    print(PROMPT, end="", file=sys.stderr, flush=True)
    return input("")


def _editor(note: Callable[[str], None]) -> Callable[[], str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.filters import is_searching
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter", filter=~is_searching)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c", filter=~is_searching)
    @keys.add("<sigint>", filter=~is_searching)
    def _(event: KeyPressEvent) -> None:
        if event.is_repeat:
            event.app.exit(exception=EOFError())
        event.current_buffer.reset()

    kept = _Kept(note)
    session: PromptSession[str] = PromptSession(
        PROMPT,
        history=InMemoryHistory(kept.entries()),
        multiline=True,
        prompt_continuation=". ",
        key_bindings=keys,
    )

    def read() -> str:
        line = session.prompt()
        kept.add(line)
        return line

    return read


class _Kept:
    """The history file, until it cannot be used, which is said once."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._file: HistoryFile | None = None
        try:
            self._file = HistoryFile(home_folder() / HISTORY)
        except UserError as error:
            note(error.message)

    def entries(self) -> list[str]:
        try:
            return self._file.entries() if self._file else []
        except OSError as error:
            self._lose(error)
            return []

    def add(self, line: str) -> None:
        try:
            if self._file and line.strip():
                self._file.add(line)
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        assert self._file is not None
        self._note(
            f"Questions are not kept for later chats: {self._file.path} cannot be used ({error.strerror or error}); "
            "set NANOCHAT_HOME to a folder of yours."
        )
        self._file = None
