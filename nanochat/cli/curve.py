"""Curves as text: in one line, or several in one frame.

sparkline([(1, 10.4), (100, 3.2)], width=40)                  # '█▇▅▃▂▁'
plot({"A": points, "B": others}, width=60, height=12)         # lines, with the values at the edges
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nanochat.tracking.quantities import count, number

Points = Sequence[tuple[int, float]]  # step, value; by rising step

BLOCKS, PLAIN = "▁▂▃▄▅▆▇█", "_.-=+*#@"
SHARED = "*"  # where two curves of a plot meet


def sparkline(points: Points, *, width: int, encoding: str = "utf-8") -> str:
    """The values over equal parts of the steps, each as the height of a character; '' without any.

    The highest tenth has one height: losses of the first steps would leave none to those of all others.
    """
    columns = _columns(points, points[0][0], points[-1][0], width) if points else []
    values = [value for value in columns if value is not None]
    if not values:
        return ""
    marks = BLOCKS if encoding.lower().replace("-", "") == "utf8" else PLAIN
    low, high = min(values), sorted(values)[len(values) * 9 // 10]
    high = high if high > low else max(values)  # peaks are all that there is
    return "".join(marks[_level(value, low, high, len(marks))] for value in values)


def plot(curves: Mapping[str, Points], *, width: int, height: int) -> list[str]:
    """Curves in one frame, each drawn with the first letter of its name, the highest value above."""
    drawn = {name: points for name, points in curves.items() if points}
    if not drawn:
        return []
    first, last = min(p[0][0] for p in drawn.values()), max(p[-1][0] for p in drawn.values())
    columns = {name: _columns(points, first, last, width) for name, points in drawn.items()}
    values = [value for column in columns.values() for value in column if value is not None]
    low, high = min(values), max(values)
    frame = [[" "] * width for _ in range(height)]
    for name, column in columns.items():
        for x, value in enumerate(column):
            if value is not None:
                row = frame[height - 1 - _level(value, low, high, height)]
                row[x] = name[0] if row[x] in (" ", name[0]) else SHARED
    labels = [number(high), *[""] * (height - 2), number(low)]
    margin = max(map(len, labels))
    lines = [f"{label:>{margin}} |{''.join(row).rstrip()}" for label, row in zip(labels, frame, strict=True)]
    end = count(last)
    axis = f"{count(first)}{end:>{max(1, width - len(count(first)))}}"
    return [*lines, f"{'':>{margin}} +{'-' * width}", f"{'':>{margin}}  {axis} steps"]


def _columns(points: Points, first: int, last: int, width: int) -> list[float | None]:
    """The mean value of each part of the steps from `first` to `last`; the one before where a part has none."""
    sums: list[list[float]] = [[] for _ in range(width)]
    for step, value in points:
        sums[min(width - 1, (step - first) * width // max(1, last - first + 1))].append(value)
    begin, end = points[0][0], points[-1][0]
    columns: list[float | None] = []
    for x, found in enumerate(sums):
        here = first + x * (last - first + 1) / width
        before = columns[-1] if columns and begin <= here <= end else None
        columns.append(sum(found) / len(found) if found else before)
    return columns


def _level(value: float, low: float, high: float, levels: int) -> int:
    """0 to levels - 1; the middle where all values are one."""
    return levels // 2 if high == low else min(levels - 1, int((value - low) / (high - low) * levels))
