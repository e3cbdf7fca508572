"""The pages of the documentation as tests look at them: blocks with their marks, commands, inline code, links.

blocks = [block for page in PAGES for block in read_blocks(page)]
commands(block.text)                  # logical lines: continued ones joined, loops whole
words("kubectl get cp | wc -l")       # [["kubectl", "get", "cp"], ["wc", "-l"]]
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(.*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block. `mark` is the second word of its info string."""

    page: Path
    line: int
    language: str
    mark: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.name}:{self.line}"


def read_blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    found: list[Block] = []
    begun: tuple[int, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = _FENCE.match(line)
        if fence is None:
            lines.append(line)
        elif begun is None:
            begun, lines = (number, fence[1].strip()), []
        else:
            language, _, mark = begun[1].partition(" ")
            found.append(Block(page, begun[0], language, mark, "\n".join(lines)))
            begun = None
    assert begun is None, f"{page.name}:{begun[0]}: the block does not end" if begun else ""
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def inline_code(page: Path) -> list[str]:
    """What stands between backticks, with line ends as spaces."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def first_column(page: Path, heading: str) -> list[str]:
    """What stands between backticks at the beginning of the rows of a section's tables."""
    section = prose(page).partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE)


def commands(text: str) -> list[str]:
    """The commands of a block: continued lines are joined, a loop is one."""
    found: list[str] = []
    loop: list[str] = []
    for line in text.replace("\\\n", "").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if loop or line.startswith("for "):
            loop.append(line)
            if line == "done":
                found.append("\n".join(loop))
                loop = []
        else:
            found.append(line)
    assert not loop, "a loop does not end"
    return found


def words(command: str) -> Iterator[list[str]]:
    """The simple commands of a line or loop, each as its words, without redirections and variables before it."""
    for line in command.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        simple: list[str] = []
        for token in [*lexer, ";"]:
            if token in (";", "|", "||", "&&", "&", "do"):
                if kept := _bare(simple):
                    yield kept
                simple = []
            else:
                simple.append(token)


def _bare(simple: Sequence[str]) -> list[str]:
    while simple and re.fullmatch(r"[A-Z_]+=.*", simple[0]):
        simple = simple[1:]
    if not simple or simple[0] in ("for", "done"):
        return []
    return list(simple[: simple.index(">")]) if ">" in simple else list(simple)


def links(page: Path) -> list[str]:
    """Targets of links to other pages and headings, not those to the web."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in found if "://" not in target]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def program(folder: Path, name: str, module: str) -> None:
    """A program in a folder that runs a Python module of the project."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m {module} "$@"\n')
    path.chmod(0o755)


def run(command: str, folder: Path, environment: Mapping[str, str], *, timeout: float) -> str:
    """What a command printed, run as somebody types it into a shell; it fails the test with all that it said."""
    done = subprocess.run(
        ["sh", "-ec", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout
