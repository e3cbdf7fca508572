"""Gates of a release: conditions on the results, such as `core >= 0.20 and core >= champion.core - 0.005`.

A gate is made of numbers, metrics, `champion.<metric>` (the released model's own), `<stage>.<metric>`, + - * /,
comparisons, `and`, `or`, `not` and parentheses; a metric's `-` is written `_` (`arc_easy`). `parse` checks the form
before any work is done, `Gate.evaluate` the values. Where there is no champion yet (or it lacks the metric) a
comparison with it does not stand in the way: it counts as true, and the outcome says so.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nanochat.parse import Malformed
from nanochat.parse.expression import read_expression
from nanochat.spec.errors import UserError
from nanochat.spec.fields import nearest

_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_MAX_LENGTH = 1024
_LARGEST = 1e300
CHAMPION = "champion"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict on a gate: whether it holds, the values that it looked at (None: there is none), and why."""

    expression: str
    holds: bool
    values: Mapping[str, float | None]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As release.json has it."""
        return {
            "expression": self.expression,
            "holds": self.holds,
            "values": dict(self.values),
            "notes": list(self.notes),
        }


class _Absent(Exception):
    """A value that is known by name but not there."""

    def __init__(self, why: str, *, of_champion: bool) -> None:
        super().__init__(why)
        self.of_champion = of_champion


@dataclass(frozen=True, slots=True)
class Gate:
    """One parsed gate."""

    expression: str
    tree: ast.expr

    def check_names(self, measured: Mapping[str, Collection[str]], *, of_champion: Collection[str]) -> None:
        """UserError, with the nearest name, where the gate names a metric that there never will be.

        `measured` are the metrics by the stage whose model they are of, `of_champion` those that any model may have.
        """
        own = {plain(name) for names in measured.values() for name in names}
        champions = own | {plain(name) for name in of_champion}
        own |= {f"{stage}.{plain(name)}" for stage, names in measured.items() for name in names}
        for name in _names(self.tree):
            metric = name.removeprefix(f"{CHAMPION}.")
            known = own if metric == name else champions
            if metric not in known:
                raise _unknown(self.expression, metric, known)

    def check_possible(self, unmeasured: Mapping[str, str]) -> None:
        """UserError where no result makes the gate hold. `unmeasured` says of metrics why there are none."""
        why = {plain(name): text for name, text in unmeasured.items()}
        absent = next((name for name in _names(self.tree) if name in why), None)
        if absent is not None and not _possible(self.tree, why, holds=True):
            raise UserError(
                f"the release gate '{self.expression}' can never hold, for {absent} is not measured: {why[absent]}"
            )

    def evaluate(
        self,
        metrics: Mapping[str, float],
        champion: Mapping[str, float] | None,
        *,
        not_run: Mapping[str, str] | None = None,
        of_champion: Collection[str] = (),
    ) -> Outcome:
        """Decide whether the gate holds.

        `metrics` are by name, with `<stage>.<metric>` beside `<metric>`; `champion` is None where no version has the
        alias; `not_run` says why a metric that is known has no value: comparisons with it fail. `of_champion` are the
        metrics that any model may have. UserError for an unknown metric.
        """
        evaluation = _Evaluation(self.expression, metrics, champion, not_run or {}, of_champion)
        try:
            holds = evaluation.condition(self.tree, negated=False)
        except ZeroDivisionError:
            return Outcome(self.expression, False, evaluation.values, (*evaluation.notes, "it divides by zero"))
        return Outcome(self.expression, holds, evaluation.values, tuple(evaluation.notes))


def parse(expression: str) -> Gate:
    """Check the form of a gate; UserError with what is wrong where it has none."""
    try:
        tree = read_expression(expression, limit=_MAX_LENGTH)
    except Malformed as error:
        raise UserError(
            f"the release gate '{expression[:_MAX_LENGTH]}' is {error}: "
            "write it like `core >= 0.20 and core >= champion.core - 0.005`"
        ) from None
    _check_condition(expression, tree)
    return Gate(expression, tree)


def plain(name: str) -> str:
    """A metric's name as gates write it."""
    return name.replace("-", "_").replace("/", "_").lower()


def _unknown(expression: str, metric: str, known: Collection[str]) -> UserError:
    there_are = nearest(metric, sorted(known)) if known else " This pipeline evaluates no model."
    return UserError(f"the release gate '{expression}' names an unknown metric '{metric}'.{there_are}")


def _names(node: ast.AST) -> Iterator[str]:
    """The metrics in an expression as they are written."""
    if isinstance(node, ast.Name | ast.Attribute):
        yield ast.unparse(node)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _names(child)


def _possible(node: ast.AST, absent: Collection[str], *, holds: bool) -> bool:
    """Whether a condition can be true (`holds`) or false: a comparison with what is absent never helps."""
    if isinstance(node, ast.BoolOp):
        parts = [_possible(value, absent, holds=holds) for value in node.values]
        return all(parts) if isinstance(node.op, ast.And) is holds else any(parts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return _possible(node.operand, absent, holds=not holds)
    return not any(name in absent for name in _names(node))


def _refuse(expression: str, node: ast.AST, why: str) -> UserError:
    return UserError(f"the release gate '{expression}' {why} at '{ast.unparse(node)}'")


def _check_condition(expression: str, node: ast.expr) -> None:
    if isinstance(node, ast.BoolOp):
        for value in node.values:
            _check_condition(expression, value)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _check_condition(expression, node.operand)
    elif isinstance(node, ast.Compare):
        if not all(type(op) in _COMPARISONS for op in node.ops):
            raise _refuse(expression, node, "compares with something else than < <= > >= == !=")
        for value in (node.left, *node.comparators):
            _check_number(expression, value)
    else:
        raise _refuse(expression, node, "needs a comparison such as `core >= 0.2`")


def _check_number(expression: str, node: ast.expr) -> None:
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        _check_number(expression, node.left)
        _check_number(expression, node.right)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        _check_number(expression, node.operand)
    elif (
        (
            isinstance(node, ast.Constant)
            and isinstance(node.value, int | float)
            and type(node.value) is not bool
            and abs(node.value) <= _LARGEST
        )
        or isinstance(node, ast.Name)
        or (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name))
    ):
        return
    else:
        raise _refuse(expression, node, "takes only numbers, metrics, + - * /, comparisons, and, or, not; it fails")


class _Evaluation:
    def __init__(
        self,
        expression: str,
        metrics: Mapping[str, float],
        champion: Mapping[str, float] | None,
        not_run: Mapping[str, str],
        of_champion: Collection[str],
    ) -> None:
        self.expression = expression
        self.metrics = {plain(name): value for name, value in metrics.items()}
        self.champion = None if champion is None else {plain(name): value for name, value in champion.items()}
        self.not_run = {plain(name): why for name, why in not_run.items()}
        self.of_champion = {plain(name) for name in of_champion}
        self.values: dict[str, float | None] = {}
        self.notes: list[str] = []

    def condition(self, node: ast.expr, *, negated: bool) -> bool:
        """Every part is looked at, also where an earlier one decides, so that all values are in the outcome."""
        if isinstance(node, ast.BoolOp):
            parts = [self.condition(value, negated=negated) for value in node.values]
            return all(parts) if isinstance(node.op, ast.And) else any(parts)
        if isinstance(node, ast.UnaryOp):
            return not self.condition(node.operand, negated=not negated)
        assert isinstance(node, ast.Compare)
        try:
            numbers = self.numbers(node.left, *node.comparators)
        except _Absent as absent:
            if absent.of_champion:
                self.notes.append(f"{absent}, so `{ast.unparse(node)}` does not stand in the way")
                return not negated  # under a `not` it must be false for the whole to hold
            self.notes.append(str(absent))
            return negated
        pairs = zip(node.ops, numbers, numbers[1:], strict=False)
        return all(_COMPARISONS[type(op)](left, right) for op, left, right in pairs)

    def number(self, node: ast.expr) -> float:
        if isinstance(node, ast.BinOp):
            left, right = self.numbers(node.left, node.right)
            return _ARITHMETIC[type(node.op)](left, right)
        if isinstance(node, ast.UnaryOp):
            value = self.number(node.operand)
            return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.Constant):
            assert isinstance(node.value, (int, float))
            return float(node.value)
        return self.metric(ast.unparse(node))

    def numbers(self, *nodes: ast.expr) -> list[float]:
        """The values of all nodes. No absence is told before: an absent champion must not hide an unknown metric."""
        values, absences = [], []
        for node in nodes:
            try:
                values.append(self.number(node))
            except _Absent as absent:
                absences.append(absent)
        if absences:
            raise min(absences, key=lambda absent: absent.of_champion)
        return values

    def metric(self, name: str) -> float:
        of_champion = name.startswith(f"{CHAMPION}.")
        metric = name.removeprefix(f"{CHAMPION}.")
        names = {*self.metrics, *self.not_run, *(self.champion if self.champion is not None else ())}
        known: list[str] = sorted(names | self.of_champion if of_champion else names)
        if metric not in known:
            raise _unknown(self.expression, metric, known)
        if of_champion:
            value = None if self.champion is None else self.champion.get(metric)
            why = "there is no champion yet" if self.champion is None else f"the champion has no {metric}"
        else:
            value = self.metrics.get(metric)
            why = f"{metric} was not run: {self.not_run.get(metric, 'only the champion has it')}"
        self.values[name] = value
        if value is None:
            raise _Absent(why, of_champion=of_champion)
        return value
