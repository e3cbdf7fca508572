"""A budget that ends in mid-training: suspended with a checkpoint, raised, and the same weights in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from documents import SEED, WORLD, document
from evidence import weights
from site_of_tests import NAMESPACE, Site, Status

pytestmark = pytest.mark.cluster

STEPS = 600
HOUR = 36_000.0  # USD of a core: 10 a second


def budget_condition(status: Status) -> str:
    """The reason of the condition; '' where there is none."""
    found = [item["reason"] for item in status.get("conditions", ()) if item["type"] == "WithinBudget"]
    return found[0] if found else ""


def test_a_budget_ends_in_mid_training(site: Site, tmp_path: Path) -> None:
    """It is set below what was spent by then. No GPU is needed: what claims one is charged for it."""
    node = site.nodes()[0]
    site.run("kind", "set-gpus", node, "1")
    site.kubectl("label", "node", node, "pool=gpu", "--overwrite")
    small = {"requests": {"cpu": "250m", "memory": "1Gi"}}
    changes: dict[str, Any] = {
        "stages.base.steps": STEPS,
        "stages.base.nodes": 1,
        "stages.base.gpusPerNode": 1,
        "stages.base.precision": "fp32",
        "stages.base.checkpointEvery": 1_000_000,
        "stages.base.pod": {"resources": small},
        "stages.mid.enabled": False,
        "stages.sft.enabled": False,
        "stages.evalBase.enabled": False,
        "cost.gpuHour": HOUR,
        "seed": SEED + 41,
    }
    calm = document(WORLD, "calm-budget", **changes | {"store": "other"})
    try:
        site.delete("budget")
        site.apply(document(WORLD, "budget", **changes))
        running = site.at_step("budget", "base", 40)
        assert running["cost"] > 0 and budget_condition(running) == ""
        limited = document(WORLD, "budget", **changes, **{"budget.money": max(0.01, running["cost"])})
        site.apply(limited)
        status = site.wait("budget", lambda s: s["phase"] == "Suspended", seconds=120, what="the end of the budget")
        assert "the budget of" in status["message"] and budget_condition(status) == "BudgetSpent"
        assert [attempt["reason"] for attempt in status["attempts"] if attempt["stage"] == "base"] == ["Preempted"]
        assert not site.pods("budget", "base"), "nothing is held"
        events = site.get("events", "-n", NAMESPACE, "--field-selector", "involvedObject.name=budget")["items"]
        assert "BudgetSpent" in {event["reason"] for event in events}

        site.apply(document(WORLD, "budget", **changes, **{"budget.money": 1_000_000}))
        status = site.wait("budget", lambda s: s["phase"] == "Succeeded", seconds=400, what="the end")
        assert budget_condition(status) == "WithinBudget"
        assert "resumed after step" in site.nanochat("logs", "budget", "base"), "from its checkpoint"
        site.delete("calm-budget")
        site.apply(calm)
        undisturbed = site.wait("calm-budget", lambda s: s["phase"] == "Succeeded", seconds=600, what="the calm run")
        assert weights(site, status, tmp_path) == weights(site, undisturbed, tmp_path)
    finally:
        site.delete("budget")
        site.delete("calm-budget")
        site.run("kind", "set-gpus", node, "0")
        site.kubectl("label", "node", node, "pool-")
