"""How a model takes given tokens: losses of the options of items, what their inputs have in common computed once.

    scores = score(model, [task.sequences(tokenizer, example) for example in examples], batch_size=32)
    scores[0][1].loss                  # mean nats of what is scored of the first item's second option

The options of an item begin with the same solved items and the same question. This beginning goes through the model
once, into a slot of a key-value cache; then each option goes over it, one after another in the same slot. An option
whose input is the beginning of another's needs no pass of its own: where all are one token long, as letters are, one
pass scores them all. Items of like length share a batch, and logits are computed only where they are scored.
A sequence longer than the model's context loses its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.evaluation.core_tasks import Span, common
from nanochat.model.cache import BUCKET, CHUNK, KVCache
from nanochat.model.transformer import Transformer

SCORED = 1024  # positions whose logits are held at once
WORTHWHILE = 32  # tokens of a common beginning from which it has a pass of its own


@dataclass(frozen=True, slots=True)
class Score:
    """How a model takes the scored tokens of one sequence."""

    loss: float  # mean nats
    likeliest: list[int]  # the likeliest token in place of each
    exact: bool  # whether these are the scored tokens


@dataclass(frozen=True, slots=True)
class Row:
    """One input, and the scored sequences that begin with it, by their numbers."""

    ids: tuple[int, ...]
    spans: Mapping[int, Span]


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one item, and how many first tokens they share, none of which predicts a scored one."""

    rows: list[Row]
    shared: int

    @property
    def width(self) -> int:
        """Tokens of its longest row."""
        return max(len(row.ids) for row in self.rows)


@torch.inference_mode()
def score(model: Transformer, items: Sequence[Sequence[Span]], *, batch_size: int) -> list[list[Score]]:
    """The scores of each item's options, in order. `batch_size` is the number of rows at the model's full context."""
    length = model.config.sequence_length
    groups: list[Group] = []
    count = 0
    for spans in items:
        groups += grouped({count + i: cut_left(span, length) for i, span in enumerate(spans)})
        count += len(spans)
    found: dict[int, Score] = {}
    for several in (False, True):
        chosen = [group for group in groups if (len(group.rows) > 1) is several]
        for batch in by_length([group.width for group in chosen], most=batch_size * length):
            found |= (_score_shared if several else _score_whole)(model, [chosen[i] for i in batch])
    scores = iter(found[i] for i in range(count))
    return [[next(scores) for _ in spans] for spans in items]


def cut_left(span: Span, length: int) -> Span:
    """The last `length` + 1 tokens, which `length` inputs predict; the first of them is never scored."""
    dropped = max(0, len(span.ids) - (length + 1))
    return Span(span.ids[dropped:], max(1, span.start - dropped))


def by_length(lengths: Sequence[int], *, most: int) -> Iterator[list[int]]:
    """Indices in batches of like lengths, longest first, of at most `most` tokens with padding."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        rows = max(1, most // max(1, lengths[order[0]]))
        yield order[:rows]
        order = order[rows:]


def grouped(spans: Mapping[int, Span]) -> list[Group]:
    """An item's options, those with a long beginning in common together."""
    groups: list[Group] = []
    for row in _rows(spans):
        before = min(span.start for span in row.spans.values()) - 1  # the one behind predicts the first scored token
        if groups:
            last = groups[-1]
            shared = min(last.shared, before, common([last.rows[0].ids, row.ids]))
            # Where layers have short windows, what is longer would overwrite what the next option sees.
            if shared >= WORTHWHILE and max(last.width, len(row.ids)) - shared <= CHUNK:
                groups[-1] = Group([*last.rows, row], shared)
                continue
        groups.append(Group([row], before))
    return groups


def _rows(spans: Mapping[int, Span]) -> list[Row]:
    """The different inputs in the order of their tokens, without those that only begin another one."""
    rows: list[Row] = []
    for number, span in sorted(spans.items(), key=lambda item: item[1].ids[:-1], reverse=True):
        ids = tuple(span.ids[:-1])
        if rows and rows[-1].ids[: len(ids)] == ids:
            rows[-1] = Row(rows[-1].ids, {**rows[-1].spans, number: span})
        else:
            rows.append(Row(ids, {number: span}))
    return rows


def _score_whole(model: Transformer, groups: Sequence[Group]) -> dict[int, Score]:
    """One forward pass; attention is causal, so what pads a row's end changes nothing before it."""
    rows = [group.rows[0] for group in groups]
    return _scores(model, model.hidden(padded([row.ids for row in rows]).to(model.device)), rows, [0] * len(rows))


def _score_shared(model: Transformer, groups: Sequence[Group]) -> dict[int, Score]:
    """A slot for each group: its beginning, and behind it one option after another."""
    width = max(group.width for group in groups)
    length = -(-(width + 1) // BUCKET) * BUCKET  # what pads a row is written behind all of them
    cache = KVCache(model.config, slots=len(groups), length=length, device=model.device, dtype=model.compute_dtype)

    def extend(parts: Mapping[int, tuple[int, ...]], start: Sequence[int]) -> Tensor:
        """Slots' next tokens, from position `start` on -> (B, T, D)."""
        return model.extend(
            padded(list(parts.values())).to(model.device),
            start=torch.tensor(start, device=model.device),
            slots=list(parts),
            cache=cache,
            lengths=torch.tensor([len(ids) for ids in parts.values()], device=model.device),
        )

    for at in range(0, max(group.shared for group in groups), CHUNK):  # what attends at once stays small
        parts = {
            slot: group.rows[0].ids[at : min(at + CHUNK, group.shared)]
            for slot, group in enumerate(groups)
            if at < group.shared
        }
        extend(parts, [at] * len(parts))
    scores: dict[int, Score] = {}
    for option in range(max(len(group.rows) for group in groups)):
        chosen = {slot: group for slot, group in enumerate(groups) if option < len(group.rows)}
        rows, start = [group.rows[option] for group in chosen.values()], [group.shared for group in chosen.values()]
        parts = {slot: group.rows[option].ids[group.shared :] for slot, group in chosen.items()}
        scores |= _scores(model, extend(parts, start), rows, start)
    return scores


def _scores(model: Transformer, hidden: Tensor, rows: Sequence[Row], offsets: Sequence[int]) -> dict[int, Score]:
    """The scores of the rows' sequences; a row's first position in `hidden` (B, T, D) is its offset."""
    at: list[tuple[int, int]] = []
    targets: dict[int, list[int]] = {}
    for index, (row, offset) in enumerate(zip(rows, offsets, strict=True)):
        for number, span in row.spans.items():
            targets[number] = span.ids[span.start :]
            # The position before predicts.
            at += [(index, position - offset) for position in range(span.start - 1, len(span.ids) - 1)]
    place, wanted = torch.tensor(at), torch.tensor([token for ids in targets.values() for token in ids])
    states = hidden[place[:, 0].to(model.device), place[:, 1].to(model.device)]  # (N, D)
    losses, likeliest = _losses(model, states, wanted.to(model.device))  # (N,) each
    sizes = [len(ids) for ids in targets.values()]
    return {
        number: Score(float(loss.double().mean()), best.tolist(), best.tolist() == targets[number])
        for number, loss, best in zip(targets, losses.split(sizes), likeliest.split(sizes), strict=True)
    }


def _losses(model: Transformer, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """hidden (N, D), targets (N,) -> nats (N,) and the likeliest tokens (N,)."""
    losses, likeliest = [], []
    for states, wanted in zip(hidden.split(SCORED), targets.split(SCORED), strict=True):
        logits = model.logits(states)  # (n, V)
        losses.append(F.cross_entropy(logits, wanted, reduction="none").cpu())
        likeliest.append(logits.argmax(dim=-1).cpu())
    return torch.cat(losses), torch.cat(likeliest)


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of ids, with zeros behind the shorter ones."""
    out = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for index, ids in enumerate(rows):
        out[index, : len(ids)] = torch.tensor(ids)
    return out
