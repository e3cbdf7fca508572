"""An answer on the screen while it comes: Markdown on a terminal, its bare text in a pipe.

    with display(console) as screen:
        for said in reply:
            screen.add(said)

The model's words may mean harm: whatever could move the cursor, change the title or turn the direction of writing is
left out, HTML is shown as the text that it is, and links show where they lead.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, paragraph
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

from nanochat.cli.chat_backends import Said, merged

MOST_MARKDOWN = 32_000  # characters; what is longer is shown as it is, for some of it is slow to read
DEEPEST = 16  # levels of quotes and lists; the parser leaves out what is deeper than 20
REST = 4  # times as long as drawing took, before the next: the model computes beside it
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_NUMBER = re.compile(r"\d{1,9}[.)]\s*")


class Screen(Protocol):
    """A place for one answer."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    def add(self, said: Said) -> None:
        """Show a further stretch of the answer."""
        ...


def display(console: Console) -> Screen:
    """The place that the console has."""
    return _Terminal(console) if console.is_terminal else _Pipe()


def clean(text: str) -> str:
    """The text without characters that control a terminal; tabs and new lines stay."""
    return _CONTROL.sub("", text)


def rendered(said: Sequence[Said]) -> RenderableType:
    """An answer as it looks on a terminal."""
    return _Lines(said)


class _Pipe:
    """Standard output has the answer's text and a new line; what the tool said is no part of it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            print(flush=True)

    def add(self, said: Said) -> None:
        if said.kind == "text":
            print(clean(said.text), end="", flush=True)


class _Terminal:
    """Draws anew what fits on the screen as the answer grows, and all of it at its end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said: list[Said] = []
        self._live = Live(Text("...", style="dim"), console=console, auto_refresh=False)
        self._rested = 0.0  # when it may be drawn again, by the monotonic clock

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.transient = not self._said
        self._live.update(_Lines(self._said))
        self._live.stop()

    def add(self, said: Said) -> None:
        self._said.append(said)
        begun = time.monotonic()
        if begun >= self._rested:
            self._live.update(_Lines(self._said, height=max(1, self._console.height - 1)), refresh=True)
            self._rested = begun + (1 + REST) * (time.monotonic() - begun)


class _Lines:
    """An answer as lines, the last `height` of them, in which nothing controls the terminal."""

    def __init__(self, said: Sequence[Said], *, height: int | None = None) -> None:
        self._said, self._height = said, height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [line for block in _blocks(self._said) for line in console.render_lines(block, pad=False)]
        for line in lines[-(self._height or len(lines)) :]:
            yield from _trimmed([Segment(clean(segment.text), segment.style) for segment in line])
            yield Segment.line()


def _trimmed(line: list[Segment]) -> list[Segment]:
    """A line without the spaces that fill it up, which would be copied with it."""
    while line:
        last = line.pop()
        if text := last.text.rstrip():
            return [*line, Segment(text, last.style)]
    return line


def _blocks(said: Sequence[Said]) -> list[RenderableType]:
    blocks: list[RenderableType] = []
    for each in merged(said):
        text = clean(each.text)
        if each.kind == "text":
            blocks.append(_markdown(text))
        elif each.kind == "python_output" and blocks and isinstance(step := blocks[-1], Text):
            step.append(f" = {text}")
        else:
            blocks.append(Text(f"tool: {text}", style="dim"))
    return blocks


def _markdown(text: str) -> RenderableType:
    """Markdown as models write it, without HTML; the text itself where it is very long or deep."""
    tokens = _parser().parse(text) if len(text) <= MOST_MARKDOWN else []
    if not tokens or max(token.level for token in tokens) > DEEPEST:
        return Text(text)
    markdown = Markdown("", code_theme="ansi_dark", hyperlinks=False)
    markdown.parsed = _plainer(tokens)
    return markdown


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
    parser.block.ruler.before("list", "number", _number)
    return parser


def _number(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """'42.' alone on its line is a number and no list."""
    line = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]]
    return bool(_NUMBER.fullmatch(line)) and not silent and paragraph(state, start, end, silent)


def _plainer(tokens: list[Token]) -> list[Token]:
    """Lines break where the model broke them, and a picture is its name and address."""
    for child in (child for token in tokens for child in token.children or ()):
        if child.type == "softbreak":
            child.type = "hardbreak"
        elif child.type == "image":
            child.type, child.tag, child.children = "text", "", None
            child.content = f"{child.content} ({child.attrs.get('src', '')})"
    return tokens
