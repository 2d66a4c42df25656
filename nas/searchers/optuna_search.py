"""Any of Optuna's samplers as a searcher, kept from proposing the same architecture twice."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseGASampler, BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from nas.errors import ConfigError, unknown
from nas.searchers.goals import Goals
from nas.searchers.searcher import tried, unseen
from nas.space.space import Space
from nas.types import Genotype, Trial

ALIASES = {"tpe": "TPESampler", "gp": "GPSampler"}
NUMERIC = ("CmaEsSampler", "QMCSampler")
"""Samplers of numbers: on options, which have no order, they fall back to random sampling."""
DRAWS = 10
"""Times that a sampler may repeat itself before its last answer is mutated instead."""


@dataclass(frozen=True)
class OptunaSearch:
    """Asks an Optuna sampler (Akiba et al. 2019), which is made anew from the history for every question.

    sampler: a class of `optuna.samplers`, e.g. `TPESampler` (Bergstra et al. 2011) or `GPSampler`.
    options: arguments of its constructor.
    goals: objectives and constraints; what breaks a constraint is known to samplers that look for it.

    A proposal outside the space is projected into it. Samplers repeat architectures (200 trials on 6
    decisions of 5 options: TPE 41 times); a repeated one is asked for again, and at last mutated.
    """

    sampler: str = "TPESampler"
    options: Mapping[str, object] = field(default_factory=dict)
    goals: Goals = Goals()  # noqa: RUF009 - a frozen value

    def __post_init__(self) -> None:
        self._make(0)

    def ask(self, space: Space, history: Sequence[Trial], rng: np.random.Generator) -> Genotype:
        """What the sampler proposes, projected into the space, else a mutation of it."""
        sampler = self._make(int(rng.integers(2**31)))
        distributions: dict[str, BaseDistribution] = {
            d.name: CategoricalDistribution(d.options) for d in space.decisions
        }
        seen = tried(space, history)
        with quiet():
            study = optuna.create_study(
                directions=["maximize" if o.maximize else "minimize" for o in self.goals.objectives],
                sampler=sampler,
            )
            study.add_trials(self._frozen_history(space, history, sampler, distributions))
            for _ in range(DRAWS):
                asked = study.ask(distributions)
                scores = space.one_hot(space.genotype(asked.params))
                genotype = space.canonical(space.nearest(scores))
                if genotype not in seen:
                    return genotype
                # Told as failed, so that it does not count as running either.
                study.tell(asked, state=TrialState.FAIL)
        last = genotype
        mutant = functools.partial(space.mutate, last, rng)
        return unseen(space, history, rng, propose=mutant if space.size.count > 1 else lambda: last)

    def _make(self, seed: int) -> BaseSampler:
        known = {
            name: kind
            for name, kind in vars(optuna.samplers).items()
            if inspect.isclass(kind) and issubclass(kind, BaseSampler) and not name.startswith("Base")
        }
        if self.sampler not in known:
            raise ConfigError(unknown("Optuna sampler", self.sampler, known))
        if self.sampler in NUMERIC:
            raise ConfigError(
                f"{self.sampler} samples numbers, but the options of a space have no order, so that it would "
                "only draw at random; use random, tpe or gp"
            )
        accepted = inspect.signature(known[self.sampler]).parameters
        for name in self.options:
            if name not in accepted or name == "seed":
                raise ConfigError(f"{self.sampler}: {unknown('setting', name, accepted.keys() - {'seed'})}")
        options = dict(self.options)
        if "seed" in accepted:
            options["seed"] = seed
        try:
            with quiet():
                return known[self.sampler](**options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.sampler} refuses its settings {options}: {error}") from error

    def _frozen_history(
        self,
        space: Space,
        history: Sequence[Trial],
        sampler: BaseSampler,
        distributions: dict[str, BaseDistribution],
    ) -> list[FrozenTrial]:
        """The history as Optuna keeps it; genetic samplers also want each finished trial's generation."""
        frozen = [self._frozen(space, trial, distributions) for trial in history]
        if isinstance(sampler, BaseGASampler) and sampler.population_size:
            finished = [trial for trial in frozen if trial.state == TrialState.COMPLETE]
            for i, trial in enumerate(finished):
                trial.system_attrs[sampler._get_generation_key()] = i // sampler.population_size
        return frozen

    def _frozen(self, space: Space, trial: Trial, distributions: dict[str, BaseDistribution]) -> FrozenTrial:
        done = trial.state == "done"
        if done:
            self.goals.check(trial)
        return create_trial(
            state=TrialState.COMPLETE if done else TrialState.FAIL,
            # Whole numbers would make an array of integers inside the sampler, which it then cannot scale.
            values=[float(o.value(trial.metrics)) for o in self.goals.objectives] if done else None,
            params=space.choices(trial.genotype),
            distributions=distributions,
            constraints={str(c): c.excess(trial.metrics) for c in self.goals.constraints} if done else None,
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Runs a block in which Optuna announces no new study and no experimental sampler."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
