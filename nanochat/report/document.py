"""A report's document: sections of blocks, free of any format. All text in it is plain text."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; columns in `numeric` are aligned to the right. A cell's text after a line feed is secondary."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Facts:
    """Names with values."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Bullets:
    """Short sentences, each an item."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """An SVG drawing (made by plots.py, so it is trusted) with a name for its file and a description."""

    name: str
    svg: str
    description: str


@dataclass(frozen=True, slots=True)
class Line:
    """A stretch of an answer; `tool` says that it shows a call of the tool."""

    text: str
    tool: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of one model, or of several in the same words."""

    who: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt ('' where the answer holds it) and the models' answers: text that is never interpreted."""

    prompt: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Fold:
    """Blocks that are shown when they are asked for."""

    title: str
    blocks: tuple[Block, ...]


Block = Paragraph | Table | Facts | Bullets | Plot | Exchange | Fold


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with blocks."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A whole report."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]

    @property
    def plots(self) -> tuple[Plot, ...]:
        """All drawings."""
        return tuple(block for section in self.sections for block in section.blocks if isinstance(block, Plot))
