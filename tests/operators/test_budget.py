"""What a pipeline costs on a cluster, what of it is waste, and what happens when its budget is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training_rig import Rig

from nanochat.pipeline.graph import build_graph
from nanochat.spec.load import check_pipeline
from nanochat.storage.checkpoints import Checkpoints
from operators import resources, status
from operators.config import Config

HOUR = 3600.0


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """One node with one GPU for 2 USD an hour."""
    return Rig(tmp_path, base={"nodes": 1, "minNodes": None}, pools={"gpu": {"price": {"hour": 2.0}}})


def begin(rig: Rig) -> None:
    """The first attempt trains."""
    rig.reconcile(after=0)
    rig.reconcile(after=0)
    rig.train(1)
    assert rig.reconcile(after=0)["stages"][3]["phase"] == "Running"


def train_for(rig: Rig, hours: float, *, attempt: int = 1) -> dict[str, Any]:
    """The status when the attempt has trained for so long; another controller tells of progress at once."""
    rig.cluster.now += hours * HOUR
    rig.train(attempt)
    return rig.reconcile(after=0, restarts=True)


def save(rig: Rig, step: int) -> None:
    """The stage has a checkpoint of this step."""
    graph = build_graph(check_pipeline(rig.document()).spec)
    (out,) = graph.node("base").outputs
    saved = Checkpoints(rig.store, "base", out.key, rig.folder / "cache")
    folder = saved.folder(step, "01-test")
    (folder / "file").write_bytes(b"state")
    saved.commit(step, "01-test", saved.store_files(step, "01-test", folder, ["file"]), {})


def condition(told: dict[str, Any]) -> tuple[str, str] | None:
    found = status.condition(told, status.BUDGET)
    return found and found[:2]


def test_the_pool_has_the_price_and_the_pipeline_wins(rig: Rig) -> None:
    begin(rig)
    told = train_for(rig, 1)
    assert (told["gpuHours"], told["cost"], told.get("lostCost")) == (1.0, 2.0, None)
    assert condition(told) is None, "there is no budget"
    rig.spec = {"cost": {"gpuHour": 5.0}}
    assert train_for(rig, 0)["cost"] == 5.0
    rig.spec = {}
    rig.config = Config.model_validate(rig.config.model_dump() | {"pools": {"gpu": {"price": {"hour": 9.0}}}})
    told = train_for(rig, 1)
    assert told["cost"] == 4.0, "an attempt keeps the price of its beginning"


def test_a_budget_that_is_spent_suspends_and_one_that_is_raised_goes_on(rig: Rig) -> None:
    rig.spec = {"budget": {"money": 10.0}}
    begin(rig)
    told = train_for(rig, 3.9)
    assert (told["phase"], told["cost"], condition(told)) == ("Running", 7.8, ("True", "WithinBudget"))
    told = train_for(rig, 0.2)
    assert (told["phase"], condition(told)) == ("Running", ("True", "BudgetNearlySpent"))
    said = [event for event in rig.events.told if event[0].startswith("Budget")]
    assert said == [
        (
            "BudgetNearlySpent",
            "80 % of the budget of 10 USD are spent: raise spec.budget.money, or all stages are suspended at 100 %",
        )
    ]
    train_for(rig, 0.1)
    assert len([event for event in rig.events.told if event[0] == "BudgetNearlySpent"]) == 1, "it is said once"
    told = train_for(rig, 0.8)
    assert condition(told) == ("False", "BudgetSpent")
    assert [name for name in rig.jobs() if name.endswith("base-1")] == [], "its job is deleted, so that it saves"
    save(rig, 40)
    rig.reconcile()
    told = rig.reconcile()
    why = "the budget of 10 USD is spent: raise spec.budget.money, and it goes on where it was"
    assert (told["phase"], told["message"]) == ("Suspended", why)
    stage = told["stages"][3]
    assert (stage["phase"], stage["reason"], stage["message"]) == ("Suspended", "BudgetSpent", why)
    assert ("BudgetSpent", why) in rig.events.told and ("Suspended", why) in rig.events.told
    assert told["attempts"][0]["reason"] == "Preempted" and told.get("lostCost") is None
    rig.reconcile(after=HOUR, restarts=True)
    assert rig.cluster.created == ["demo-12ab-base-1"], "nothing is started"
    spent = rig.cluster.status["cost"]
    rig.spec = {"budget": {"money": spent}}
    assert rig.reconcile()["phase"] == "Suspended", "raised by too little"
    rig.spec = {"budget": {"money": 20.0}}
    rig.reconcile()
    told = rig.reconcile()
    assert (told["phase"], condition(told)) == ("Running", ("True", "WithinBudget"))
    assert rig.cluster.created == ["demo-12ab-base-1", "demo-12ab-base-2"]
    rig.spec = {}
    assert condition(rig.reconcile()) == ("True", "WithinBudget"), "without a budget nothing of it stays"


def test_gpu_hours_may_be_the_limit(rig: Rig) -> None:
    rig.spec = {"budget": {"money": 1000.0, "gpuHours": 2.0}}
    begin(rig)
    assert train_for(rig, 1.5)["phase"] == "Running"
    told = train_for(rig, 0.5)
    assert status.condition(told, status.BUDGET) == (
        "False",
        "BudgetSpent",
        "the budget of 2 GPU hours is spent: raise spec.budget.gpuHours, and it goes on where it was",
    )


def test_who_suspends_by_hand_reads_of_that(rig: Rig) -> None:
    rig.spec = {"budget": {"money": 1.0}, "suspend": True}
    rig.reconcile()
    assert rig.cluster.status["message"] == "suspended"


def test_what_a_lost_attempt_took_is_lost(rig: Rig) -> None:
    """The steps after its checkpoint of an attempt that has one, and all of one that has none."""
    begin(rig)
    train_for(rig, 1)
    rig.cluster.lose_node("a")
    rig.reconcile(after=0)
    told = rig.reconcile(after=0)
    assert (told["cost"], told["lostCost"]) == (2.0, 2.0)
    rig.reconcile(after=0)
    train_for(rig, 0, attempt=2)
    train_for(rig, 2, attempt=2)  # 20 steps
    save(rig, 15)
    rig.cluster.lose_node("b")
    rig.reconcile(after=0)
    told = rig.reconcile(after=0)
    assert (told["cost"], told["lostCost"]) == (6.0, 3.0), "5 of the 20 steps in 2 hours are made again"


def test_machines_that_wait_for_others_are_paid_for(tmp_path: Path) -> None:
    rig = Rig(tmp_path, base={"nodes": 2, "minNodes": None}, pools={"gpu": {"price": {"hour": 2.0}}})
    rig.cluster.nodes = ["a"]
    rig.reconcile(after=0)
    rig.reconcile(after=0)
    assert rig.cluster.status["stages"][3]["reason"] == "Unschedulable"
    told = rig.reconcile(after=HOUR, restarts=True)
    assert (told["gpuHours"], told["cost"], told["waitingCost"]) == (1.0, 2.0, 2.0), (
        "one of the two waits for the other"
    )
    rig.cluster.nodes.append("b")
    rig.cluster.place_pods()
    rig.reconcile(after=0)
    told = rig.reconcile(after=HOUR, restarts=True)
    assert (told["gpuHours"], told["cost"], told["waitingCost"]) == (3.0, 6.0, 2.0)


def test_a_stall_is_a_wait(tmp_path: Path) -> None:
    rig = Rig(tmp_path, base={"nodes": 1, "minNodes": None}, pools={"gpu": {"price": {"hour": 2.0}}})
    rig.spec = {"retries": {"limit": 3, "stallSeconds": HOUR, "startSeconds": HOUR}}
    begin(rig)
    rig.reconcile(after=0.5 * HOUR)
    rig.train(1)
    save(rig, 10)
    rig.reconcile(after=0)
    rig.reconcile(after=1.5 * HOUR)  # the stop
    rig.reconcile(after=0)
    rig.reconcile(after=0)
    told = rig.reconcile(after=0, restarts=True)
    assert told["attempts"][0]["reason"] == "Stalled"
    assert (told["cost"], told["waitingCost"], told.get("lostCost")) == (4.0, 3.0, None)


@pytest.mark.parametrize(
    ("pools", "stage", "selector", "price"),
    [
        ({}, {"gpusPerNode": 8}, {}, 24.0),
        ({"gpu": {"price": {"hour": 2}}}, {"gpusPerNode": 8}, {}, 16.0),
        ({"gpu": {"price": {"hour": 2, "spotHour": 1}}}, {"gpusPerNode": 8}, {}, 16.0),
        ({"gpu": {"price": {"spotHour": 1}}}, {"gpusPerNode": 8}, {"cloud.google.com/gke-spot": "true"}, 8.0),
        ({"gpu": {"price": {"spotHour": 1}}}, {"gpusPerNode": 8}, {"karpenter.sh/capacity-type": "on-demand"}, 24.0),
        ({"gpu": {"price": {"hour": 2}}}, {"gpusPerNode": 8}, {"karpenter.sh/capacity-type": "spot"}, 16.0),
        ({}, {}, {}, 0.0),
        ({"cpu": {"price": {"hour": 0.04}}}, {"pod": {"resources": {"requests": {"cpu": 3}}}}, {}, 0.12),
    ],
)  # fmt: skip
def test_the_price_of_a_pod(
    pools: dict[str, Any], stage: dict[str, Any], selector: dict[str, str], price: float
) -> None:
    pools = pools | {"gpu": pools.get("gpu", {}) | {"pods": {"nodeSelector": selector}}}
    config = Config.model_validate({"image": "trainer", "profiles": {}, "pools": pools})
    head = {"apiVersion": "nanochat.dev/v1alpha1", "kind": "ChatPipeline", "metadata": {"name": "demo"}}
    spec = check_pipeline(head | {"spec": {"model": {"depth": 2}, "stages": {"base": stage}}}).spec
    assert resources.hourly(config, spec, "base", build_graph(spec)) == pytest.approx(price)


def test_a_budget_is_not_part_of_keys() -> None:
    head = {"apiVersion": "nanochat.dev/v1alpha1", "kind": "ChatPipeline", "metadata": {"name": "demo"}}
    limited = check_pipeline(head | {"spec": {"budget": {"money": 3, "gpuHours": 1}, "cost": {"gpuHour": 2}}}).spec
    assert build_graph(limited).digest() == build_graph(check_pipeline(head | {"spec": {}}).spec).digest()
