"""How the next token is chosen: the settings of a request, and the vectorised choice for all rows at once.

A row's choice is a function of its own logits, its own settings and one uniform number that is a function of
(seed, position). Filters only decide which tokens may be chosen; the choice itself inverts the cumulative
distribution in vocabulary order. So the settings of a neighbour can never change a row's token.

A request may shift its logits: by `logit_bias`, and by penalties on the tokens that it has sampled. What is likeliest,
what is drawn and what is reported as log-probabilities all follow the shifted logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from nanochat.inference.grammar import Grammar

_MASK = (1 << 64) - 1

# Below this temperature the likeliest token is taken: float32 tells no two of the likeliest apart by then, and the
# smallest numbers, which divide to infinity, would leave no distribution at all.
COLDEST = 1e-5


@dataclass(frozen=True, slots=True)
class Sampling:
    """One request's settings. Temperature 0 takes the likeliest token; `max_tokens` counts forced ones.

    The penalties are OpenAI's: a token that was sampled c times so far has frequency_penalty * c + presence_penalty
    taken off its logit. Special tokens, which give a reply its form, and those that the tool forced count as none.
    """

    max_tokens: int
    temperature: float = 0.0
    top_k: int | None = None  # only the k likeliest (None: all); ties with the k-th stay
    top_p: float = 1.0  # only the likeliest that together reach this mass; ties with the last one stay
    seed: int = 0
    stop: tuple[str, ...] = ()  # texts that end the reply and are not part of it
    min_tokens: int = 0  # before this many tokens neither a terminal token nor a stop text ends the reply
    logprobs: int | None = None  # None: none; k: of each sampled token, and of its k likeliest alternatives
    prompt_logprobs: int | None = None  # the same of the prompt's tokens: all of it is computed, whatever was before
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, what is added to its logit)
    grammar: Grammar | None = None  # what the reply is held to
    repeatable: bool = True  # the same whatever runs beside it, which takes a fixed shape: see the engine

    @property
    def hot(self) -> bool:
        """Whether tokens are drawn; otherwise the likeliest is taken."""
        return self.temperature >= COLDEST

    @property
    def penalised(self) -> bool:
        """Whether what was sampled changes the logits of what comes next."""
        return bool(self.frequency_penalty or self.presence_penalty)

    @property
    def shifts(self) -> bool:
        """Whether the model's logits are changed at all."""
        return self.penalised or bool(self.logit_bias)

    def split(self, count: int) -> list[Self]:
        """`count` settings that differ in their seeds, for samples of one prompt; the first is this one."""
        seeds = [self.seed, *(_mix(self.seed, index) >> 1 for index in range(1, count))]
        return [replace(self, seed=seed) for seed in seeds]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probabilities (nats) at temperature 1 and without filters, after what the request does to its logits."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (token, logprob), likeliest first


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) of nothing but (seed, position); 24 bits, so that float32 holds it exactly."""
    return (_mix(seed, position) >> 40) * 2.0**-24


def _mix(seed: int, counter: int) -> int:
    """Two rounds of splitmix64 (Steele, Lea, Flood 2014): the seed, then the counter."""
    state = seed & _MASK
    for value in (0, counter):
        state = (state + (value + 1) * 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


class Sampler:
    """The settings of all rows as tensors, and the choice of their next tokens. `put` sets one row's."""

    def __init__(self, rows: int, *, vocabulary: int, terminal: Sequence[int], device: torch.device) -> None:
        self._settings: list[Sampling | None] = [None] * rows
        self._vocabulary = vocabulary
        self._terminal = torch.tensor(list(terminal), dtype=torch.int64, device=device)
        self._temperature = torch.zeros(rows, dtype=torch.float32, device=device)  # 0: the likeliest
        self._top_k = torch.zeros(rows, dtype=torch.int64, device=device)  # 0: all
        self._top_p = torch.ones(rows, dtype=torch.float32, device=device)
        # What is added to each row's logits (B, V), once a request wants it; and the tokens that the row has sampled.
        self._shift: Tensor | None = None
        self._sampled: list[set[int]] = [set() for _ in range(rows)]

    def put(self, row: int, sampling: Sampling | None) -> None:
        self._settings[row] = sampling
        self._temperature[row] = sampling.temperature if sampling and sampling.hot else 0.0
        self._top_k[row] = (sampling.top_k or 0) if sampling else 0
        self._top_p[row] = sampling.top_p if sampling else 1.0
        self._sampled[row].clear()
        if self._shift is not None:
            self._shift[row] = 0.0
        self._add([(row, token, bias) for token, bias in sampling.logit_bias] if sampling else [])

    def shifted(
        self,
        logits: Tensor,
        *,
        rows: Sequence[int],
        no_end: Sequence[bool],
        allowed: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """Logits (B, V) of these rows as float32 with each one's bias and penalties; where `no_end` (B,) is set, a
        terminal token can't be chosen, and of the rows in `allowed` none that is 0 there (V,)."""
        scores = logits.float()  # (B, V)
        if self._shift is not None and any(s is not None and s.shifts for s in self._settings):
            scores = scores + self._shift[rows]
        if any(no_end):
            held = torch.tensor(no_end, device=scores.device)  # (B,)
            scores = scores.clone()
            scores[:, self._terminal] = scores[:, self._terminal].masked_fill(held[:, None], -torch.inf)
        for row, tokens in (allowed or {}).items():
            scores[row] = scores[row].masked_fill(tokens.to(scores.device) == 0, -torch.inf)
        return scores

    def choose(self, scores: Tensor, *, rows: Sequence[int], uniforms: list[float]) -> Tensor:
        """Tokens (B,) for the shifted logits (B, V) of these rows."""
        greedy = scores.argmax(dim=-1)  # (B,)
        settings = [s for row in rows if (s := self._settings[row]) is not None and s.hot]
        if not settings:
            return greedy
        temperature = self._temperature[rows]  # (B,)
        hot = temperature > 0
        scores = scores / torch.where(hot, temperature, 1.0)[:, None]
        most = min(max((s.top_k or 0) for s in settings), scores.size(-1))
        if most > 0:
            scores = scores.masked_fill(~top_k_mask(scores, self._top_k[rows], most=most), -torch.inf)
        probabilities = torch.softmax(scores, dim=-1)
        if any(s.top_p < 1 for s in settings):
            probabilities = probabilities * top_p_mask(probabilities, self._top_p[rows])
        draw = torch.tensor(uniforms, dtype=torch.float32, device=scores.device)
        return torch.where(hot, invert(probabilities, draw), greedy)

    def count(self, sampled: Sequence[tuple[int, int]]) -> None:
        """Take note of (row, token) that were sampled, for the penalties of what comes next."""
        amounts: list[tuple[int, int, float]] = []
        for row, token in sampled:
            sampling, seen = self._settings[row], self._sampled[row]
            if sampling is not None:
                presence = 0.0 if token in seen else sampling.presence_penalty
                amounts.append((row, token, -sampling.frequency_penalty - presence))
                seen.add(token)
        self._add(amounts)

    def _add(self, amounts: Sequence[tuple[int, int, float]]) -> None:
        """Add to what shifts the logit of each (row, token)."""
        if not amounts:
            return
        device = self._temperature.device
        if self._shift is None:
            with torch.inference_mode(False):  # rows are cleared by a cancellation too, which is outside of a step
                self._shift = torch.zeros(len(self._settings), self._vocabulary, dtype=torch.float32, device=device)
        rows, tokens, values = zip(*amounts, strict=True)
        at = (torch.tensor(rows, device=device), torch.tensor(tokens, device=device))
        self._shift.index_put_(at, torch.tensor(values, dtype=torch.float32, device=device), accumulate=True)


def top_k_mask(scores: Tensor, top_k: Tensor, *, most: int) -> Tensor:
    """True (B, V) for a row's `top_k` (B,) best tokens, ties included; 0 keeps all; `most` is the largest."""
    best = scores.topk(most, dim=-1).values  # (B, most), descending
    kth = best.gather(1, top_k.clamp(min=1, max=most)[:, None] - 1)  # (B, 1)
    return (scores >= kth) | (top_k == 0)[:, None]


def top_p_mask(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """True (B, V) on the smallest set of likeliest tokens whose mass reaches `top_p` (B,), ties included.

    The nucleus of Holtzman et al. 2020; the likeliest token is always in it.
    """
    ordered = probabilities.sort(dim=-1, descending=True).values  # (B, V)
    before = ordered.cumsum(dim=-1) - ordered  # mass of the likelier ones
    inside = (before < top_p[:, None]) | (top_p >= 1)[:, None]
    inside[:, 0] = True
    last = inside.sum(dim=-1, keepdim=True) - 1  # (B, 1)
    return probabilities >= ordered.gather(1, last)


def invert(probabilities: Tensor, draw: Tensor) -> Tensor:
    """Tokens (B,) where the running sum of `probabilities` (B, V), of any total, passes its draw (B,)."""
    cumulative = probabilities.cumsum(dim=-1)
    target = draw[:, None] * cumulative[:, -1:]
    # A token of no mass is never hit, even where a parallel sum is not quite monotone.
    hit = (cumulative > target) & (probabilities > 0)
    first = hit.to(torch.uint8).argmax(dim=-1)
    return torch.where(hit.any(dim=-1), first, probabilities.argmax(dim=-1))


def token_logprobs(logits: Tensor, tokens: list[int], top: list[int | None]) -> list[TokenLogprob | None]:
    """Log-probabilities of the chosen `tokens` under logits (B, V), with `top[row]` alternatives each."""
    wanted = [count for count in top if count is not None]
    if not wanted:
        return [None] * len(tokens)
    logs = torch.log_softmax(logits.float(), dim=-1)  # (B, V)
    chosen = logs.gather(1, torch.tensor(tokens, device=logs.device)[:, None])[:, 0].tolist()
    values, indices = logs.topk(min(max(1, *wanted), logs.size(-1)), dim=-1)
    best = [list(zip(*row, strict=True)) for row in zip(indices.tolist(), values.tolist(), strict=True)]
    return [
        None
        if count is None
        else TokenLogprob(token, logprob, tuple(each for each in likeliest[:count] if each[1] > -torch.inf))
        for token, logprob, likeliest, count in zip(tokens, chosen, best, top, strict=True)
    ]
