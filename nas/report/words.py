"""Numbers as a reader of the report wants them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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


def signed(number: float, digits: int = 2) -> str:
    """A difference; its sign always shows."""
    return "–" if not math.isfinite(number) else f"{number:+.{digits}f}".replace("-", MINUS)


def metric(name: str, value: float) -> str:
    """A metric's value in its unit, as far as its name tells it."""
    known: Mapping[str, Callable[[float], str]] = {
        "params": count,
        "macs": count,
        "activation_bytes": lambda v: f"{count(v)}B",
    }
    if name in known:
        return known[name](value)
    if name.endswith(("_acc", "_acc_low", "_acc_high")):
        return percent(value)
    if name.endswith("seconds") or name == "cost_s":
        return duration(value)
    return f"{value:.3g} ms" if name.endswith("_ms") else f"{value:.4g}"
