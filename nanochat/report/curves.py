"""The plots of a training stage, from its journal: loss, bits per byte, reward, and what was measured on the way."""

from __future__ import annotations

from collections.abc import Sequence

from nanochat.report.document import Plot
from nanochat.report.metrics import label
from nanochat.report.plots import Curve, draw, smoothed
from nanochat.tracking.journal import TASK, History
from nanochat.tracking.quantities import count, number

# Words in a metric's name -> (name of the plot, its y axis, where that ends at least).
_PLOTS = (
    (("loss",), "loss", "loss (nats per token)", None),
    (("bpb", "bits"), "bits-per-byte", "bits per byte", None),
    (("reward", "pass_at"), "reward", "reward", 1.0),
    (("val/core",), "core", "CORE", None),
    ((TASK,), "tasks", "proportion right", 1.0),
)
_DESCRIPTIONS = {
    "loss": "Loss", "bits-per-byte": "Bits per byte", "reward": "Reward and solved problems", "core": "CORE",
    "tasks": "Tasks",
}  # fmt: skip
_SMOOTHED_FROM = 50  # points; a curve with fewer is shown as it is


def training_plots(stage: str, history: History) -> list[Plot]:
    """The stage's plots, with the policy's loss of RL left out: it says nothing of progress."""
    plots = []
    for words, name, axis, top in _PLOTS:
        if stage == "rl" and name == "loss":
            continue
        curves: list[Curve] = []
        for metric, series in history.metrics.items():
            if not any(word in metric for word in words):
                continue
            points = [(float(point.step), point.value) for point in series]
            called = label(metric.removeprefix(TASK))
            if len(points) >= _SMOOTHED_FROM:
                curves.append(Curve(called, points, faint=True))
                points = smoothed(points)
            curves.append(Curve(called, points))
        description = f"{_DESCRIPTIONS[name]} of {stage.upper()}"
        if any(curve.faint for curve in curves):
            description += "; lines are running means, with the values behind them"
        title = f"{_DESCRIPTIONS[name]} of {stage.upper()} by step: {told(curves)}"
        svg = draw(curves, name=f"{name}-{stage}", title=title, x="step", y=axis, top=top)
        if svg is not None:
            plots.append(Plot(f"{name}-{stage}", svg, description))
    return plots


def told(curves: Sequence[Curve]) -> str:
    """Curves in words, for those who do not see them: where each begins and ends, or its one point."""
    parts = []
    for curve in (curve for curve in curves if curve.points and not curve.faint):
        (first, begins), (last, ends) = curve.points[0], curve.points[-1]
        begin, end = f"{number(begins)} at step {count(first)}", f"{number(ends)} at {count(last)}"
        parts.append(f"{curve.name} {begin}" if first == last else f"{curve.name} from {begin} to {end}")
    return "; ".join(parts)
