"""The plots of a training stage, from its journal: loss, bits per byte, reward."""

from __future__ import annotations

from nanochat.report.document import Plot
from nanochat.report.metrics import label
from nanochat.report.plots import Curve, draw, smoothed
from nanochat.tracking.journal import History

# Words in a metric's name -> (name of the plot, its y axis).
_PLOTS = (
    (("loss",), "loss", "loss (nats per token)"),
    (("bpb", "bits"), "bits-per-byte", "bits per byte"),
    (("reward", "pass"), "reward", "reward"),
)
_DESCRIPTIONS = {"loss": "Loss", "bits-per-byte": "Bits per byte", "reward": "Reward and solved problems"}
_SMOOTHED_FROM = 50  # points; a curve with fewer is shown as it is


def training_plots(stage: str, history: History) -> list[Plot]:
    """The stage's plots, with the policy's loss of RL left out: it says nothing of progress."""
    plots = []
    for words, name, axis in _PLOTS:
        if stage == "rl" and name == "loss":
            continue
        curves: list[Curve] = []
        for metric, series in history.metrics.items():
            if not any(word in metric for word in words):
                continue
            points = [(float(point.step), point.value) for point in series]
            if len(points) >= _SMOOTHED_FROM:
                curves.append(Curve(label(metric), points, faint=True))
                points = smoothed(points)
            curves.append(Curve(label(metric), points))
        svg = draw(curves, name=f"{name}-{stage}", x="step", y=axis)
        if svg is not None:
            plots.append(Plot(f"{name}-{stage}", svg, f"{_DESCRIPTIONS[name]} of {stage.upper()}"))
    return plots
