"""Metrics of a machine while a stage runs on it: CPU, memory, and each GPU by NVML, named as MLflow names its own.

    machine = Machine.of(store, plan.run, stage=plan.stage, launch=plan.launch, node=0 of several, else None)
    machine.close()

The launcher of each node records its machine into a journal, from which MLflow is told: no process that trains takes
part. They are of the whole machine, also where a pod has only a part of it. MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false
switches them off.
"""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psutil

from nanochat.spec.errors import NanochatError
from nanochat.storage import Store
from nanochat.tracking.background import Ticker
from nanochat.tracking.journal import SYSTEM, Journal

log = logging.getLogger(__name__)

SWITCH = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
SECONDS, SHARE = 10.0, 0.02  # between two samples: so many seconds, or that share of the time since the launch began
MEGABYTE = 1e6  # as MLflow counts


class Machine:
    """Samples one machine into a journal until closed."""

    def __init__(self, journal: Journal, *, node: int | None = None, gpus: Callable[[], Iterator[Any]]) -> None:
        """`node` is the machine's number where there are several; `gpus` gives what NVML knows each GPU by."""
        self._journal = journal
        self._prefix = "system/" if node is None else f"system/node_{node}/"
        self._gpus = gpus
        self._samples = 0
        began = time.monotonic()
        self._idle = idle()  # by the clock, for psutil.cpu_percent counts for each thread anew
        self._ticker = Ticker(
            "system",
            self.sample,
            lambda: max(SECONDS, SHARE * (time.monotonic() - began)),
            last=lambda: not self._samples,  # the shortest launch has a sample, too
        )

    @classmethod
    def of(cls, store: Store, run: str, *, stage: str, launch: str, node: int | None) -> Machine | None:
        """This machine, sampled for a launch; None where the environment switches that off."""
        if os.environ.get(SWITCH, "true").lower() in ("false", "0"):
            return None
        journal = Journal(store, run, stage=stage, launch=launch, kind=SYSTEM, interval=3 * SECONDS)
        return cls(journal, node=node, gpus=Nvml().devices)

    def sample(self) -> None:
        """Record what the machine does now."""
        memory = psutil.virtual_memory()
        values = {
            "cpu_utilization_percentage": self._busy(),
            "system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
        }
        for number, gpu in enumerate(self._gpus()):
            values |= {f"gpu_{number}_{name}": value for name, value in gpu.items()}
        self._samples += 1
        self._journal.metrics(self._samples, {self._prefix + name: value for name, value in values.items()})

    def _busy(self) -> float:
        """The percentage of the CPUs' time since the last sample in which they worked."""
        (before, then), (now, at) = self._idle, idle()
        self._idle = now, at
        return min(100.0, max(0.0, 100 * (1 - (now - before) / (max(1e-3, at - then) * (os.cpu_count() or 1)))))

    def close(self) -> None:
        """Write the rest and stop; what cannot be written is lost, and is no matter of the launch's."""
        self._ticker.close()
        with suppress(NanochatError, OSError):
            self._journal.close()


def idle() -> tuple[float, float]:
    """The seconds for which all CPUs together had nothing to do since they began, and the time of that."""
    times = psutil.cpu_times()
    return times.idle + getattr(times, "iowait", 0.0), time.monotonic()


class Nvml:
    """NVIDIA's management library; without it, or without its driver, there are no GPUs."""

    def __init__(self) -> None:
        self._handles: list[Any] = []
        try:
            self._nvml = importlib.import_module("pynvml")
        except ImportError:
            return
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlInit()
            count = self._nvml.nvmlDeviceGetCount()
            self._handles = [self._nvml.nvmlDeviceGetHandleByIndex(number) for number in range(count)]

    def devices(self) -> Iterator[dict[str, float]]:
        """Figures of each GPU as of now, as far as it tells."""
        for handle in self._handles:
            values: dict[str, float] = {}
            with suppress(self._nvml.NVMLError):
                values["utilization_percentage"] = self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu
            with suppress(self._nvml.NVMLError):
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
                values["memory_usage_megabytes"] = memory.used / MEGABYTE
                values["memory_usage_percentage"] = 100 * memory.used / memory.total
            with suppress(self._nvml.NVMLError):
                values["power_usage_watts"] = self._nvml.nvmlDeviceGetPowerUsage(handle) / 1000
            yield values
