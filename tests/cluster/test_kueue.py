"""Two pipelines in one queue: never more than its quota, and the urgent one first."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from documents import SEED, WORLD, document
from site_of_tests import NAMESPACE, Site, Status

pytestmark = pytest.mark.cluster

QUOTA = 1.2  # cores: room for one attempt of two pods with half a core each
QUEUE = """
apiVersion: kueue.x-k8s.io/v1beta1
kind: ResourceFlavor
metadata: {name: any}
---
apiVersion: kueue.x-k8s.io/v1beta1
kind: ClusterQueue
metadata: {name: small}
spec:
  namespaceSelector: {}
  preemption: {withinClusterQueue: LowerPriority}
  resourceGroups:
    - coveredResources: [cpu, memory]
      flavors: [{name: any, resources: [{name: cpu, nominalQuota: 1200m}, {name: memory, nominalQuota: 20Gi}]}]
---
apiVersion: kueue.x-k8s.io/v1beta1
kind: LocalQueue
metadata: {name: team, namespace: chat}
spec: {clusterQueue: small}
---
apiVersion: kueue.x-k8s.io/v1beta1
kind: WorkloadPriorityClass
metadata: {name: urgent}
value: 1000
"""


@pytest.fixture
def held(site: Site) -> Iterator[list[float]]:
    """The cores that jobs of the queue hold, sampled all the time."""
    site.kubectl("apply", "-f", "-", input=QUEUE)
    found: list[float] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(1.0):
            pods = site.get("pods", "-n", NAMESPACE, "-l", "kueue.x-k8s.io/podset")["items"]
            live = [p for p in pods if p["status"]["phase"] in ("Pending", "Running")]
            live = [p for p in live if not p["metadata"].get("deletionTimestamp")]
            cores = [p["spec"]["containers"][0]["resources"]["requests"]["cpu"] for p in live]
            found.append(sum(int(c[:-1]) / 1000 if c.endswith("m") else float(c) for c in cores))

    thread = threading.Thread(target=sample)
    thread.start()
    yield found
    done.set()
    thread.join()


def test_a_queue_and_who_is_more_urgent(site: Site, held: list[float]) -> None:
    for name in ("patient", "hasty"):
        site.delete(name)
    changes = {"queue": "team", "retries.delaySeconds": 1}
    site.apply(document(WORLD, "patient", **changes, **{"stages.base.steps": 2500, "seed": SEED + 21}))
    site.at_step("patient", "base", 120)
    site.apply(
        document(WORLD, "hasty", **changes, **{"stages.base.steps": 60, "seed": SEED + 22, "priority": "urgent"})
    )

    def waits(status: Status) -> bool:
        return (
            "Kueue evicted it at" in (status.get("message") or "") and (status.get("queue") or {}).get("name") == "team"
        )

    site.wait("patient", waits, seconds=120, what="its preemption")
    hasty = site.wait("hasty", lambda s: s["phase"] == "Succeeded", seconds=400)
    patient = site.wait("patient", lambda s: s["phase"] == "Succeeded", seconds=600)
    assert all(attempt["reason"] == "Succeeded" for attempt in hasty["attempts"])
    base = [attempt for attempt in patient["attempts"] if attempt["stage"] == "base"]
    # Kueue stops and starts the same attempt, but where a pod still ends when it starts again.
    assert base[-1]["reason"] == "Succeeded" and {attempt["reason"] for attempt in base[:-1]} <= {"Preempted"}
    assert "resumed after step" in site.nanochat("logs", "patient", "base")
    time.sleep(1)
    assert max(held) > 0 and max(held) <= QUOTA, held


def test_a_queue_that_is_not_there_is_said(site: Site, held: list[float]) -> None:
    """An edit mends it at once."""
    name = "astray"
    site.delete(name)
    changes = {"seed": SEED + 23, "stages.base.steps": 20}
    site.apply(document(WORLD, name, **changes, queue="tema"))
    told = site.wait(name, lambda s: "there is no LocalQueue tema" in (s.get("message") or ""), seconds=60)
    assert told["phase"] == "Pending" and "LocalQueueMissing" in [stage.get("reason") for stage in told["stages"]]
    site.apply(document(WORLD, name, **changes, queue="team"))
    site.wait(name, lambda s: s["attempts"][-1]["reason"] == "Succeeded", seconds=180)
    site.delete(name)
