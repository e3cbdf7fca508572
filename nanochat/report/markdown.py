"""A document as Markdown. Text is escaped; what the model wrote stands in code blocks."""

from __future__ import annotations

import re

from nanochat.report.document import Answer, Block, Bullets, Document, Exchange, Facts, Fold, Paragraph, Plot, Table

_SPECIAL = re.compile(r"([\\`*_\[\]<>#|~])")


def render_markdown(document: Document) -> str:
    """The whole document; plots are links to `<name>.svg` beside it."""
    parts = [f"# {_escape(document.title)}", _escape(document.subtitle)]
    for section in document.sections:
        parts.append(f"## {_escape(section.title)}")
        parts.extend(_block(block) for block in section.blocks)
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    match block:
        case Paragraph(text):
            return _escape(text)
        case Table():
            return _table(block)
        case Facts(items):
            return "\n".join(f"- {_escape(name)}: {_escape(value)}" for name, value in items)
        case Bullets(items):
            return "\n".join(f"- {_escape(item)}" for item in items)
        case Plot(name, _, description):
            return f"![{_escape(description)}]({name}.svg)"
        case Exchange(prompt, answers):
            told = [text for answer in answers for text in (f"**{_escape(answer.who)}**", fence(_told(answer)))]
            return "\n\n".join([*([fence(prompt)] if prompt else []), *told])
        case Fold(title, blocks):
            return "\n\n".join([f"### {_escape(title)}", *map(_block, blocks)])


def _told(answer: Answer) -> str:
    return "\n".join(line.text for line in answer.lines)


def fence(text: str) -> str:
    """A code block whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    mark = "`" * max(3, longest + 1)
    return f"{mark}text\n{text}\n{mark}"


def _table(table: Table) -> str:
    rule = ["---:" if column in table.numeric else "---" for column in range(len(table.head))]
    lines = [[_cell(cell) for cell in table.head], rule, *([_cell(cell) for cell in row] for row in table.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    first, _, second = text.partition("\n")
    return f"{_escape(first)} ({_escape(second)})" if second else _escape(first)


def _escape(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
