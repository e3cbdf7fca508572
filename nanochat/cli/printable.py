"""Text that somebody else wrote, as a terminal may be shown it."""

from __future__ import annotations


def printable(text: str, most: int = 2000) -> str:
    """The text in one line of at most so many characters, with a blank for each that could move the cursor, colour what
    follows or turn the direction of writing: everything that is not printable."""
    shown = "".join(character if character.isprintable() else " " for character in text[:most])
    return shown if len(text) <= most else f"{shown}..."
