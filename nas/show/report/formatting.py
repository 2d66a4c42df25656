"""Numbers as a reader of the report wants them."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta

MINUS = "\u2212"


def duration(seconds: float) -> str:
    """Seconds in the units that suit them."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = timedelta(seconds=round(seconds))
    hours, rest = divmod(whole.seconds + 86400 * whole.days, 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def percent(share: float) -> str:
    """A share in [0, 1], e.g. an accuracy."""
    return f"{100 * share:.2f} %"


def count(number: float) -> str:
    """A large number with its unit."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.4g}"


def setting(value: object) -> str:
    """A setting's value: a number without the digits that nobody set, a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def signed(number: float, digits: int = 2) -> str:
    """A difference; its sign always shows."""
    return "–" if not math.isfinite(number) else f"{number:+.{digits}f}".replace("-", MINUS)


def milliseconds(value: float) -> str:
    """A latency in the unit that suits it."""
    return f"{value:.3g} ms" if value < 1000 else duration(value / 1000)


_UNITS: tuple[tuple[tuple[str, ...], Callable[[float], str]], ...] = (
    (("params", "macs"), count),
    (("_bytes",), lambda value: f"{count(value)}B"),
    (("_acc", "_acc_low", "_acc_high"), percent),
    (("_delta", "_delta_low", "_delta_high"), lambda value: f"{signed(100 * value)} points"),
    (("seconds", "cost_s"), duration),
    (("_ms",), milliseconds),
)
"""Ends of metrics' names, and how what they name is written."""


def metric(name: str, value: float) -> str:
    """A metric's value in its unit, as far as its name tells it."""
    write = next((write for ends, write in _UNITS if name.endswith(ends)), "{:.4g}".format)
    return write(value)
