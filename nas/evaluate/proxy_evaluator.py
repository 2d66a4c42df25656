"""Zero-cost proxies of architectures of one space, each computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nas.data.task import Task
from nas.errors import ConfigError, TrialError, unknown
from nas.evaluate.proxies import PROXIES, draw_batch
from nas.seeding import isolated
from nas.space.cost import cost
from nas.space.space import Space
from nas.types import Genotype, Trial
from nas.user_code import user_errors

FAILED = -1e30
"""Stands for a proxy that cannot be computed: below every score, so that it ranks last."""


class Scored:
    """Scores freshly initialised networks on one batch of training images, without training them.

    As a searcher's features: call it with a genotype. As an evaluator: call `evaluate` with a trial.
    """

    def __init__(self, space: Space, task: Task, proxies: Sequence[str], *, images: int = 64) -> None:
        for name in proxies:
            if name not in PROXIES:
                raise ConfigError(unknown("proxy", name, PROXIES))
        self.space, self.task, self.proxies = space, task, tuple(proxies)
        self.batch = draw_batch(task, min(images, len(task.train)))
        self._known: dict[tuple[Genotype, str], float | None] = {}

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
        missing = [name for name in self.proxies if (genotype, name) not in self._known]
        if missing:
            with user_errors(), isolated(0, "proxies"):
                cost(self.space, genotype, self.task.image_shape)
                network = self.space.network(genotype).to(self.task.train.x.device)
            for name in missing:
                try:
                    with user_errors():
                        score: float | None = PROXIES[name](network, self.batch)
                except TrialError:
                    score = None
                self._known[genotype, name] = score
        known = {name: self._known[genotype, name] for name in self.proxies}
        return {name: score for name, score in known.items() if score is not None}

    def evaluate(self, trial: Trial, rng: np.random.Generator) -> Mapping[str, float]:  # noqa: ARG002
        """The scores as a trial's metrics; every proxy must succeed."""
        scores = self.scores(trial.genotype)
        if failed := [name for name in self.proxies if name not in scores]:
            raise TrialError("proxy", f"{', '.join(failed)} cannot be computed for this architecture")
        return scores
