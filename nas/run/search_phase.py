"""The search phase of a job: by gradients or by trials, up to a list of candidates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch._ops import OpOverload

from nas.errors import NoModelError, Stopped, TrialError
from nas.evaluate.failure_summary import at_chance, diagnosis
from nas.evaluate.multi_fidelity import Laddered
from nas.evaluate.significance import chance
from nas.evaluate.trained import Trained
from nas.evaluate.weight_inheritance import Grown
from nas.oneshot.diagnostics import Epoch
from nas.oneshot.methods import Method
from nas.oneshot.search import search
from nas.results.alphas import Alphas
from nas.results.run_record import CHECKPOINT, RANDOM
from nas.run.black_box import alike, bounded, default_of, fitting, measure_of, telling, trial_search, workers
from nas.run.clock import TimeUp
from nas.run.differentiable import search_by_gradients
from nas.run.job import Job
from nas.searchers import RandomSearch, Searcher
from nas.searchers.goals import Goals
from nas.searchers.halving import epochs_granted, finalists
from nas.searchers.scheduler import Fixed
from nas.seeding import isolated, rng
from nas.show.tracking.tracker import of_trials
from nas.space.cost import Args, Kwargs, Seeing, tensors
from nas.space.graph import architecture_hash
from nas.study.workers import Evaluate
from nas.text import counted
from nas.training.train import train
from nas.types import Genotype, Trial
from nas.user_code import user_errors

OPERATOR = 32_768
"""Bytes that are written in the time that an operator takes to begin."""
SAMPLE = 3
"""Random architectures that stand for all."""


def search_work(job: Job, epochs: int) -> float:
    """Of a search by gradients of so many epochs.

    The alphas rest for the warm-up; stages run on fewer options and more cells, in proportion.
    """
    method = job.plan.search
    steps = epochs * max(1, len(job.search_task.train) // method.weights.batch)
    guarded = 0.0 if method.guards is None else method.guards.warmup
    rests = max(method.warmup, guarded) if method.learns_alphas else 0.0
    resting = _step(job, dataclasses.replace(method, guards=None, warmup=0.99)) if rests else 0.0
    moving = _step(job, dataclasses.replace(method, guards=None, warmup=0.0))
    stages = method.staging.stages(method.weights.epochs, max(len(d.options) for d in job.space.decisions))
    whole = sum(stage.epochs for stage in stages)
    share = sum(stage.epochs * stage.keep * stage.depth for stage in stages) / whole
    return steps * share * (rests * resting + (1 - rests) * moving)


def trial_work(job: Job, epochs: int) -> float:
    """Of a trial of so many epochs, the mean of a few random architectures."""
    draw, found = rng(job.seed("work"), "sample"), list[float]()
    for _ in range(SAMPLE):
        try:
            found.append(_trial_step(job, job.space.sample(draw)))
        except TrialError:  # of one architecture; others can be trained
            continue
    steps = epochs * max(1, len(job.search_task.train) // job.plan.trial.batch)
    return steps * sum(found) / len(found) if found else 0.0


def _step(job: Job, method: Method) -> float:
    method = dataclasses.replace(method, weights=dataclasses.replace(method.weights, graph=False))
    return _work(lambda stop: search(job.space, job.search_task, method, seed=0, stop=stop))


def _trial_step(job: Job, genotype: Genotype) -> float:
    recipe = dataclasses.replace(job.plan.trial, graph=False)
    with user_errors(), isolated(0, "work"):
        network = job.space.network(genotype).to(job.search_task.train.x.device)
        return _work(lambda stop: train(network, job.search_task, recipe, seed=0, stop=stop))


def _work(training: Callable[[Callable[[], bool]], object]) -> float:
    """Of the last of a training's first two steps."""
    total, marks = 0, list[int]()

    def see(operator: OpOverload, args: Args, kwargs: Kwargs, output: object) -> None:  # noqa: ARG001 - a `See`
        nonlocal total
        total += OPERATOR + sum(tensor.nbytes for tensor in tensors(output))

    def stop() -> bool:
        marks.append(total)
        return len(marks) > 2

    try:
        with Seeing(see):
            training(stop)
    except Stopped:
        pass
    else:  # it had no more steps
        marks.append(total)
    return marks[-1] - marks[-2]


IN_TIME = "no trial of the search was finished in time"
ALIKE = 0.01
"""Of their mean: by how much at least some strengths of a decision differ where its alphas were learned."""


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found.

    candidates: the best architectures, best first, no two isomorphic.
    history: its trials. seconds: what they and their supernet took.
    alphas, epochs: of a differentiable search.
    measure: the evaluator of its trials, None where gradients searched. fidelity: epochs of a full trial.
    untaught: why nothing was learned, so that its one candidate is the default architecture; empty where
      anything was.
    """

    candidates: Sequence[Genotype]
    history: Sequence[Trial]
    seconds: float
    measure: Evaluate | None = None
    fidelity: int = 0
    alphas: Alphas | None = None
    epochs: Sequence[Epoch] = ()
    untaught: str = ""


def find(job: Job, *, until_s: float | None = None) -> Found:
    """Searches, by gradients or by trials, as the plan says.

    until_s: when it has to be over, by the job's clock; what was found by then counts.
    """
    searcher = job.plan.searcher
    if searcher is None:
        return _differentiable(job, until_s)
    return _black_box(job.until(until_s), searcher, until_s)


def _differentiable(job: Job, until_s: float | None) -> Found:
    if job.config.workers not in (0, 1):
        job.progress.note(f"method {job.config.method!r} runs with one worker: it trains one supernet")
    if not job.has_choice:
        return Found([job.space.sample(rng(0))], (), 0.0)
    found = search_by_gradients(job, until_s=until_s)
    if found.epochs[-1].epoch < job.plan.search.weights.epochs:
        job.progress.note(f"the search ends early, after epoch {found.epochs[-1].epoch}")
    alphas = Alphas.of(job.space, [epoch.strengths for epoch in found.epochs])
    candidates, untaught = _distinct(job, found.candidates), ""
    default = default_of(job)
    if default is not None and all(np.ptp(row) < ALIKE / len(row) for row in found.epochs[-1].strengths):
        candidates, untaught = [default], "the search learned nothing, its alphas are all alike"
    return Found(
        candidates, found.trials, found.seconds, alphas=alphas, epochs=found.epochs, untaught=untaught
    )


def _black_box(job: Job, searcher: Searcher, until_s: float | None) -> Found:
    """Candidates: the best trials of the longest training."""
    try:
        search = trial_search(job, searcher)
    except TimeUp as error:  # while a supernet was trained
        job.progress.note(f"the search ends before its first trial: {error}")
        return _untaught(
            job, searcher, (), "no trial of the search was finished in time", seconds=job.clock.elapsed_s
        )
    study, late = search.study, False
    try:
        reason = search.run(spend_s=until_s)
    except TimeUp as error:
        reason, late = str(error), True
    if study.ended < job.plan.trials:
        job.progress.note(f"the search ends early, after {counted(study.ended, 'trial')}: {reason}")
    best = front_first(finalists(study.history, job.plan.lead), job.plan.goals)
    if not best and late:
        return _untaught(job, searcher, study.history, IN_TIME)
    if not best:
        raise NoModelError(f"all {counted(study.ended, 'trial')} failed:{diagnosis(study.history)}")
    if job.plan.goals.violation(best[0].metrics) > 0:
        job.progress.note(
            f"WARNING: no architecture keeps all constraints ({job.plan.goals}); the nearest is taken"
        )
    seconds = search.prepared_s + study.spent_s
    done = [t for t in study.history if t.state == "done"]
    default, failed = default_of(job), {t.genotype for t in study.history if t.state == "failed"}
    judged = job.plan.goals.objectives == Goals().objectives and default not in {None, *failed}
    if judged and at_chance(done, chance(job.search_task.val)) == len(done):
        no_better = "the search learned nothing, no trial is better than guessing"
        return _untaught(job, searcher, study.history, no_better, seconds=seconds)
    genotypes = _distinct(job, (t.genotype for t in best))
    return Found(genotypes, study.history, seconds, search.evaluate, search.fidelity)


def front_first(ranked: Sequence[Trial], goals: Goals) -> list[Trial]:
    """Trials, ranked by the first objective, with those of the front before all others.

    Otherwise one that another beats could be trained, where both are equal in the first objective.
    """
    longest = [t for t in ranked if t.fidelity == ranked[0].fidelity]
    best = {t.number for t in goals.front(longest)} if len(goals.objectives) > 1 else set()
    return sorted(ranked, key=lambda t: t.number not in best)


def _untaught(
    job: Job, searcher: Searcher, history: Sequence[Trial], why: str, *, seconds: float = 0.0
) -> Found:
    """The default; where no such one keeps the constraints, what the searcher would begin with."""
    default = default_of(job)
    if default is None:
        default = bounded(job, searcher).ask(job.space, history, rng(job.seed("untried")))
    return Found([default], history, seconds, untaught=why)


def _distinct(job: Job, genotypes: Iterable[Genotype]) -> list[Genotype]:
    """The first `top_k` that are not isomorphic to one before."""
    found: dict[str, Genotype] = {}
    for genotype in genotypes:
        found.setdefault(architecture_hash(job.space, genotype), genotype)
        if len(found) == job.plan.top_k:
            break
    return list(found.values())


LARGEST = "largest"
"""The name of the second baseline in metrics and pictures; that of the first is that of its study."""


@dataclass(frozen=True, eq=False)
class Baselines:
    """The trials of random search, and the architecture that each baseline would have chosen, by name."""

    history: Sequence[Trial]
    choices: dict[str, Genotype]


def run_baselines(job: Job, found: Found, *, until_s: float | None = None) -> Baselines:
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


def _random(job: Job, found: Found) -> list[Trial]:
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
    job.tracking.tell(of_trials(study.name, study.history))
    job.progress.phase("random search at equal cost", trials, done=study.ended)

    def enough() -> bool:
        job.check_stop(f"random search stopped after {counted(study.ended, 'trial')}")
        return False

    with workers(job, evaluate, beside=True) as side_by_side:
        study.run(
            measure_of(job, evaluate, study=lambda: study, others=found.history),
            trials=trials,
            stop=enough,
            on_trial=telling(job, study.name),
            max_failures=trials + 1,  # what fails here must not end a job whose search went well
            workers=side_by_side,
        )
    return study.history


def _evaluator(job: Job, found: Found) -> Evaluate:
    """That of the search; training from scratch keeps its checkpoints apart from those of the search."""
    if found.measure is not None and not isinstance(found.measure, Trained | Grown):
        return found.measure
    folder = job.folder / CHECKPOINT / RANDOM
    return Trained(job.space, job.search_task, job.plan.trial, folder=folder, stop=job.stop)


def _equal_trials(job: Job, found: Found) -> int:
    """The number of random trials of equal cost."""
    if found.measure is None:
        job.progress.note("counting what a step of the search and of a trial cost")
        each = trial_work(job, job.plan.trial.epochs)
        return max(1, round(search_work(job, len(found.history)) / each)) if each else 1
    if job.plan.early_stop:
        trained = sum(t.metrics.get("epochs_trained", t.fidelity) for t in found.history)
        return max(1, round(trained / found.fidelity))
    if len(job.plan.ladder) == 1 or job.config.shares_weights:
        return len(found.history)
    granted = job.plan.ladder.granted
    return max(1, round(epochs_granted(found.history, granted) / granted[-1]))
