"""Python's expressions as syntax trees, of bounded size; nothing is executed.

    read_expression("core >= 0.2", limit=1024)         # ast.Compare; Malformed where it is no expression

CPython below 3.12 counts the depth of a tree once for all threads: where another thread runs while a tree is built,
which any finalizer can bring about, `ast.parse` ends with SystemError (python/cpython#106905). One is built at a time.
"""

from __future__ import annotations

import ast
from threading import RLock

from nanochat.parse import Malformed

_one_at_a_time = RLock()  # a finalizer may read an expression while this thread does


def read_expression(text: str, *, limit: int) -> ast.expr:
    """The tree of an expression of at most `limit` characters."""
    if len(text) > limit:
        raise Malformed(f"longer than {limit:,} characters")
    try:
        with _one_at_a_time:
            return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Malformed(f"not an expression ({getattr(error, 'msg', error)})") from None
