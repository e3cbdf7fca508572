"""The tool a model may call: a calculator that also counts letters, by walking Python's syntax tree.

    evaluate("(3 + 4) * 2")             -> "14"
    evaluate("'strawberry'.count('r')") -> "3"
    evaluate("__import__('os')")        -> None

Nothing is ever executed: only the node types below have a meaning. Length, depth, magnitude and exponents are
limited, which bounds the time by construction, so that no timer is needed and any thread may call it.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable

from nanochat.parse.expression import read_expression

MAX_LENGTH = 256  # characters of an expression
MAX_DEPTH = 32  # nested operations
MAX_MAGNITUDE = 10**24  # of every literal and every intermediate result

Number = int | float

_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type[ast.unaryop], Callable[[Number], Number]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


class _Refused(Exception):
    """The expression is outside of what the tool understands or allows."""


def evaluate(expression: str) -> str | None:
    """The value of `expression` as text, or None where it is not understood, not allowed or has no value."""
    expression = expression.strip()
    if not expression or len(expression) > MAX_LENGTH or "\\" in expression:
        return None
    if "'" not in expression and '"' not in expression:
        expression = re.sub(r"(?<=\d),(?=\d{3})", "", expression)  # 1,234 -> 1234
    try:
        return _format(_value(read_expression(expression, limit=MAX_LENGTH), MAX_DEPTH))
    except (_Refused, ValueError, ArithmeticError):
        return None


def _value(node: ast.expr, depth: int) -> Number:
    if depth == 0:
        raise _Refused
    match node:
        case ast.Constant(value=bool()):
            raise _Refused
        case ast.Constant(value=int() | float() as number):
            return _checked(number)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _checked(_UNARY[type(op)](_value(operand, depth - 1)))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left, depth - 1), _value(right, depth - 1))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _checked(_BINARY[type(op)](_value(left, depth - 1), _value(right, depth - 1)))
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str() as text), attr="count"),
            args=[ast.Constant(value=str() as part)],
            keywords=[],
        ):
            return text.count(part)
    raise _Refused


def _power(base: Number, exponent: Number) -> Number:
    """`base ** exponent`, refused before it is computed where the result would be too large."""
    if base != 0 and abs(exponent) * abs(math.log10(abs(base))) > math.log10(MAX_MAGNITUDE):
        raise _Refused
    if abs(exponent) > 1000:
        raise _Refused
    return _checked(base**exponent)


def _checked(number: object) -> Number:
    if isinstance(number, complex) or not isinstance(number, int | float):
        raise _Refused
    if not math.isfinite(number) or abs(number) > MAX_MAGNITUDE:
        raise _Refused
    return number


def _format(number: Number) -> str:
    """Whole numbers without a point (10 / 2 is "5"), others to twelve digits (0.1 + 0.2 is "0.3")."""
    if isinstance(number, int):
        return str(number)
    if number.is_integer() and abs(number) < 1e15:
        return str(int(number))
    return f"{number:.12g}"
