"""Zero-cost proxies: pure functions `(network, batch) -> float` of an untrained network, larger is better.

They are meant for networks as torch initialises them. None is good on every space: on NAS-Bench-201
`synflow` and `nwot` follow accuracy closely, in the space of DARTS hardly at all.

Example:
    batch = nas.proxies.draw_batch(nas.load_task("digits"), 64)
    nas.proxies.PROXIES["synflow"](network, batch)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from nas.data.task import Task
from nas.errors import ConfigError, TrialError, unknown
from nas.evaluate import proxy_measures as measures
from nas.evaluate.proxy_base import Batch, Proxy, draw_batch
from nas.seeding import isolated
from nas.space.cost import cost
from nas.space.space import Space
from nas.types import Genotype, Trial
from nas.user_code import user_errors

__all__ = ["DEFAULT", "PROXIES", "Batch", "Proxy", "Scored", "draw_batch", "log_rank"]

PROXIES: Mapping[str, Proxy] = MappingProxyType(
    {
        "params": measures.params,
        "macs": measures.macs,
        "l2_norm": measures.l2_norm,
        "grad_norm": measures.grad_norm,
        "snip": measures.snip,
        "grasp": measures.grasp,
        "fisher": measures.fisher,
        "plain": measures.plain,
        "jacov": measures.jacov,
        "epe": measures.epe,
        "synflow": measures.synflow,
        "logsynflow": measures.logsynflow,
        "nwot": measures.nwot,
        "swap": measures.swap,
        "zen": measures.zen,
        "zico": measures.zico,
    }
)
DEFAULT = ("params", "macs", "l2_norm")
"""The proxies that rank well on every published space, if none the best; others fail on some."""
FAILED = -1e30
"""Stands for a proxy that cannot be computed: below every score, so that it ranks last."""


def log_rank(scores: Mapping[str, Sequence[float]]) -> NDArray[np.float64]:
    """One score `[m]` for each of m architectures: the sum over proxies of log(rank / m), at most 0.

    Lee & Ham 2024 (AZ-NAS), "Non-linear ranking aggregation": rank m is the best, equal scores share the mean
    of their ranks; being among the worst for one proxy costs more than being the best for another gains.

    scores: by proxy, of the same m architectures in the same order; larger is better, none may be NaN.
    """
    from scipy.stats import rankdata

    lengths = {name: len(values) for name, values in scores.items()}
    if len(set(lengths.values())) != 1:
        raise ConfigError(f"log_rank: got {lengths or 'nothing'}, wanted the same number of scores by proxy")
    table = np.array([*scores.values()], dtype=np.float64)
    if np.isnan(table).any():
        raise ConfigError(f"log_rank: got nan at {np.argwhere(np.isnan(table)).tolist()}; leave these out")
    ranks = np.array([rankdata(row) for row in table])
    total: NDArray[np.float64] = np.log(ranks / table.shape[1]).sum(axis=0)
    return total


class Scored:
    """Scores freshly initialised networks on one batch of training images, each once, without training them.

    As a searcher's features: call it with a genotype. As an evaluator: call `evaluate` with a trial.
    """

    def __init__(self, space: Space, task: Task, proxies: Sequence[str], *, images: int = 64) -> None:
        for name in proxies:
            if name not in PROXIES:
                raise ConfigError(unknown("proxy", name, PROXIES))
        self.space, self.task, self.proxies = space, task, tuple(proxies)
        self.batch = draw_batch(task, min(images, len(task.train)))
        self._known: dict[Genotype, dict[str, float]] = {}

    def __call__(self, genotype: Genotype) -> list[float]:
        """The score of each proxy in turn, `FAILED` where it has none."""
        try:
            scores = self.scores(genotype)
        except TrialError:  # an architecture that cannot be built; its trial will say why
            scores = {}
        return [scores.get(name, FAILED) for name in self.proxies]

    def scores(self, genotype: Genotype) -> dict[str, float]:
        """The scores by name; proxies that fail for this architecture are left out.

        Raises:
            TrialError: when the architecture cannot be built for the task's images.
        """
        if genotype not in self._known:
            with user_errors(), isolated(0, "proxies"):
                cost(self.space, genotype, self.task.image_shape)
                network = self.space.network(genotype).to(self.task.train.x.device)
            found = {}
            for name in self.proxies:
                try:
                    with user_errors():
                        found[name] = PROXIES[name](network, self.batch)
                except TrialError:  # which `evaluate` tells
                    continue
            self._known[genotype] = found
        return self._known[genotype]

    def evaluate(self, trial: Trial, rng: np.random.Generator) -> Mapping[str, float]:  # noqa: ARG002
        """The scores as a trial's metrics; every proxy must succeed."""
        scores = self.scores(trial.genotype)
        if failed := [name for name in self.proxies if name not in scores]:
            raise TrialError("proxy", f"{', '.join(failed)} cannot be computed for this architecture")
        return scores
