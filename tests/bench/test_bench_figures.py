"""Spreads, ratios by rounds, kinds of costs, tables."""

from __future__ import annotations

import pytest

from nanochat.bench.costs import by_kind, kind_of
from nanochat.bench.figures import Measured, Spread, times_faster
from nanochat.bench.tables import Table, seconds


def test_a_spread_has_the_median_and_both_ends() -> None:
    assert Spread.of([3.0, 1.0, 2.0, 10.0, 2.5]) == Spread(median=2.5, low=1.0, high=10.0, rounds=5)


def test_ratios_are_taken_round_by_round() -> None:
    """A round under load slows both, and does not count as a difference."""
    first = Measured("ours", [{"tokens": 10.0, "seconds": time} for time in (1.0, 4.0, 1.0)])
    second = Measured("peer", [{"tokens": 10.0, "seconds": time} for time in (2.0, 8.0, 3.0)])
    assert times_faster(first, second) == Spread(median=2.0, low=2.0, high=3.0, rounds=3)
    assert first.rate("tokens") == Spread(median=10.0, low=2.5, high=10.0, rounds=3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mm", "matrix products"),
        ("mkldnn::_linear_pointwise", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop", "attention"),
        ("triton_red_fused_add_mul", "compiled kernels"),
        ("## Call CompiledFxGraph abc ##", "compiled kernels"),
        ("aten::copy_", "copies and casts"),
        ("aten::_fused_rms_norm", "norms"),
        ("Optimizer.step", "other"),
    ],
)
def test_operators_have_a_kind(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_costs_are_summed_by_kind_largest_first() -> None:
    found = by_kind([("aten::mm", 1.0), ("aten::bmm", 3.0), ("aten::copy_", 5.0), ("x" * 300, 1.0)])
    assert [(cost["kind"], cost["seconds"], cost["share"]) for cost in found] == [
        ("copies and casts", 5.0, 0.5),
        ("matrix products", 4.0, 0.4),
        ("other", 1.0, 0.1),
    ]
    assert found[1]["largest"] == "aten::bmm" and len(found[2]["largest"]) == 100
    assert by_kind([]) == []


def test_tables_as_markdown() -> None:
    spread = {"median": 0.25, "low": 0.2, "high": 2.0}
    assert seconds(spread) == "250 ms (200 to 2,000)" and seconds(spread, each=0.1) == "2.50 s (2.00 to 20.0)"
    text = Table("Steps", ["", "a step"], [["ours", seconds(spread)]]).markdown()
    assert text == "Steps\n\n|  | a step |\n| --- | --- |\n| ours | 250 ms (200 to 2,000) |\n"
