"""What a search has to beat: random search at equal cost, and the largest of its architectures.

Equal cost is counted, not timed, so that it does not depend on how busy the machine is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from nas.errors import TrialError
from nas.evaluate.multi_fidelity import Laddered
from nas.evaluate.trained import Trained
from nas.results.run_record import CHECKPOINT, RANDOM
from nas.run.black_box import alike, fitting, run_trials
from nas.run.final_network import bounded, default_of
from nas.run.job import Job, SearchOutcome, TimeUp
from nas.searchers.scheduler import Fixed, epochs_granted, finalists
from nas.searchers.searcher import RandomSearch
from nas.seeding import isolated, rng
from nas.space.cost import step_work
from nas.study.workers import Evaluate
from nas.training.train import train
from nas.types import Genotype, Trial
from nas.user_code import user_errors

LARGEST = "largest"
"""The name of the second baseline in metrics and pictures; that of the first is that of its study."""


@dataclass(frozen=True, eq=False)
class Baselines:
    """The trials of random search, and the architecture that each baseline would have chosen, by name."""

    history: Sequence[Trial]
    choices: dict[str, Genotype]


def random_search(job: Job, found: SearchOutcome, *, until_s: float | None = None) -> Baselines:
    """Random search at the cost of the search, in a study of its own next to it.

    Equal cost is as many trials with the same evaluator, as many epochs of training where trials got
    different numbers of them, and as much work where gradients searched. What the search has
    measured is not measured again but replayed. Where the search was random itself, it is its own
    baseline.

    The second baseline takes the same random architectures and chooses by multiply-accumulates alone.

    until_s: when it has to be over, by the job's clock; a random search that was cut off had not the same
      cost, so that nothing is compared with it.
    """
    try:
        history = found.history if job.is_own_baseline else _random(job.until(until_s), found)
    except TimeUp as error:
        job.progress.note(
            f"random search was not done at equal cost, so nothing is compared with it: {error}"
        )
        return Baselines((), {})
    own = default_of(job) if job.is_own_baseline else None  # which is a baseline by itself
    done = [trial for trial in job.plan.goals.kept_by(history) if trial.genotype != own]
    if not done:
        job.progress.note(
            "random search found no architecture to compare with: all its trials failed or broke a constraint"
        )
        return Baselines(history, {})
    largest = max(done, key=lambda t: t.metrics["macs"])
    return Baselines(history, {RANDOM: finalists(done, job.plan.lead)[0].genotype, LARGEST: largest.genotype})


def _random(job: Job, found: SearchOutcome) -> list[Trial]:
    evaluate = _evaluator(job, found)
    epochs = found.fidelity if found.measure is not None else job.plan.trial.epochs
    others = found.history if found.measure is not None else ()
    sizes = evaluate if isinstance(evaluate, Trained | Laddered) else None
    study = job.study(
        RANDOM,
        Fixed(fitting(job, bounded(job, RandomSearch()), sizes), epochs),
        announce=not job.config.shares_weights,
        alike=alike(job),
        others=others,
    )
    trials = _equal_trials(job, found)
    run_trials(job, study, evaluate, trials, what="random search at equal cost", others=found.history)
    return study.history


def _evaluator(job: Job, found: SearchOutcome) -> Evaluate:
    """That of the search; training from scratch keeps its checkpoints apart from those of the search."""
    if found.measure is not None and not isinstance(found.measure, Trained):
        return found.measure
    folder = job.folder / CHECKPOINT / RANDOM
    return Trained(job.space, job.search_task, job.plan.trial, folder=folder, stop=job.stop)


def _equal_trials(job: Job, found: SearchOutcome) -> int:
    """The number of random trials of equal cost."""
    if found.measure is None:
        job.progress.note("counting what a step of the search and of a trial cost")
        from nas.oneshot.search import search_work

        each = _trial_work(job, job.plan.trial.epochs)
        return (
            max(1, round(search_work(job.space, job.search_task, job.plan.method, len(found.history)) / each))
            if each
            else 1
        )
    if job.plan.early_stop:
        trained = sum(t.metrics.get("epochs_trained", t.fidelity) for t in found.history)
        return max(1, round(trained / found.fidelity))
    if len(job.plan.ladder) == 1 or job.config.shares_weights:
        return len(found.history)
    granted = job.plan.ladder.granted
    return max(1, round(epochs_granted(found.history, granted) / granted[-1]))


SAMPLE = 3
"""Random architectures that stand for all."""


def _trial_work(job: Job, epochs: int) -> float:
    """Of a trial of so many epochs, the mean of a few random architectures."""
    draw, found = rng(job.seed("work"), "sample"), list[float]()
    for _ in range(SAMPLE):
        try:
            found.append(_trial_step(job, job.space.sample(draw)))
        except TrialError:  # of one architecture; others can be trained
            continue
    steps = epochs * max(1, len(job.search_task.train) // job.plan.trial.batch)
    return steps * sum(found) / len(found) if found else 0.0


def _trial_step(job: Job, genotype: Genotype) -> float:
    recipe = dataclasses.replace(job.plan.trial, graph=False)
    with user_errors(), isolated(0, "work"):
        network = job.space.network(genotype).to(job.search_task.train.x.device)
        return step_work(lambda stop: train(network, job.search_task, recipe, seed=0, stop=stop))
