"""Expressions are read as trees, by several threads at a time, and what is none says why."""

from __future__ import annotations

import ast
import gc
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from nanochat.parse import Malformed
from nanochat.parse.expression import read_expression

LONG = "*".join(["(1 + 2)"] * 30)


@pytest.fixture
def others_run_while_garbage_is_collected() -> Iterator[None]:
    def let_them(phase: str, info: dict[str, int]) -> None:
        time.sleep(0)

    often = gc.get_threshold()
    gc.set_threshold(20)
    gc.callbacks.append(let_them)
    yield
    gc.callbacks.remove(let_them)
    gc.set_threshold(*often)


@pytest.mark.usefixtures("others_run_while_garbage_is_collected")
def test_threads_do_not_end_each_others_trees() -> None:
    same = ast.dump(read_expression(LONG, limit=1024))
    with ThreadPoolExecutor(4) as threads:
        read = [threads.submit(read_expression, LONG, limit=1024) for _ in range(400)]
        assert all(ast.dump(tree.result()) == same for tree in read)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 +", "not an expression (invalid syntax)"),
        ("x = 1", "not an expression (invalid syntax)"),
        ("", "not an expression (invalid syntax)"),
        ("(" * 300 + ")" * 300, "not an expression (too many nested parentheses)"),
        ("\0", "not an expression (source code string cannot contain null bytes)"),
        ("1" * 2001, "longer than 2,000 characters"),
        ("\ud800", "surrogates not allowed"),
    ],
    ids=["cut", "statement", "empty", "deep", "null", "long", "surrogate"],
)
def test_what_is_none_says_why(text: str, reason: str) -> None:
    with pytest.raises(Malformed) as raised:
        read_expression(text, limit=2000)
    assert reason in str(raised.value)
