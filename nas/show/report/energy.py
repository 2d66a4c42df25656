"""What a run took: device time, and an estimate of energy that says what it assumes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas.show.report.run import Run
from nas.show.report.section import Section, duration

GPU_WATTS: Mapping[str, float] = {
    "H200": 700,
    "H100 PCIe": 350,
    "H100": 700,
    "B200": 1000,
    "A100": 400,
    "V100": 300,
    "L40": 300,
    "L4": 72,
    "T4": 70,
    "A10": 150,
    "A6000": 300,
    "4090": 450,
    "3090": 350,
}
"""What makers name as the most that a GPU draws, by a part of its name; the first that fits counts."""
_UNKNOWN_GPU_W, _THREAD_W = 300.0, 10.0


def assumed_watts(environment: Mapping[str, Any]) -> tuple[float, str]:
    """The power that a device is assumed to draw while it works, and why."""
    device, hardware = str(environment.get("device", "")), str(environment.get("hardware", ""))
    if not device.startswith("cuda"):
        found = environment.get("threads")
        threads = found if isinstance(found, int) and found > 0 else 1
        many = "the CPU's thread" if threads == 1 else f"each of {threads} CPU threads"
        return threads * _THREAD_W, f"{_THREAD_W:.0f} W for {many}, typical of a server"
    for name, watts in GPU_WATTS.items():
        if name in hardware:
            return float(watts), f"the most that {hardware} may draw by its maker"
    return _UNKNOWN_GPU_W, f"a usual value, since {hardware} is not known here"


def phases(run: Run) -> dict[str, float]:
    """Device seconds by phase; of a run that has not ended, those of its finished trials."""
    ranks = run.told.environment.get("ranks", 1)
    times = ranks if isinstance(ranks, int) and ranks > 0 else 1
    trials = sum(t.cost_s for t in run.search.trials)
    found = {
        "search": times * run.metrics.get("search_seconds", trials),
        "random search": sum(t.cost_s for t in run.random.trials),
        "training the best again": run.metrics.get("rerank_seconds", 0.0),
        "training the winner": times * run.metrics.get("retrain_seconds", 0.0),
    }
    return {name: seconds for name, seconds in found.items() if seconds > 0}


def energy(run: Run, watts: float | None = None) -> Section | None:
    """Seconds and watt hours of each phase.

    watts: of a device while it works, in place of what is assumed.
    """
    spent = phases(run)
    if not spent:
        return None
    assumed, why = assumed_watts(run.told.environment)
    power = assumed if watts is None else watts
    total = sum(spent.values())
    unit, joules = _unit(total * power)
    rows = [
        (name, duration(s), _energy(s * power / joules, unit), f"{100 * s / total:.0f} %")
        for name, s in spent.items()
    ]
    reason = "as given with --watts" if watts is not None else why
    return Section(
        "energy",
        "Cost and energy",
        "Device time is the sum over workers and ranks. Energy is no measurement: it is device time × an "
        f"assumed power of {power:g} W a device ({reason}), without memory, cooling and the rest of the "
        "machine. Give the real power with nas report RUN --watts W.",
        template="energy",
        values={
            "rows": rows,
            "total": (duration(total), _energy(total * power / joules, unit)),
            "hours": f"{total / 3600:.3g}",
        },
    )


def _unit(joules: float) -> tuple[str, float]:
    """The unit for a whole table, by its largest number, and its joules."""
    units = (("kWh", 3.6e6), ("Wh", 3600.0), ("J", 1.0))
    return next((unit for unit in units if joules >= unit[1]), units[-1])


def _energy(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
