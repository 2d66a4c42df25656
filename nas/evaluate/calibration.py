"""How far cheap estimates can be trusted: rank correlation with long training, and its uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nas.errors import ConfigError, counted, shown
from nas.files.atomic import read_json
from nas.files.folder import is_file
from nas.files.schemas import checked

FILE = "calibration.json"
RESAMPLES = 1000
MIN_ARCHITECTURES, CONVINCING = 5, 10


@dataclass(frozen=True)
class Settings:
    """What a calibration does.

    architectures: random ones. epochs, repeats: of the long training that counts as the truth.
    threshold: the rank correlation that a fidelity must surely exceed to be searched with.
    """

    architectures: int = 16
    epochs: int = 12
    repeats: int = 2
    threshold: float = 0.4

    def __post_init__(self) -> None:
        least = {"architectures": MIN_ARCHITECTURES, "epochs": 1, "repeats": 1}
        wrong = [
            f"{name} is {value}, wanted at least {bound}"
            for name, bound in least.items()
            if (value := getattr(self, name)) < bound
        ]
        if not -1 < self.threshold < 1:
            wrong.append(f"threshold is {self.threshold}, wanted a number between -1 and 1")
        if wrong:
            raise ConfigError(f"calibrate: {'; '.join(wrong)}")


@dataclass(frozen=True, slots=True)
class Estimate:
    """How one cheap estimate ranked the architectures of a calibration.

    name, group: of the estimate; the groups are `ceiling`, `trained`, `speed`, `shared` and `proxy`.
    tau: Kendall's tau-b with long training, in [-1, 1]; rho: Spearman's. Their `low` and `high` are bootstrap
      95 % intervals over architectures.
    cost_s: seconds for one architecture.
    count: architectures that both were measured for.
    """

    name: str
    group: str
    tau: float
    tau_low: float
    tau_high: float
    rho: float
    rho_low: float
    rho_high: float
    cost_s: float
    count: int


def estimate(
    name: str, group: str, scores: Sequence[float], truth: Sequence[float], *, cost_s: float
) -> Estimate | None:
    """Correlates scores with the truth; architectures where one of them is NaN are left out.

    None where fewer than five remain, or one of the two is constant.
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    if len(x) < MIN_ARCHITECTURES or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    draws = np.random.default_rng(0).integers(len(x), size=(RESAMPLES, len(x)))
    usable = [d for d in draws if np.ptp(x[d]) > 0 and np.ptp(y[d]) > 0]
    taus = [_tau(x[d], y[d]) for d in usable]
    rhos = [spearman(x[d], y[d]) for d in usable]
    tau, rho = _tau(x, y), spearman(x, y)
    return Estimate(name, group, tau, *_around(tau, taus), rho, *_around(rho, rhos), cost_s, len(x))


def choose(estimates: Sequence[Estimate], threshold: float) -> Estimate | None:
    """The cheapest short training whose tau is above the threshold with 97.5 % confidence; None without one.

    The interval of a handful of architectures can be a point, so fewer than ten convince nobody.
    """
    known = [e for e in estimates if e.group == "trained" and e.count >= CONVINCING]
    trusted = [e for e in known if e.tau_low >= threshold]
    return min(trusted, key=lambda e: e.cost_s, default=None)


@dataclass(frozen=True)
class Calibration:
    """The outcome of a calibration; `chosen` is the fidelity to search with, None where none can be trusted.

    architectures, epochs, repeats: how many were trained for how long and how often, for the truth.
    """

    space: str
    task: str
    fingerprint: str
    architectures: int
    epochs: int
    repeats: int
    threshold: float
    estimates: tuple[Estimate, ...]
    chosen: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the inverse of `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """The calibration that `to_dict` wrote down; ConfigError for anything else."""
        return checked(cls, data, "calibration", "record of a calibration")

    def lines(self) -> list[str]:
        """The table, the cheapest estimate of each group first, and what it means for a search."""
        head = f"{'estimate':34}{'Kendall tau':>24}{'Spearman rho':>24}{'s each':>10}"
        groups = dict.fromkeys(e.group for e in self.estimates)
        rows = [
            f"{e.name[:33]:34}{_interval(e.tau, e.tau_low, e.tau_high):>24}"
            f"{_interval(e.rho, e.rho_low, e.rho_high):>24}{e.cost_s:>10.3g}"
            for group in groups
            for e in sorted((e for e in self.estimates if e.group == group), key=lambda e: e.cost_s)
        ]
        truth = (
            f"{self.space} on {self.task}: rank correlation with {counted(self.epochs, 'epoch')} of training "
            f"({counted(self.architectures, 'architecture')}, mean of {counted(self.repeats, 'seed')})"
        )
        if self.chosen is None:
            verdict = (
                f"no fidelity has a tau above {self.threshold:g} with confidence: calibrate with more "
                "architectures, or train trials for longer"
            )
        else:
            verdict = f"cheapest fidelity with a tau above {self.threshold:g}: {self.chosen}"
        return [truth, head, *rows, verdict]


def read_calibration(folder: Path) -> Calibration:
    """The finished calibration of a folder.

    Raises:
        ConfigError: when the folder holds none.
    """
    path = folder / FILE
    if not is_file(path):
        raise ConfigError(f"{folder} holds no finished calibration ({FILE}); run `nas calibrate` first")
    return checked(Calibration, read_json(path), path, "record of a calibration")


def chosen_fidelity(folder: Path, *, space: str, task: str) -> str | None:
    """The fidelity that a calibration of this space and task chose, None where it trusts none."""
    found = read_calibration(folder)
    if (found.space, found.task) != (space, task):
        raise ConfigError(
            f"{folder} calibrated space {shown(found.space)} on task {shown(found.task)}, "
            f"not {space!r} on {task!r}; run `nas calibrate` for these"
        )
    return found.chosen


def _around(value: float, resampled: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of resampled values, widened to hold the value, which few of them need not do."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return min(value, float(low)), max(value, float(high))


def _tau(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    from scipy.stats import kendalltau  # a third of a second that most commands can do without

    return float(np.clip(kendalltau(x, y).statistic, -1, 1))


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation of two rows `[m]`, in [-1, 1]; neither may be constant."""
    from scipy.stats import rankdata

    return float(np.clip(np.corrcoef(rankdata(x), rankdata(y))[0, 1], -1, 1))


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"
