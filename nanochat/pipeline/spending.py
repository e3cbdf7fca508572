"""The money and the GPU hours that attempts took, what of it was wasted, and what is left of the budget.

    spent = Spending.of(attempts, spec.cost.gpu_hour, now)
    spent.cost, spent.lost, spent.waiting           # USD: all, what nothing came of, waiting with machines held
    check_budget(spec.budget, spent)                # a sentence, once 80 % of it are spent

Each attempt keeps the price of its machines as it began; `spec.cost.gpuHour` wins over it, for the past too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nanochat.pipeline.attempts import AttemptRecord
from nanochat.pipeline.sentences import Said, Sentence
from nanochat.spec.cost import GPU_HOUR, Budget

NEARLY = 0.8  # of the budget, from which on people are told


@dataclass(frozen=True, slots=True)
class Spending:
    """The price of attempts; money is in USD."""

    gpu_hours: float = 0.0
    cost: float = 0.0
    lost: float = 0.0  # of the cost: for work that nothing came of
    waiting: float = 0.0  # of the cost: for machines that were held while others were waited for
    lost_gpu_hours: float = 0.0
    waiting_gpu_hours: float = 0.0

    @classmethod
    def of(cls, attempts: Iterable[AttemptRecord], gpu_hour: float | None, now: float) -> Spending:
        """The sum over attempts; `gpu_hour` is `spec.cost.gpuHour`."""
        hours = cost = lost = waiting = lost_hours = waiting_hours = 0.0
        for attempt in attempts:
            hourly = hourly_cost(attempt, gpu_hour)
            ran, held = attempt.ran(now) / 3600, attempt.waited(now) / 3600
            in_vain = attempt.lost / 3600
            hours += attempt.gpus * (ran + held)
            cost += hourly * (ran + held)
            lost, waiting = lost + hourly * in_vain, waiting + hourly * held
            lost_hours, waiting_hours = lost_hours + attempt.gpus * in_vain, waiting_hours + attempt.gpus * held
        return cls(hours, cost, lost, waiting, lost_hours, waiting_hours)

    def lines(self) -> list[str]:
        """The sum in a line for people; none where nothing was to be paid."""
        if not (self.cost or self.gpu_hours):
            return []
        parts = [f"{self.gpu_hours:.1f} GPU hours"] if self.gpu_hours else []
        parts += [f"{self.cost:.2f} USD"] if self.cost else []
        wasted = {"lost": self.lost, "waiting": self.waiting}
        parts += [f"{price:.2f} of it {why}" for why, price in wasted.items() if price >= 0.005]
        return [", ".join(parts)]


NOTHING = Spending()


def hourly_cost(attempt: AttemptRecord, gpu_hour: float | None) -> float:
    """The price of all of an attempt's machines for one hour, in USD."""
    if gpu_hour is not None and attempt.gpus:
        return attempt.gpus * gpu_hour
    return attempt.gpus * GPU_HOUR if attempt.hourly is None else attempt.hourly


class BudgetSaid(Sentence):
    """All sentences about what is left of a budget; none has a figure that changes by itself."""

    WITHIN = "WithinBudget", ""
    NEARLY = (
        "BudgetNearlySpent",
        "80 % of the budget of {amount} are spent: raise spec.budget.{name}, or all stages are suspended at 100 %",
    )
    SPENT = "BudgetSpent", "the budget of {amount} is spent: raise spec.budget.{name}, and it goes on where it was"


def check_budget(budget: Budget, spent: Spending) -> Said | None:
    """The sentence on what is left of a budget, by the limit that is nearer; None where there is no limit."""
    limits = (("money", "USD", spent.cost, budget.money), ("gpuHours", "GPU hours", spent.gpu_hours, budget.gpu_hours))
    shares = [(used / limit, name, f"{limit:g} {unit}") for name, unit, used, limit in limits if limit]
    if not shares:
        return None
    share, name, amount = max(shares)
    told = BudgetSaid.SPENT if share >= 1 else BudgetSaid.NEARLY if share >= NEARLY else BudgetSaid.WITHIN
    return told.of(name=name, amount=amount)


def is_spent(told: Said | None) -> bool:
    """Whether nothing may go on, by what `check_budget` said."""
    return told is not None and told.reason == BudgetSaid.SPENT.reason
