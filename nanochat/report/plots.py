"""Curves as SVG. Axes and words take the colour of the text around them, so a drawing suits a light and a dark page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_INK = "#010203"  # stands for the text's colour until the drawing is written
_COLOURS = ("#2f7fd6", "#e0702a", "#2a9d6f", "#b455c8", "#c9a227", "#d6455d")  # legible on white and on black
_MOST_POINTS = 600


@dataclass(frozen=True, slots=True)
class Curve:
    """One line: a name, and points of (x, y); a `faint` one lies behind the others (raw values under a mean)."""

    name: str
    points: Sequence[tuple[float, float]]
    faint: bool = False


def draw(curves: Sequence[Curve], *, name: str, x: str, y: str) -> str | None:
    """The curves as an SVG element; None where no curve has two finite points."""
    shown = []
    for curve in curves:
        points = [(a, b) for a, b in curve.points if math.isfinite(a) and math.isfinite(b)]
        if len(points) >= 2:
            shown.append(Curve(curve.name, _thinned(points), curve.faint))
    if not shown:
        return None
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

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
            axes.plot(xs, ys, color=colour, linewidth=width, alpha=alpha, label=label, marker=marker, markersize=3.5)
            solid += not curve.faint
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, color=_INK, alpha=0.15, linewidth=0.6)
        axes.margins(x=0.01)
        if solid > 1:
            axes.legend(frameon=False)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(out.getvalue(), name)


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


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most so many points as a screen shows: the last of each of equal stretches."""
    if len(points) <= _MOST_POINTS:
        return points
    step = len(points) / _MOST_POINTS
    return [points[min(len(points) - 1, math.ceil((i + 1) * step) - 1)] for i in range(_MOST_POINTS)]


def _inline(svg: str, name: str) -> str:
    """The element alone, with ids of its own, so that several drawings can share a page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>',
        r'<svg xmlns="http://www.w3.org/2000/svg" ' + r'xmlns:xlink="http://www.w3.org/1999/xlink" \1 role="img">',
        svg,
        count=1,
        flags=re.DOTALL,
    )
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'xlink:href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    return svg.replace(_INK, "currentColor").strip()
