"""Parts of an assistant's message, and the final number that graded answers end with."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

Part = dict[str, str]
_FINAL = re.compile(r"####\s*(-?)\s*\$?\s*(-?[0-9][0-9,]*(?:\.[0-9]+)?|-?\.[0-9]+)")


def text(content: str) -> Part:
    """Text of the assistant."""
    return {"type": "text", "text": content}


def call(expression: str, result: str) -> list[Part]:
    """A call of the tool and what it returned."""
    return [{"type": "python", "text": expression}, {"type": "python_output", "text": result}]


def final_number(answer: str) -> Decimal | None:
    """The number after the first '####', without thousands separators; None where there is none."""
    match = _FINAL.search(answer)
    if match is None:
        return None
    try:
        return Decimal((match[1] + match[2]).replace(",", "").replace("--", "-"))
    except InvalidOperation:
        return None
