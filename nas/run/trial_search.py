"""A job's study of trials, and what measures them."""

from __future__ import annotations

from dataclasses import dataclass

from nas.evaluate.multi_fidelity import Laddered
from nas.evaluate.trained import Trained
from nas.results.run_record import SEARCH
from nas.run.black_box import (
    alike,
    bounded,
    default_of,
    evaluator,
    fitting,
    grown,
    informed,
    measure_of,
    scheduler,
    telling,
    workers,
)
from nas.run.job import Job
from nas.searchers import Searcher
from nas.searchers.default_first import DefaultFirst
from nas.show.tracking.points import of_trials
from nas.study.measuring import Measure
from nas.study.study import Study
from nas.study.workers import Evaluate
from nas.text import counted


@dataclass(frozen=True, eq=False)
class TrialSearch:
    """A search by trials, ready to run.

    measure: of its trials. evaluate: the part of it that trains, or takes weights from a supernet.
    fidelity: epochs of a full trial. prepared_s: seconds that `evaluate` took to prepare.
    """

    job: Job
    study: Study
    measure: Measure
    evaluate: Evaluate
    fidelity: int
    prepared_s: float

    def run(self, *, spend_s: float | None) -> str:
        """Runs the trials; why they came to an end.

        spend_s: when the trials of all workers have taken so many seconds, no more are begun.
        """
        job, study = self.job, self.study
        job.progress.phase(SEARCH, job.plan.planned_trials, done=study.ended)
        job.tracking.tell(of_trials(study.name, study.history))

        def enough() -> bool:
            job.check_stop(f"search stopped after {counted(study.ended, 'trial')}")
            return spend_s is not None and study.ended > 0 and study.spent_s >= spend_s

        with workers(job, self.evaluate) as found:
            return study.run(
                self.measure,
                trials=job.plan.trials,
                stop=enough,
                on_trial=telling(job, study.name),
                max_failures=job.config.max_failures,
                workers=found,
            )


def trial_search(job: Job, searcher: Searcher) -> TrialSearch:
    """Opens or makes the study, and prepares what measures its trials."""
    shares = job.config.shares_weights
    fidelity = 0 if shares else job.plan.ladder.granted[-1]
    evaluate, prepared_s = evaluator(job)
    sizes = evaluate if isinstance(evaluate, Trained | Laddered) else None
    default, proposes = default_of(job), fitting(job, bounded(job, informed(job, searcher)), sizes)
    if default is not None:
        proposes = DefaultFirst(proposes, default)
    study = job.study(SEARCH, scheduler(job, proposes, fidelity), announce=not shares, alike=alike(job))
    evaluate = grown(job, evaluate)
    measure = measure_of(job, evaluate, study=lambda: study)
    return TrialSearch(job, study, measure, evaluate, fidelity, prepared_s)
