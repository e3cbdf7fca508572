"""Multiple-choice tasks' common part: the wording of the question and the grade of a letter."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.task import Example

LETTERS = "ABCDEFGHIJ"
INSTRUCTION = "Reply with the letter of the right choice and nothing else."


def choice_example(question: str, choices: Sequence[str], answer: int) -> Example:
    """A question with its choices as '- text=LETTER', the letter last so that it follows what it stands for.

    No space comes before a letter: the answer is the same token as the letter in the list.
    """
    letters = tuple(LETTERS[: len(choices)])
    lines = [f"- {choice}={letter}" for letter, choice in zip(letters, choices, strict=True)]
    text = "\n".join([f"Multiple-choice question: {question}", *lines, "", INSTRUCTION])
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": letters[answer]}]
    return Example(messages, letters=letters, reference=letters[answer])


def is_letter(example: Example, completion: str) -> bool:
    """Whether the completion is the right letter (and not merely begins with it)."""
    return completion.strip().rstrip(".") == example.reference
