"""Metrics of machines: what is sampled, under which names, and how the nodes of a stage come together."""

from __future__ import annotations

import itertools
import sys
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from nanochat.storage import Store
from nanochat.tracking.journal import SYSTEM, Journal, JournalReader, system_metrics
from nanochat.tracking.system import SWITCH, Machine

RUN = "runs/default.demo/1"


class NVMLError(Exception):
    """What the library raises."""


def refuse(handle: int) -> Any:
    raise NVMLError("not supported")


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """NVIDIA's library with two GPUs, which do not tell their power."""
    library = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=90 + handle),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=40e9, total=80e9),
        nvmlDeviceGetPowerUsage=refuse,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    return library


def sampled(store: Store, *, node: int | None) -> dict[str, float]:
    machine = Machine.of(store, RUN, stage="base", launch="01-a", node=node)
    assert machine is not None
    machine.sample()
    machine.close()
    found = system_metrics(JournalReader(store, RUN, kind=SYSTEM), "base", 0.0)
    return {name: points[-1].value for name, points in found.items()}


@pytest.mark.usefixtures("nvml")
def test_cpu_memory_and_gpus_have_mlflows_names(store: Store) -> None:
    values = sampled(store, node=None)
    assert set(values) == {
        "system/cpu_utilization_percentage", "system/system_memory_usage_megabytes",
        "system/system_memory_usage_percentage", "system/gpu_0_utilization_percentage",
        "system/gpu_0_memory_usage_megabytes", "system/gpu_0_memory_usage_percentage",
        "system/gpu_1_utilization_percentage", "system/gpu_1_memory_usage_megabytes",
        "system/gpu_1_memory_usage_percentage",
    }  # fmt: skip
    assert values["system/gpu_1_utilization_percentage"] == 91
    assert values["system/gpu_0_memory_usage_megabytes"] == 40_000
    assert values["system/gpu_0_memory_usage_percentage"] == 50
    assert 0 < values["system/system_memory_usage_percentage"] <= 100


def test_each_of_several_nodes_has_names_of_its_own(store: Store, nvml: SimpleNamespace) -> None:
    nvml.nvmlInit = lambda: refuse(0)  # no driver: no GPUs
    values = sampled(store, node=1)
    assert set(values) == {
        "system/node_1/cpu_utilization_percentage", "system/node_1/system_memory_usage_megabytes",
        "system/node_1/system_memory_usage_percentage",
    }  # fmt: skip


def test_the_shortest_launch_has_a_sample(store: Store) -> None:
    machine = Machine.of(store, RUN, stage="base", launch="01-a", node=None)
    assert machine is not None
    machine.close()
    found = system_metrics(JournalReader(store, RUN, kind=SYSTEM), "base", 0.0)
    assert {len(points) for points in found.values()} == {1}


@pytest.mark.parametrize(("spare", "percentage"), [(0.0, 100.0), (1e9, 0.0)])
def test_the_time_in_which_cpus_worked_counts(
    store: Store, monkeypatch: pytest.MonkeyPatch, spare: float, percentage: float
) -> None:
    seconds = itertools.count(0.0, spare)
    monkeypatch.setattr(psutil, "cpu_times", lambda: SimpleNamespace(idle=next(seconds)))
    assert sampled(store, node=None)["system/cpu_utilization_percentage"] == percentage


def test_it_can_be_switched_off(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "false")
    assert Machine.of(store, RUN, stage="base", launch="01-a", node=None) is None


def test_launches_follow_each_other_and_replace_nothing(store: Store) -> None:
    for launch, start in (("01-a", 1000.0), ("02-b", 2000.0)):
        times = iter([start, start + 10.5])
        with Journal(
            store, RUN, stage="base", launch=launch, kind=SYSTEM, interval=1e9, clock=lambda times=times: next(times)
        ) as journal:
            for number in (1, 2):
                journal.metrics(number, {"system/cpu_utilization_percentage": number})
    found = system_metrics(JournalReader(store, RUN, kind=SYSTEM), "base", 990.0)
    points = found["system/cpu_utilization_percentage"]
    assert [(point.step, point.value) for point in points] == [(10, 1), (20, 2), (1010, 1), (1020, 2)]
    assert JournalReader(store, RUN).pieces() == (), "the training's own journal has none of it"


def test_a_store_that_refuses_ends_no_launch(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine.of(store, RUN, stage="base", launch="01-a", node=None)
    assert machine is not None
    machine.sample()
    monkeypatch.setattr(store, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    machine.close()
