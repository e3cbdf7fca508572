"""Whether a rank waits for the others: two numbers in a file, which its launcher reads.

    waits = Waits.in_file(work / "rank1.waits")        # in the rank
    with waits:
        dist.all_reduce(...)
    moves, waiting = read_waits(work / "rank1.waits")  # in the launcher

The file is memory that both share: to count costs nothing, and what is there can be read when the rank hangs.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_NUMBERS = struct.Struct("<QQ")  # how often a wait began or ended, and how many there are now


class Waits:
    """Counts the waits of one process, of one thread at a time; each is a `with` block."""

    def __init__(self, memory: mmap.mmap | bytearray | None = None) -> None:
        self._memory = memory if memory is not None else bytearray(_NUMBERS.size)
        self._moves = self._depth = 0

    @classmethod
    def in_file(cls, path: Path) -> Waits:
        """Waits that whoever can read the file sees."""
        path.write_bytes(bytes(_NUMBERS.size))
        with path.open("r+b") as file:
            return cls(mmap.mmap(file.fileno(), _NUMBERS.size))

    def __enter__(self) -> None:
        self._move(1)

    def __exit__(self, *_: object) -> None:
        self._move(-1)

    def _move(self, by: int) -> None:
        self._moves += 1
        self._depth += by
        _NUMBERS.pack_into(self._memory, 0, self._moves, self._depth)


def read_waits(path: Path) -> tuple[int, bool]:
    """How often a process has moved, and whether it waits now; (0, False) where there is no such file yet."""
    try:
        moves, depth = _NUMBERS.unpack(path.read_bytes())
    except (OSError, struct.error):
        return 0, False
    return moves, depth > 0
