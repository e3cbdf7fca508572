"""Numbers as people read them."""

from __future__ import annotations

import math
from datetime import UTC, datetime


def duration(seconds: float | None) -> str:
    """'0.4 s', '42 s', '3 min 12 s', '3 h 51 min', '2 d 4 h'."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"


def count(value: float | None) -> str:
    """'7,473', '561.0 million', '11.2 billion'."""
    if value is None or not math.isfinite(value):
        return "-"
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if abs(value) >= size:
            return f"{value / size:,.1f} {word}"
    return f"{value:,.0f}"


def scientific(value: float | None) -> str:
    """'3.92e19': for numbers of operations."""
    if value is None or not math.isfinite(value):
        return "-"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def size(value: float | None) -> str:
    """Bytes: '512 B', '1.9 GiB'."""
    if value is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def money(value: float | None) -> str:
    """'$0.42', '$92.40', '$1,250'; '-' where there is no price."""
    if value is None:
        return "-"
    if value == 0:
        return "$0"
    return f"${value:,.0f}" if value >= 1000 else f"${value:.2f}" if value >= 0.01 else "< $0.01"


def number(value: float | None) -> str:
    """Four significant digits: '0.8123', '12.35', '9,812'."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 8)}f}"


def date(seconds: float | None) -> str:
    """'2026-11-23 21:59 UTC'."""
    if seconds is None:
        return "-"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
