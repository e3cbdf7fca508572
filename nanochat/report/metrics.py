"""The metrics of the stage table: their order, their names for people, and how their values are written."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from nanochat.report.record import Result
from nanochat.tracking.quantities import count, number

CHATCORE = "chatcore"
_NAMES = {
    "val_bpb": "Bits per byte (validation)",
    "train_bpb": "Bits per byte (training)",
    "core": "CORE",
    "arc-easy": "ARC-Easy",
    "arc-challenge": "ARC-Challenge",
    "mmlu": "MMLU",
    "gsm8k": "GSM8K",
    "gsm8k-lenient": "GSM8K, lenient",
    "humaneval": "HumanEval",
    "humaneval-lenient": "HumanEval, lenient",
    "spelling-bee": "SpellingBee",
    "spelling-bee-lenient": "SpellingBee, lenient",
    "world-identity": "Who it is",
    "world-facts": "Facts",
    "world-sums": "Sums",
    "world-counts": "Letter counts",
    "world-spelling": "Spelling",
    "all-questions": "All questions",
    CHATCORE: "ChatCORE",
}
_SCORES = ("core", CHATCORE)  # centred on chance, so no shares
_WHOLE = 0.01  # so near to a whole number of problems a proportion is one
_PASS = re.compile(r"(.+)-pass([0-9]+)")  # of several samples of each problem
_WORDS = {"stderr": "standard error", "bpb": "bits per byte", "val": "validation", "train": "training"}


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as people know it."""

    name: str
    label: str


def ordered(names: Iterable[str]) -> list[Metric]:
    """The known metrics in their usual order, then the others by name, ChatCORE (their mean) last."""
    places = {name: place for place, name in enumerate(_NAMES)}
    last = places.pop(CHATCORE)

    def place(name: str) -> tuple[int, str]:
        return (last + 1, name) if canonical(name) == CHATCORE else (places.get(canonical(name), last), name)

    return [Metric(name, label(name)) for name in sorted(set(names), key=place)]


def label(name: str) -> str:
    """A metric's name in a report."""
    known = _NAMES.get(canonical(name))
    if known is not None:
        return known
    if sampled := _PASS.fullmatch(name):
        return f"{label(sampled[1])}, pass@{sampled[2]}"
    plain = canonical(name).replace("pass_at_", "pass@")
    words = [_WORDS.get(word, word) for word in re.split("[-_/]", plain)]
    text = " ".join(words)
    return text[:1].upper() + text[1:]


def canonical(name: str) -> str:
    """One spelling for names that differ in '_' and '-'."""
    plain = name.lower()
    return plain if plain in _NAMES else plain.replace("_", "-") if plain.replace("_", "-") in _NAMES else plain


def is_proportion(name: str, value: float) -> bool:
    """Whether the value is the proportion of problems that were solved."""
    other = canonical(name)
    if other in _SCORES or any(word in other for word in ("bpb", "bits", "loss", "reward", "nats", "length")):
        return False
    return 0.0 <= value <= 1.0


def cell(name: str, result: Result) -> str:
    """A table cell: the value with its standard error, then (secondary) what it was measured on."""
    if not is_proportion(name, result.value):
        error = f" ± {_fixed(result.stderr)}" if result.stderr else ""
        what = f"\nn {count(result.n)}" if result.n else ""
        return f"{_fixed(result.value)}{error}{what}"
    error = f" ± {100 * result.stderr:.1f}" if result.stderr is not None else ""
    what = f"\n{_solved(result, ' of ') or f'n {count(result.n)}'}" if result.n else ""
    return f"{100 * result.value:.1f}{error} %{what}"


def brief(name: str, result: Result) -> tuple[str, str]:
    """The value and, where it is a proportion, how many of how many, both as short as can be."""
    if not is_proportion(name, result.value):
        return _fixed(result.value), ""
    return f"{100 * result.value:.1f} %", _solved(result, "/")


def answered(result: Result) -> str:
    """How many questions were answered right, for a sentence."""
    return _solved(result, " of ") or f"{100 * result.value:.1f} % of {count(result.n or 0)}"


def _solved(result: Result, of: str) -> str:
    """How many problems of how many; '' where the proportion is a mean over several answers to each."""
    right = result.value * (result.n or 0)
    whole = result.n and abs(right - round(right)) < _WHOLE
    return f"{count(round(right))}{of}{count(result.n)}" if whole else ""


def _fixed(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else number(value)
