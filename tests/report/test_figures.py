"""Numbers as people read them."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from nanochat.pipeline.attempts import AttemptRecord
from nanochat.report.curves import told
from nanochat.report.document import Answer, Document, Exchange, Line, Section
from nanochat.report.markdown import render_markdown
from nanochat.report.metrics import answered, brief, cell, label, ordered
from nanochat.report.plots import Curve, draw, smoothed, thinned
from nanochat.report.record import Result, spent_on
from nanochat.tracking.quantities import count, date, duration, money, number, scientific, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"), (math.nan, "-"), (0.0, "0.0 s"), (0.42, "0.4 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"),
        (59.6, "1 min"), (192, "3 min 12 s"), (3599.6, "1 h"), (13_860, "3 h 51 min"), (86_399, "1 d"),
        (187_200, "2 d 4 h"),
    ],
)  # fmt: skip
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_counts_and_sizes() -> None:
    assert count(7473) == "7,473"
    assert count(560_988_160) == "561.0 million"
    assert count(11.22e9) == "11.2 billion"
    assert count(None) == "-"
    assert scientific(3.92e19) == "3.92e19"
    assert size(512) == "512 B" and size(80 << 30) == "80.0 GiB"


def test_the_time_of_gpus_goes_by_the_nodes_that_each_attempt_had() -> None:
    spec = {"stages": {"base": {"nodes": 4, "gpusPerNode": 8}}}
    attempts = [AttemptRecord(stage="base", number=n, used=3600.0, nodes=nodes) for n, nodes in enumerate((0, 4, 2))]
    spent = spent_on(attempts, spec)
    assert (spent.gpu_hours, spent.cost) == (8 * (4 + 4 + 2), 3.0 * 80)
    assert spent_on(attempts, spec | {"cost": {"gpuHour": 2.0}}).cost == 160.0
    assert spent_on([replace(attempts[0], stage="eval-base")], spec).cost == 0.0


def test_an_attempt_keeps_its_prices() -> None:
    """What it held of a machine without GPUs is paid for too; a price of GPUs in the pipeline is none of it."""
    kept = AttemptRecord(stage="base", number=1, used=1800.0, held=900.0, lost=450.0, gpus=2, hourly=4.0)
    spent = spent_on([kept], {"stages": {"base": {"nodes": 4, "gpusPerNode": 8}}})
    assert (spent.gpu_hours, spent.cost, spent.waiting, spent.lost) == (1.5, 3.0, 1.0, 0.5)
    assert (spent.waiting_gpu_hours, spent.lost_gpu_hours) == (0.5, 0.25)
    assert spent.lines() == ["1.5 GPU hours, 3.00 USD, 0.50 of it lost, 1.00 of it waiting"]
    cores = replace(kept, gpus=0, hourly=0.4)
    assert spent_on([cores], {"cost": {"gpuHour": 100.0}}).cost == pytest.approx(0.3)


def test_money() -> None:
    assert [money(value) for value in (None, 0, 0.001, 0.42, 92.4, 1250)] == [
        "-", "$0", "< $0.01", "$0.42", "$92.40", "$1,250",
    ]  # fmt: skip


def test_numbers_have_four_digits() -> None:
    assert [number(value) for value in (0.81234, 12.3456, 9812.4, 0.00012345, 0, math.nan, None)] == [
        "0.8123", "12.35", "9,812", "0.0001234", "0", "nan", "-",
    ]  # fmt: skip


def test_date() -> None:
    assert date(0) == "1970-01-01 00:00 UTC"


def test_cells() -> None:
    assert cell("arc-easy", Result(846 / 2376, 2376, 0.0098)) == "35.6 ± 1.0 %\n846 of 2,376"
    assert cell("core", Result(0.2219, 92000, 0.006)) == "0.2219 ± 0.0060\nn 92,000"
    assert brief("arc-easy", Result(846 / 2376, 2376, 0.0098)) == ("35.6 %", "846/2,376")
    assert brief("core", Result(0.2219, 92000, 0.006)) == ("0.2219", "")
    assert cell("chatcore", Result(-0.01)) == "-0.0100"
    assert cell("gsm8k", Result(0.0)) == "0.0 %"


def test_metrics_are_in_their_usual_order() -> None:
    names = ["chatcore", "zebra", "gsm8k", "core", "val_bpb", "arc_easy", "world-sums"]
    assert [metric.name for metric in ordered(names)] == [
        "val_bpb", "core", "arc_easy", "gsm8k", "world-sums", "zebra", "chatcore",
    ]  # fmt: skip
    assert label("arc_easy") == "ARC-Easy" and label("val/bpb") == "Validation bits per byte"
    assert label("gsm8k-pass4") == "GSM8K, pass@4" and label("my-task-pass16") == "My task, pass@16"
    assert label("val/pass_at_4") == "Validation pass@4"


def test_a_mean_over_several_answers_counts_no_problems() -> None:
    whole, mean = Result(0.25, 16, 0.1), Result(0.3125, 4, 0.2)
    assert cell("gsm8k", whole) == "25.0 ± 10.0 %\n4 of 16" and cell("gsm8k", mean) == "31.2 ± 20.0 %\nn 4"
    assert brief("gsm8k", whole) == ("25.0 %", "4/16") and brief("gsm8k", mean) == ("31.2 %", "")
    assert answered(whole) == "4 of 16" and answered(mean) == "31.2 % of 4"


def test_a_plot_takes_the_colour_around_it() -> None:
    svg = draw([Curve("loss", [(1, 3.0), (2, 2.0)])], name="loss-base", title="Loss & more", x="step", y="loss")
    assert svg is not None and svg.startswith("<svg ") and svg.endswith("</svg>")
    assert "currentColor" in svg and "#010203" not in svg and "<metadata" not in svg


def axis(svg: str, name: str) -> list[float]:
    """The numbers at the ticks of an axis."""
    begin = svg.index(f'-matplotlib.axis_{name}"')
    end = svg.find("-matplotlib.axis_", begin + 1)
    ticks = re.findall(r">([\d.,\u2212]+)</text>", svg[begin : end if end > 0 else len(svg)])
    return [float(text.replace(",", "").replace("\N{MINUS SIGN}", "-")) for text in ticks]


def test_screen_readers_have_a_name_for_a_plot() -> None:
    svg = draw([Curve("loss", [(1, 3.0), (2, 2.0)])], name="loss-base", title="Loss & more", x="step", y="loss")
    assert svg is not None and 'role="img"><title>Loss &amp; more</title>' in svg


def test_axes_begin_at_zero_and_shares_end_at_one() -> None:
    points = [(10_000, 0.91), (20_000, 0.92)]
    svg = draw([Curve("reward", points)], name="a", title="", x="step", y="reward", top=1.0)
    assert svg is not None
    assert (axis(svg, "2")[0], axis(svg, "2")[-1]) == (0.0, 1.0)
    assert axis(svg, "1")[0] == 0 and "20,000" in svg, "steps are whole numbers from 0 on"
    beyond = draw([Curve("reward", [(1, -1.0), (2, 3.0)])], name="a", title="", x="step", y="reward", top=1.0)
    assert beyond is not None
    assert axis(beyond, "2")[0] == -1 and axis(beyond, "2")[-1] >= 2, "what is beyond is shown"


def test_a_long_curve_keeps_its_extremes() -> None:
    points = [(float(step), 1.0) for step in range(10_000)]
    points[5_003], points[7_777] = (5_003.0, 9.0), (7_777.0, 0.1)
    kept = thinned(points)
    assert len(kept) <= 600 and kept == sorted(kept)
    assert {points[0], points[5_003], points[7_777], points[-1]} <= set(kept)


def test_a_plot_is_told_in_words() -> None:
    curves = [Curve("Loss", [(1, 3.0), (600, 1.25)]), Curve("Loss", [(1, 3.0)], faint=True)]
    assert told(curves) == "Loss from 3.000 at step 1 to 1.250 at 600"
    assert told([Curve("CORE", [(600, 0.25)])]) == "CORE 0.2500 at step 600"


@pytest.mark.parametrize(("step", "value"), [(100, 0.25), (100, -0.25), (100, 0.0), (0, 0.0)])
def test_a_single_point_is_drawn_on_axes_that_have_zero(step: float, value: float) -> None:
    points = [(step, value), (step + 1, math.nan)]
    svg = draw([Curve("CORE", points)], name="a", title="", x="step", y="CORE")
    assert svg is not None
    assert svg.count("<use ") == 1 + len(axis(svg, "1")) + len(axis(svg, "2")), "a mark for each tick, and the point"
    for name, shown in (("1", step), ("2", value)):
        ticks = axis(svg, name)
        assert 0.0 in ticks and min(ticks) <= shown and len(set(ticks)) == len(ticks)


def test_a_plot_needs_a_point() -> None:
    assert draw([Curve("loss", [(1, math.nan)])], name="a", title="", x="step", y="loss") is None
    assert draw([], name="a", title="", x="step", y="loss") is None


def test_smoothing_has_no_bias_at_its_start() -> None:
    assert [y for _, y in smoothed([(float(i), 2.0) for i in range(5)])] == pytest.approx([2.0] * 5)
    assert smoothed([(1.0, math.nan)]) == []


def test_a_fence_outlasts_the_text() -> None:
    exchange = Exchange("````", (Answer("MID", (Line("a\n`````"), Line("b"))),))
    text = render_markdown(Document("t", "s", (Section("x", (exchange,)),)))
    assert "``````text\na\n`````\nb\n``````" in text
