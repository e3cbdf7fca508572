"""A document as one HTML file: no scripts, nothing loaded from elsewhere, light and dark, readable on a phone."""

from __future__ import annotations

from html import escape
from importlib.resources import files

from nanochat.report.document import Answer, Block, Bullets, Document, Exchange, Facts, Fold, Paragraph, Plot, Table

# Nothing may run or be loaded, whatever a text in the report holds; style and drawings are in the file.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'"


def render_page(document: Document) -> str:
    """The whole page."""
    style = files("nanochat.report").joinpath("style.css").read_text(encoding="utf-8")
    anchors = [f"s{number}" for number in range(len(document.sections))]
    contents = "".join(
        f'<a href="#{anchor}">{escape(section.title)}</a>'
        for anchor, section in zip(anchors, document.sections, strict=True)
    )
    sections = "".join(
        f'<section id="{anchor}"><h2>{escape(section.title)}</h2>{"".join(map(_block, section.blocks))}</section>\n'
        for anchor, section in zip(anchors, document.sections, strict=True)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(document.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{escape(document.title)}</h1><p>{escape(document.subtitle)}</p></header>\n"
        f'<nav aria-label="Contents">{contents}</nav>\n{sections}</main>\n</body>\n</html>\n'
    )


def _block(block: Block) -> str:
    match block:
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Table():
            return _table(block)
        case Facts(items):
            return f"<dl>{''.join(f'<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>' for n, v in items)}</dl>"
        case Bullets(items):
            return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"
        case Plot(_, svg, description):
            return f"<figure>{svg}<figcaption>{escape(description)}</figcaption></figure>"
        case Exchange(prompt, answers):
            asked = f'<pre class="prompt">{escape(prompt)}</pre>' if prompt else ""
            return f"<article>{asked}{''.join(map(_answer, answers))}</article>"
        case Fold(title, blocks):
            return f"<details><summary>{escape(title)}</summary>{''.join(map(_block, blocks))}</details>"


def _answer(answer: Answer) -> str:
    told = "".join(
        f'<span class="tool">{escape(line.text)}</span>' if line.tool else escape(line.text) for line in answer.lines
    )
    return f'<div class="answer"><small>{escape(answer.who)}</small><pre>{told}</pre></div>'


def _table(table: Table) -> str:
    """A table, which scrolls by itself where the page is narrow: so a keyboard reaches it, by its first heading."""

    def row(cells: tuple[str, ...], tag: str) -> str:
        out = []
        for column, text in enumerate(cells):
            kind = ' class="number"' if column in table.numeric else ""
            name = "th" if tag == "th" or column == 0 else "td"
            scope = ' scope="col"' if tag == "th" else ' scope="row"' if column == 0 else ""
            out.append(f"<{name}{scope}{kind}>{_cell(text)}</{name}>")
        return f"<tr>{''.join(out)}</tr>"

    body = "".join(row(cells, "td") for cells in table.rows)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(_name(table))}"><table>'
        f"<thead>{row(table.head, 'th')}</thead><tbody>{body}</tbody></table></div>"
    )


def _name(table: Table) -> str:
    """A table's name for those who hear the page: its headings."""
    return "Table of " + ", ".join(head.partition("\n")[0] for head in table.head if head)


def _cell(text: str) -> str:
    first, _, second = text.partition("\n")
    return f"{escape(first)}<small>{escape(second)}</small>" if second else escape(first)
