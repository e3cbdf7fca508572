"""The GPU that a server computes on, for its metrics: its memory, and how busy it is.

    registry.register(Gpu(torch.device("cuda", 0)))

The driver is asked when Prometheus asks. How busy it is needs the package nvidia-ml-py, and a GPU that tells: a part of
one (MIG) does not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_log = logging.getLogger(__name__)


class Gpu(Collector):
    """One GPU's figures; one that could not be had is left out from then on, and the log says why."""

    def __init__(self, device: torch.device) -> None:
        self._figures: dict[tuple[str, str], Callable[[], float]] = {
            ("nanochat_gpu_memory_used_bytes", "Memory of the GPU that is in use, by others too."): lambda: (
                torch.cuda.mem_get_info(device)[1] - torch.cuda.mem_get_info(device)[0]
            ),
            ("nanochat_gpu_memory_bytes", "Memory of the GPU."): lambda: torch.cuda.mem_get_info(device)[1],
            ("nanochat_gpu_utilization_ratio", "Share of the last moment in which the GPU computed."): lambda: (
                torch.cuda.utilization(device) / 100
            ),
        }

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for (name, what), figure in list(self._figures.items()):
            try:
                yield GaugeMetricFamily(name, what, figure())
            except Exception as error:  # a package that is not there, or one of a driver's many errors
                del self._figures[name, what]
                _log.warning("%s is not told any more: %s", name, error)
