"""Multiple-choice tasks' common part: the wording of the question and the grade of a letter."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.task import Example

LETTERS = "ABCDEFGHIJ"
INSTRUCTION = "Respond only with the letter of the correct answer."


def choice_example(question: str, choices: Sequence[str], answer: int, letters: Sequence[str] = LETTERS) -> Example:
    """A question with its choices as '- text=LETTER', the letter last so that it follows what it stands for.

    The text is the reference's. No space comes before a letter: the answer is the same token as the letter in the list.
    """
    used = tuple(letters[: len(choices)])
    lines = [f"- {choice}={letter}" for letter, choice in zip(used, choices, strict=True)]
    text = "\n".join([f"Multiple Choice question: {question}", *lines, "", INSTRUCTION])
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": used[answer]}]
    return Example(messages, letters=used, reference=used[answer])


def is_letter(example: Example, completion: str) -> bool:
    """Whether the completion is the right letter (and not merely begins with it)."""
    return completion.strip().rstrip(".") == example.reference
