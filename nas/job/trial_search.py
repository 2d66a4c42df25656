"""A job's study of trials and what measures them: set up alike by the coordinator and by every worker."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from nas.evaluation.evaluators import Cached, Trained
from nas.evaluation.laddered import Laddered
from nas.job.job import Job
from nas.job.trial_setup import (
    apart,
    bounded,
    default_of,
    early_stopped,
    evaluator,
    fitting,
    grown,
    informed,
    remembering,
    scheduler,
    with_costs,
)
from nas.results.run_record import SEARCH
from nas.searchers import Searcher
from nas.searchers.default_first import DefaultFirst
from nas.storage.address import writers
from nas.storage.study_record import Record
from nas.study import Evaluator, Study
from nas.text import counted
from nas.workers.claims import Alone, Claims, Leased, leased
from nas.workers.identity import Identity

RECORD = "job"
"""The attribute of the study that says what the job is, for workers that join."""


@dataclass(frozen=True, eq=False)
class TrialSearch:
    """A search by trials, ready to run.

    evaluate: measures its trials. measure: the part of it that trains, or takes weights from a supernet.
    fidelity: epochs of a full trial. prepared_s: seconds that `measure` took to prepare.
    spend_s: when the trials of all workers have taken so many seconds, no more are begun; None for no limit.
    """

    job: Job
    study: Study
    evaluate: Evaluator
    measure: Evaluator
    fidelity: int
    prepared_s: float
    spend_s: float | None

    def enough(self) -> bool:
        """Whether the time is used up.

        Raises:
            Stopped: when the job was asked to stop.
        """
        self.job.check_stop(f"search stopped after {counted(self.study.ended, 'trial')}")
        return self.spend_s is not None and self.study.ended > 0 and self.study.spent_s >= self.spend_s


def trial_search(
    job: Job,
    searcher: Searcher,
    storage: BaseStorage,
    *,
    identity: Identity,
    heir: bool = False,
    spend_s: float | None = None,
) -> TrialSearch:
    """Opens or makes the study, and prepares what measures its trials.

    identity, heir: see `nas.workers.claims.Leased`. A study on shared weights, or in a file that only one
      process may write, is nobody else's.
    """
    shares = job.config.shares_weights
    fidelity = 0 if shares else job.plan.ladder.granted[-1]

    def claims(study: optuna.Study) -> Claims:
        if shares or writers(job.config.storage) == 1:
            return Alone()
        return leased(storage, identity, lease_s=job.config.lease, heir=heir, saved=saved)(study)

    sizes = None if shares else evaluator(job)[0]
    record = Record(job.space, job.plan.goals, SEARCH)

    def saved(frozen: FrozenTrial) -> int:
        return sizes.saved_steps(record.read(frozen)) if isinstance(sizes, Trained | Laddered) else 0

    study = Study(
        job.space,
        scheduler(
            job, _default_first(job, fitting(job, bounded(job, informed(job, searcher)), sizes)), fidelity
        ),
        storage,
        name=SEARCH,
        seed=job.seed(SEARCH),
        goals=job.plan.goals,
        announce=not shares,
        claims=claims,
    )
    fenced = _fenced(job, study)
    measure, prepared_s = evaluator(fenced)
    trained = grown(fenced, early_stopped(fenced, measure, study), study)
    by_workers = job.config.workers != 1 or job.config.trial_timeout is not None
    evaluate_apart = trained if by_workers else apart(fenced, trained, phase=SEARCH)[0]
    measured = with_costs(fenced, evaluate_apart, study.history)
    fitted = remembering(fenced, measured, measure, study.history)
    evaluate = Cached(fitted, job.space, study.history)
    return TrialSearch(job, study, evaluate, measure, fidelity, prepared_s, spend_s)


def _default_first(job: Job, searcher: Searcher) -> Searcher:
    default = default_of(job)
    return searcher if default is None else DefaultFirst(searcher, default)


def write_record(study: Study, record: Mapping[str, object], *, spend_s: float | None) -> None:
    """Leaves with the study what a worker must know to join."""
    wanted = {**record, "spend_s": spend_s}
    if study.optuna_study.user_attrs.get(RECORD) != wanted:
        study.optuna_study.set_user_attr(RECORD, wanted)


def _fenced(job: Job, study: Study) -> Job:
    """The job, whose trials stop when they are no longer this worker's."""
    claims = study.claims
    if not isinstance(claims, Leased):
        return job

    def stop() -> bool:
        claims.check()
        return job.stop()

    return dataclasses.replace(job, stop=stop)
