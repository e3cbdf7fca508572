"""Curves as SVG, over axes that have 0 on them.

Axes and words take the colour of the text around them, so a drawing suits a light and a dark page.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

_INK = "#010203"  # stands for the text's colour until the drawing is written
_COLOURS = ("#2f7fd6", "#e0702a", "#2a9d6f", "#b455c8", "#c9a227", "#d6455d")  # legible on white and on black
_DASHES = ("-", "--", ":", "-.")  # for those who see no colours
_MOST_POINTS = 600


@dataclass(frozen=True, slots=True)
class Curve:
    """One line: a name, and points of (x, y); a `faint` one lies behind the others (raw values under a mean)."""

    name: str
    points: Sequence[tuple[float, float]]
    faint: bool = False


def draw(curves: Sequence[Curve], *, name: str, title: str, x: str, y: str, top: float | None = None) -> str | None:
    """The curves as an SVG element, which screen readers call by `title`; None where no curve has a finite point.

    The y axis reaches `top` at least, where that is given.
    """
    shown = []
    for curve in curves:
        points = [(a, b) for a, b in curve.points if math.isfinite(a) and math.isfinite(b)]
        if points:
            shown.append(Curve(curve.name, thinned(points), curve.faint))
    if not shown:
        return None
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 11,
        "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _INK, "xtick.color": _INK, "ytick.color": _INK,
    }  # fmt: skip
    with rc_context(settings):
        figure = Figure(figsize=(6.0, 2.9), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        solid = 0
        for curve in shown:
            colour = _COLOURS[solid % len(_COLOURS)]
            label = None if curve.faint else curve.name
            width, alpha = (0.8, 0.35) if curve.faint else (1.7, 1.0)
            marker = "o" if len(curve.points) <= 12 else None
            xs, ys = zip(*curve.points, strict=True)
            dashes = _DASHES[solid % len(_DASHES)]
            style: Any = {"linewidth": width, "alpha": alpha, "label": label, "marker": marker, "markersize": 3.5}
            axes.plot(xs, ys, dashes, color=colour, clip_on=False, **style)  # a point on an axis is whole
            solid += not curve.faint
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, color=_INK, alpha=0.15, linewidth=0.6)
        values = [value for curve in shown for _, value in curve.points]
        steps = [step for curve in shown for step, _ in curve.points]
        axes.set_xlim(min(0.0, *steps), None if any(steps) else 1.0)
        lowest, highest = min(0.0, *values), max(top or 0.0, *values)
        axes.set_ylim(1.03 * lowest, 1.03 * highest if highest > lowest else 1.0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.ticklabel_format(axis="y", style="plain", useOffset=False)
        if solid > 1:
            axes.legend(frameon=False)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(out.getvalue(), name, title)


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The mean m = w m + (1 - w) y over a 40th of the points, without a bias at its start; NaN is left out."""
    weight = 1 - 1 / max(3.0, len(points) / 40)
    out, mean, total = [], 0.0, 0.0
    for x, y in points:
        if math.isfinite(y):
            mean = weight * mean + (1 - weight) * y
            total = weight * total + (1 - weight)
            out.append((x, mean / total))
    return out


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most so many points as a screen shows: the lowest and the highest of equal stretches, and the ends."""
    if len(points) <= _MOST_POINTS:
        return points
    step = 2 * len(points) / (_MOST_POINTS - 2)
    kept = {points[0], points[-1]}
    for i in range(_MOST_POINTS // 2 - 1):
        stretch = points[math.floor(i * step) : math.floor((i + 1) * step)]
        kept |= {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
    return sorted(kept)


def _inline(svg: str, name: str, title: str) -> str:
    """The element alone, with a title for those who do not see it; its ids are its own, for drawings share a page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>',
        lambda found: (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'{found[1]} role="img"><title>{escape(title)}</title>'
        ),
        svg,
        count=1,
        flags=re.DOTALL,
    )
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'xlink:href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    return svg.replace(_INK, "currentColor").strip()
