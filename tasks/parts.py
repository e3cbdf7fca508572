"""Parts of an assistant's message, and the final number that graded answers end with."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

Part = dict[str, str]
_FINAL = re.compile(r"#### (-?[0-9.,]+)")  # as GSM8K's authors read it, and so the reference
_SLOPPY = re.compile(r"####\s*(-?)\s*\$?\s*(-?[0-9][0-9,]*(?:\.[0-9]+)?|-?\.[0-9]+)")


def text(content: str) -> Part:
    """Text of the assistant."""
    return {"type": "text", "text": content}


def call(expression: str, result: str) -> list[Part]:
    """A call of the tool and what it returned."""
    return [{"type": "python", "text": expression}, {"type": "python_output", "text": result}]


def final_number(answer: str) -> str | None:
    """The number after the first '#### ' as it is written, without commas; None where there is none."""
    match = _FINAL.search(answer)
    return match[1].replace(",", "") if match else None


def same_number(answer: str, number: str) -> bool:
    """Whether the number after the first '####' has this value, however it is written ('####  $18.00' is 18)."""
    match = _SLOPPY.search(answer)
    if match is None:
        return False
    try:
        return Decimal((match[1] + match[2]).replace(",", "").replace("--", "-")) == Decimal(number)
    except InvalidOperation:
        return False
