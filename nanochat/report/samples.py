"""The models' continuations of the same texts, side by side: for the report, and for `nanochat report`."""

from __future__ import annotations

from nanochat.report.document import Answer, Exchange, Line
from nanochat.report.record import TRAINING, Part, RunRecord, Sample, StageRecord

_MOST = 12  # of each model


def exchanges(record: RunRecord, *, most: int = _MOST) -> list[Exchange]:
    """Each text once, with the answers of all stages; those of the last stages first. Equal answers are one."""
    found: dict[str, dict[str, tuple[Line, ...]]] = {}
    out: list[Exchange] = []
    for stage in reversed(TRAINING):
        evaluation = record.evaluations.get(stage)
        for sample in (evaluation.samples if evaluation else _in_training(record.stage(stage)))[:most]:
            if sample.prompt:
                found.setdefault(sample.prompt, {})[stage] = lines(sample.completion)
            else:
                out.append(Exchange("", (Answer(stage.upper(), lines(sample.completion)),)))
    return [Exchange(prompt, _merged(answers)) for prompt, answers in found.items()] + out


def answers_of(record: RunRecord, stage: str) -> list[Exchange]:
    """The samples of one stage's model alone."""
    evaluation = record.evaluations.get(stage)
    return [
        Exchange(sample.prompt, (Answer(stage.upper(), lines(sample.completion)),))
        for sample in (evaluation.samples if evaluation else ())
    ]


def lines(parts: tuple[Part, ...]) -> tuple[Line, ...]:
    """An answer as people read it: a call of the tool and its output are a line of their own."""
    out: list[Line] = []
    for index, part in enumerate(parts):
        if part.kind == "text":
            if part.text.strip() or len(parts) == 1:
                out.append(Line(part.text))
        elif part.kind == "python":
            out.append(Line(f"tool: {part.text}", tool=True))
        elif index and parts[index - 1].kind == "python":
            out[-1] = Line(f"{out[-1].text} = {part.text}", tool=True)
        else:
            out.append(Line(f"tool: = {part.text}", tool=True))
    return tuple(out)


def _merged(answers: dict[str, tuple[Line, ...]]) -> tuple[Answer, ...]:
    stages: dict[tuple[Line, ...], list[str]] = {}
    for stage in TRAINING:
        if stage in answers:
            stages.setdefault(answers[stage], []).append(stage.upper())
    return tuple(Answer(", ".join(names), said) for said, names in stages.items())


def _in_training(stage: StageRecord | None) -> tuple[Sample, ...]:
    """The samples that training took last."""
    events = [event for event in (stage.history.events if stage and stage.history else ()) if event.kind == "sample"]
    return tuple(Sample("", (Part("text", event.message),)) for event in events if event.step == events[-1].step)
