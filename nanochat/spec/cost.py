"""Money: the prices of machines, and what a pipeline may cost.

`spec.cost` and `spec.budget` are the pipeline's. Prices of the machines that it runs on are declared with these: of a
cluster's pools in the chart's values, of one machine in its store profile.
"""

from __future__ import annotations

from nanochat.spec.fields import Section, setting

GPU_HOUR, CPU_HOUR = 3.0, 0.0  # USD, where no price is set


class Price(Section):
    """The price of the machines of a node pool."""

    hour: float | None = setting(
        None,
        "hour is the price in USD of one GPU for one hour, with its part of the machine; in the pool cpu that of one "
        "core. Defaults to 3 for a GPU and 0 for a core.",
        unit="USD",
        ge=0,
    )
    spot_hour: float | None = setting(
        None,
        "spotHour is the same on spot machines: those that the nodeSelector of the pods asks for by a label of EKS, "
        "GKE, AKS or Karpenter. Defaults to hour.",
        unit="USD",
        ge=0,
    )


class Prices(Section):
    """The prices of one machine."""

    gpu_hour: float = setting(GPU_HOUR, "gpuHour is the price in USD of one GPU for one hour.", unit="USD", ge=0)
    cpu_hour: float = setting(CPU_HOUR, "cpuHour is the price in USD of one core for one hour.", unit="USD", ge=0)


class Cost(Section):
    """Prices, for the report and the status."""

    gpu_hour: float | None = setting(
        None,
        "gpuHour is the price of one GPU for one hour, in USD. Defaults to that of the node pool, which is 3 where "
        "none is set.",
        unit="USD",
        ge=0,
        key=False,
    )


class Budget(Section):
    """Limits of the cost: at 80 % an Event says so, at 100 % the pipeline saves checkpoints and is suspended."""

    money: float | None = setting(
        None,
        "money is what all attempts together may cost, in USD. By default there is no limit.",
        unit="USD",
        gt=0,
        key=False,
    )
    gpu_hours: float | None = setting(
        None,
        "gpuHours is the time that GPUs may be held, in hours. By default there is no limit.",
        unit="hours",
        gt=0,
        key=False,
    )
