"""The two processes of the sandbox: `python -I -S sandbox_child.py candidate` and `... judge READ WRITE`.

The judge runs the trusted test, the candidate the untrusted program, both confined. Where the test calls the
function, the judge sends the arguments through a pipe, the candidate calls it and sends back what it returned. What
crosses is plain data in JSON lines, so the answer has no methods of its own that could make a comparison true, and
the test, its expected values and the token exist in the judge only: there is nothing in the candidate's process to
find, patch or imitate. The judge prints the token it was given when `check` has returned.

This file imports nothing but the standard library and its neighbour `confinement`.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, BinaryIO

LONGEST = 1 << 20  # bytes of one message
PRELOADED = "collections copy datetime decimal fractions functools hashlib heapq itertools json math random re string"


class WrongAnswer(Exception):
    """The candidate ended, or answered with something that is no plain data."""


def encode(value: Any) -> Any:
    """Plain data as JSON's: containers become lists that begin with the name of their type."""
    if value is None or isinstance(value, (bool, int, float, str)):
        for kind in (bool, int, float, str):
            if isinstance(value, kind):
                return kind(value)
        return None
    if isinstance(value, dict):
        return ["dict", *([encode(key), encode(item)] for key, item in value.items())]
    for name, kind in (("list", list), ("tuple", tuple), ("set", (set, frozenset))):
        if isinstance(value, kind):
            return [name, *(encode(item) for item in value)]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", value.hex()]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    raise TypeError(f"a {type(value).__name__} is no plain data")


def decode(value: Any) -> Any:
    """The reverse of `encode`; raises for anything that it does not make."""
    if not isinstance(value, list):
        if isinstance(value, dict):
            raise ValueError("not encoded data")
        return value
    kind, *items = value
    if kind == "dict":
        return {decode(key): decode(item) for key, item in items}
    if kind == "bytes":
        return bytes.fromhex(items[0])
    if kind == "complex":
        return complex(*items)
    return {"list": list, "tuple": tuple, "set": set}[kind](decode(item) for item in items)


def send(stream: BinaryIO, message: Any) -> None:
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    line = stream.readline(LONGEST)
    if not line.endswith(b"\n"):
        raise WrongAnswer("the program ended or answered too much")
    return json.loads(line)


def candidate() -> None:
    """Run the program, then answer calls of its function until the judge hangs up."""
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    silence()
    first = receive(requests)
    prepare(first["memory"], first["cpu_seconds"])
    space: dict[str, Any] = {"__name__": "program"}
    exec(compile(first["source"], "program", "exec"), space)
    function = space[first["entry_point"]]
    while True:
        arguments, named = decode(receive(requests))
        send(answers, encode(function(*arguments, **named)))


def judge(read: int, write: int) -> None:
    """Run the test against the candidate at the other end of two pipes; prints the token if it holds."""
    task = json.loads(sys.stdin.buffer.read())
    results = os.fdopen(os.dup(1), "wb")
    silence()
    answers, requests = os.fdopen(read, "rb"), os.fdopen(write, "wb")
    try:
        prepare(task["memory"], task["cpu_seconds"])
    except Exception as error:
        send(results, {"reason": str(error)})
        return
    first = {name: task[name] for name in ("source", "entry_point", "memory", "cpu_seconds")}

    def function(*arguments: Any, **named: Any) -> Any:
        send(requests, encode((arguments, named)))
        return decode(receive(answers))

    try:
        send(requests, first)
        space: dict[str, Any] = {"__name__": "test"}
        exec(compile(task["test"], "test", "exec"), space)
        space[task["entry_point"]] = function
        space["check"](function)
    except Exception as error:
        send(results, {"reason": f"{type(error).__name__}: {error}"[:500]})
    else:
        send(results, {"token": task["token"]})


def silence() -> None:
    """Send what programs print to nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (1, 2):
        os.dup2(nowhere, fd)
    os.close(nowhere)


def prepare(memory: int, cpu_seconds: int) -> None:
    """Load what cannot be loaded later, then confine this process for good."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from confinement import confine  # pyright: ignore[reportMissingImports]

    del sys.path[0]
    for name in PRELOADED.split():
        __import__(name)
    confine(memory=memory, cpu_seconds=cpu_seconds)


if __name__ == "__main__":
    if sys.argv[1] == "candidate":
        candidate()
    else:
        judge(int(sys.argv[2]), int(sys.argv[3]))
