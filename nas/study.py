"""The one loop: ask, evaluate, tell, write it down. The history is an Optuna study."""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from nas.errors import ConfigError, ExhaustedError, NoModelError, TrialError
from nas.goals import Goals
from nas.guard import user_errors
from nas.journal import journal_storage
from nas.paths import check_contents, check_name, is_file
from nas.records import TrialRecord, checked
from nas.schedule import Listed, Scheduler
from nas.seeding import rng
from nas.space import Space
from nas.types import Trial

JOURNAL = "study.log"
"""The storage of a run, inside its folder."""

Evaluator = Callable[[Trial, np.random.Generator], Mapping[str, float]]
"""Measures one trial; depends on nothing but its arguments. Raises TrialError when the trial fails."""

_STATES: dict[TrialState, Literal["done", "failed", "running"]] = {
    TrialState.COMPLETE: "done",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
_LOSSES = ("loss", "error", "latency", "cost")
_GAINS = ("acc", "score", "auc", "f1")


class Study:
    """A search in progress, durable in an Optuna storage.

    name: of the study inside `storage`; an existing one is continued.
    seed: with the trial's number, seeds the proposal and the evaluation of every trial.
    announce: write a trial down when it starts, so that others see it running. Evaluations of a few
      milliseconds turn it off and are written once, when done.
    history: every trial so far, in order of their numbers. A trial left running by a killed process is taken
      up again under its own number, so that a resumed study equals an uninterrupted one.
    """

    def __init__(
        self,
        space: Space,
        scheduler: Scheduler,
        storage: BaseStorage,
        *,
        name: str,
        seed: int = 0,
        goals: Goals | None = None,
        announce: bool = True,
    ) -> None:
        check_name(name, "study")
        self.space, self.scheduler, self.storage, self.name = space, scheduler, storage, name
        self.seed, self.announce = seed, announce
        self.optuna_study = self._open(goals or Goals())
        self.goals = self._recorded(goals)
        self._warn_of_direction()
        self._distributions: dict[str, BaseDistribution] = {
            d.name: CategoricalDistribution(d.options) for d in space.decisions
        }
        self.history = [self._read(frozen) for frozen in self.optuna_study.get_trials(deepcopy=False)]

    @classmethod
    def read(cls, folder: Path, name: str, space: Space) -> list[Trial]:
        """The history of one study in a run's folder, empty where there is none; nothing is written."""
        if not is_file(folder / JOURNAL):
            return []
        check_contents(folder)
        storage = journal_storage(folder / JOURNAL)
        if name not in (study.study_name for study in storage.get_all_studies()):
            return []
        return cls(space, Listed((), 0), storage, name=name).history

    def ask(self) -> Trial:
        """The next trial: one that was left running, else what the scheduler proposes.

        Raises:
            ExhaustedError: when there is nothing left to try.
        """
        for trial in self.history:
            if trial.state == "running":
                return trial
        number = len(self.history)
        proposal: object = self.scheduler.ask(self.space, self.history, self._rng(number, "ask"))
        match proposal:
            case (tuple() as genotype, int() as fidelity):
                trial = Trial(number, genotype, fidelity)
            case _:
                raise ConfigError(
                    f"study {self.name!r}: {type(self.scheduler).__name__} proposed {proposal}, wanted a "
                    "genotype and its epochs; Fixed(searcher, epochs) makes a scheduler of a searcher"
                )
        if self.announce:
            self.storage.create_new_trial(self.optuna_study._study_id, self._frozen(trial))
            self.history.append(trial)
        return trial

    def tell(self, trial: Trial, metrics: Mapping[str, float], cost_s: float) -> Trial:
        """Records what was measured.

        Raises:
            TrialError: when the metrics are not finite numbers; the trial is not recorded then.
            ConfigError: when a metric that the goals need is not among them, or the trial has ended already.
        """
        if trial.number < len(self.history) and self.history[trial.number].state != "running":
            raise ConfigError(f"study {self.name!r}: trial {trial.number} has ended; it is told once only")
        checked = check_metrics(metrics)
        for name in self.goals.metrics:
            if name not in checked:
                raise ConfigError(
                    f"study {self.name!r}: the evaluator returned no {name!r}; it returned {sorted(checked)}"
                )
        return self._finish(replace(trial, state="done", metrics=checked, cost_s=cost_s))

    def fail(self, trial: Trial, error: TrialError, cost_s: float) -> Trial:
        """Records that a trial failed, and why."""
        return self._finish(replace(trial, state="failed", reason=f"{error.reason}: {error}", cost_s=cost_s))

    def run(
        self,
        evaluate: Evaluator,
        *,
        trials: int,
        stop: Callable[[], bool] = lambda: False,
        on_trial: Callable[[Trial], None] = lambda _: None,
        max_failures: int = 10,
    ) -> str:
        """Evaluates until `trials` trials have ended; returns why it came to an end.

        stop: asked before every trial.
        max_failures: this many failures in a row end the study.

        Raises:
            NoModelError: after `max_failures` failures in a row, with a count of their reasons.
        """
        while self.ended < trials:
            if stop():
                return f"stopped after {self.ended} trials"
            try:
                trial = self.ask()
            except ExhaustedError as error:
                return str(error)
            on_trial(self._evaluate(trial, evaluate))
            self._check_failures(max_failures)
        return f"{trials} trials done"

    @property
    def ended(self) -> int:
        """Number of trials that are done or failed."""
        return sum(trial.state != "running" for trial in self.history)

    @property
    def spent_s(self) -> float:
        """Seconds that all ended trials took."""
        return sum(trial.cost_s for trial in self.history)

    def best(self, count: int = 1) -> list[Trial]:
        """The best trials by the goals, best first; see `Goals.ordered`."""
        return self.goals.ordered([t for t in self.history if t.state == "done"])[:count]

    def _evaluate(self, trial: Trial, evaluate: Evaluator) -> Trial:
        start = time.perf_counter()
        try:
            with user_errors():
                metrics = evaluate(trial, self._rng(trial.number, "evaluate"))
            return self.tell(trial, metrics, time.perf_counter() - start)
        except TrialError as error:
            return self.fail(trial, error, time.perf_counter() - start)

    def _finish(self, trial: Trial) -> Trial:
        if not self.announce:
            self.storage.create_new_trial(self.optuna_study._study_id, self._frozen(trial))
            self.history.append(trial)
            return trial
        frozen = self._frozen(trial)
        trial_id = self.optuna_study.get_trials(deepcopy=False)[trial.number]._trial_id
        self.storage.set_trial_user_attr(trial_id, "nas", frozen.user_attrs["nas"])
        for name, value in frozen.system_attrs.items():
            self.storage.set_trial_system_attr(trial_id, name, value)
        self.storage.set_trial_state_values(trial_id, frozen.state, frozen.values)
        self.history[trial.number] = trial
        return trial

    def _frozen(self, trial: Trial) -> FrozenTrial:
        state = {name: state for state, name in _STATES.items()}[trial.state]
        record = {
            "fidelity": trial.fidelity,
            "metrics": dict(trial.metrics),
            "cost_s": trial.cost_s,
            "reason": trial.reason,
        }
        done = trial.state == "done"
        bounds = {str(bound): bound.excess(trial.metrics) for bound in self.goals.constraints if done}
        return create_trial(
            state=state,
            values=[o.value(trial.metrics) for o in self.goals.objectives] if done else None,
            constraints=bounds or None,
            params=self.space.choices(trial.genotype),
            distributions=self._distributions,
            user_attrs={"nas": record},
        )

    def _read(self, frozen: FrozenTrial) -> Trial:
        if "nas" not in frozen.user_attrs or frozen.state not in _STATES:
            raise ConfigError(
                f"study {self.name!r}: trial {frozen.number} was not written by this engine; "
                "only its own studies can be continued"
            )
        source = f"study {self.name!r}, trial {frozen.number}"
        record = checked(TrialRecord, frozen.user_attrs["nas"], source, "record of a trial")
        return Trial(
            number=frozen.number,
            genotype=self.space.genotype(frozen.params),
            fidelity=record.fidelity,
            state=_STATES[frozen.state],
            metrics=record.metrics,
            cost_s=record.cost_s,
            reason=record.reason,
        )

    def _open(self, goals: Goals) -> optuna.Study:
        sampler = optuna.samplers.RandomSampler(seed=0)
        if self.name in (study.study_name for study in self.storage.get_all_studies()):
            # Asking Optuna to create what exists would append to the journal.
            return optuna.load_study(study_name=self.name, storage=self.storage, sampler=sampler)
        return optuna.create_study(
            storage=self.storage,
            study_name=self.name,
            directions=["maximize" if o.maximize else "minimize" for o in goals.objectives],
            sampler=sampler,
            load_if_exists=True,
        )

    def _recorded(self, goals: Goals | None) -> Goals:
        """Writes down what the study is for, or checks that it still is; returns the goals."""
        wanted = goals or Goals()
        decisions = [[d.name, list(d.options)] for d in self.space.decisions]
        known = self.optuna_study.user_attrs.get("nas")
        if known is None:
            self.optuna_study.set_user_attr("nas", {"decisions": decisions, **wanted.to_dict()})
            return wanted
        if not isinstance(known, dict) or known.get("decisions") != decisions:
            raise ConfigError(
                f"study {self.name!r} was made for a space with other decisions than {self.space.name!r}; "
                "use another name or another folder"
            )
        before = Goals.from_dict(known)
        if goals not in (None, before):
            raise ConfigError(
                f"study {self.name!r} was made for {before}, not for {goals}; use another name or folder"
            )
        return before

    def _warn_of_direction(self) -> None:
        for objective in self.goals.objectives:
            words = _LOSSES if objective.maximize else _GAINS
            if not objective.added and any(word in objective.metric for word in words):
                verb = "maximises" if objective.maximize else "minimises"
                warnings.warn(
                    f"study {self.name!r} {verb} {objective.metric!r}; is that the right direction?",
                    stacklevel=3,
                )

    def _check_failures(self, most: int) -> None:
        last = [t for t in self.history if t.state != "running"][-most:]
        if len(last) == most and all(t.state == "failed" for t in last):
            counts = Counter(t.reason for t in last)
            lines = "".join(f"\n  {count} x {reason}" for reason, count in counts.most_common(3))
            raise NoModelError(
                f"study {self.name!r}: the last {most} trials failed, so the search stops here:{lines}"
            )

    def _rng(self, number: int, purpose: str) -> np.random.Generator:
        return rng(self.seed, self.name, number, purpose)


def check_metrics(metrics: object) -> dict[str, float]:
    """Plain finite floats from what an evaluator returned: numpy scalars and 0-dim tensors are converted.

    Raises:
        TrialError: with reason `metric` (`nan` for values that are not finite), naming the metric and type.
    """
    if not isinstance(metrics, Mapping):
        raise TrialError(
            "metric", f"the evaluator returned {type(metrics).__name__}, wanted a dictionary of numbers"
        )
    checked = {}
    for name, value in metrics.items():
        item = getattr(value, "item", None)
        number = item() if item is not None and getattr(value, "ndim", None) == 0 else value
        if isinstance(number, bool) or not isinstance(number, Real):
            raise TrialError("metric", f"metric {name!r} is a {type(value).__name__}, wanted a number")
        if not math.isfinite(converted := _as_float(number)):
            raise TrialError("nan", f"metric {name!r} is {converted}, wanted a finite number")
        checked[str(name)] = converted
    return checked


def _as_float(number: Real) -> float:
    try:
        return float(number)
    except OverflowError:  # an integer beyond every float
        return math.inf
