"""How the trials of a job are proposed, scheduled and measured, as its plan says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from nas.errors import ConfigError, TrialError
from nas.evaluation.evaluators import Trained
from nas.evaluation.fidelity import Fidelity
from nas.evaluation.grown import Grown
from nas.evaluation.laddered import Laddered
from nas.evaluation.learning_curves import extrapolate
from nas.evaluation.measured import COUNTED, TRAINED, Measured, free_metrics
from nas.evaluation.memory_bound import Fitting, Remembering
from nas.evaluation.scored import Scored
from nas.files.paths import is_file
from nas.job.job import Job
from nas.job.method_names import by_gradients
from nas.job.shared_weights import shared_weights
from nas.latency import LATENCY
from nas.oneshot.expected import check_bound
from nas.results.run_record import CHECKPOINT, SEARCH, read_run
from nas.schedulers.halving import Hyperband, SuccessiveHalving, comparable
from nas.schedulers.scheduler import Fixed, Scheduler
from nas.searchers import Guided, LocalSearch, Nsga2, RegularizedEvolution, Searcher
from nas.searchers.bounded import Bounded
from nas.searchers.default_first import DefaultFirst
from nas.seeding import rng
from nas.study import Evaluator, Study
from nas.tracking.points import of_trials
from nas.training.easing import LR_FACTOR
from nas.training.needs import memory_bytes
from nas.types import Genotype, Trial
from nas.user_code import user_errors

DRAWN = 200
"""Changes of a default that breaks a constraint."""


def check_search(job: Job) -> None:
    """Raises ConfigError when a metric, a bound, a latency table or an earlier run cannot be used."""
    if job.plan.searcher is not None:
        informed(job, job.plan.searcher)
    else:
        for bound in job.plan.goals.constraints:
            check_bound(bound, job.latency_table)
    with_costs(job, _trained(job), ())


def bounded(job: Job, searcher: Searcher) -> Searcher:
    """The searcher kept to architectures whose last networks keep the constraints on costs."""
    excess = _excess(job)
    return (
        Bounded(searcher, lambda genotype: excess(genotype) == 0) if job.plan.goals.constraints else searcher
    )


def default_of(job: Job) -> Genotype | None:
    """The space's default; where it breaks a constraint on costs, one that keeps them, by few changes of it.

    None where no such one was found.
    """
    key = (f"default under {job.plan.goals} at {dict(job.final.settings)}", ())
    if key not in job.space.memo:
        job.space.memo[key] = _nearest_default(job)
    return cast(Genotype | None, job.space.memo[key])


def _nearest_default(job: Job) -> Genotype | None:
    """Single changes are drawn, and kept where they bring an architecture nearer to the constraints."""
    excess, draw = _excess(job), rng(0, "default")
    found = job.space.default_genotype
    least = excess(found)
    for _ in range(DRAWN):
        if least == 0:
            return found
        changed = job.space.mutate(found, draw)
        if (now := excess(changed)) < least:
            found, least = changed, now
    return None


def _excess(job: Job) -> Callable[[Genotype], float]:
    """By how much the last network of an architecture breaks the constraints that need no training."""
    table = job.latency_table
    free = {*COUNTED, *([LATENCY] if table is not None else [])}
    bounds = [bound for bound in job.plan.goals.constraints if bound.metric in free]

    def excess(genotype: Genotype) -> float:
        if not bounds:
            return 0.0
        try:
            with user_errors():
                costs = free_metrics(job.final, genotype, job.task.image_shape, table)
        except TrialError:  # its trial will fail for this reason, and say so
            return 0.0
        return sum(bound.excess(costs) for bound in bounds)

    return excess


def fitting(job: Job, searcher: Searcher, measure: Evaluator | None) -> Searcher:
    """The searcher kept below what ran out of memory before it, where trials are trained."""
    if not isinstance(measure, Trained | Laddered):
        return searcher
    needed, first = measure.needed_bytes, job.plan.ladder.granted[0]
    device = job.task.train.x.device
    return Fitting(searcher, lambda genotype: needed(Trial(0, genotype, first)), memory_bytes(device))


def remembering(
    job: Job,
    evaluate: Evaluator,
    measure: Evaluator | None,
    history: Sequence[Trial],
    earlier: Sequence[Trial] = (),
) -> Evaluator:
    """The evaluator that does not train what is known to run out of memory; `measure` is its innermost part.

    history: of the study, which grows. earlier: of the study before it.
    """
    if not isinstance(measure, Trained | Laddered):
        return evaluate
    memory = memory_bytes(job.task.train.x.device)
    return Remembering(evaluate, measure.needed_bytes, memory, history, earlier)


def with_costs(
    job: Job, measure: Evaluator, history: Sequence[Trial], *, others: Sequence[Trial] = ()
) -> Evaluator:
    """The evaluator and the costs that the goals need: those of the last network, which may be larger.

    history: that of the trials' own study, which grows. others: trials that were measured before it began.
    """
    wanted = job.plan.goals.metrics
    if not set(wanted) - set(TRAINED):
        return measure
    shape, device = job.task.image_shape, job.task.train.x.device
    table = job.latency_table
    return Measured(measure, job.final, shape, device, wanted, table=table, history=history, others=others)


def scheduler(job: Job, searcher: Searcher, fidelity: int) -> Scheduler:
    """Decides how long each trial trains; `fidelity` is that of the fixed one."""
    plan = job.plan
    match plan.scheduler:
        case "successive-halving":
            return SuccessiveHalving(searcher, plan.ladder, plan.eta, plan.goals, _enough(searcher))
        case "hyperband":
            return Hyperband(searcher, plan.ladder, plan.eta, plan.goals, _enough(searcher))
    return Fixed(searcher, fidelity)


def _enough(searcher: Searcher) -> int:
    """Trials that a rung must have before the searcher sees it: no fewer than it draws at random at first."""
    match searcher:
        case Bounded() | Fitting() | DefaultFirst():
            return _enough(searcher.searcher)
        case RegularizedEvolution() | Nsga2():
            return max(SuccessiveHalving.enough, searcher.population)
        case Guided() | LocalSearch():
            return max(SuccessiveHalving.enough, searcher.init)
    return SuccessiveHalving.enough


def informed(job: Job, searcher: Searcher) -> Searcher:
    """A guided searcher with the earlier run and the proxies that it was promised."""
    if not isinstance(searcher, Guided):
        return searcher
    if job.plan.earlier:
        searcher = dataclasses.replace(searcher, earlier=_earlier(job, enough=_enough(searcher)))
    if job.plan.proxies:
        scored = Scored(job.space, job.search_task, job.plan.proxies)
        searcher = dataclasses.replace(searcher, describe=scored)
    return searcher


def _earlier(job: Job, *, enough: int) -> tuple[Trial, ...]:
    """The trials of an earlier run; of one on a ladder those of one rung, for values must be comparable."""
    folder = Path(job.plan.earlier)
    trials = Study.read(folder, SEARCH, job.space)
    done = [trial for trial in trials if trial.state == "done"]
    if not done:
        raise ConfigError(f"searcher.earlier: {folder} holds no finished trial to learn from")
    if is_file(folder / "run.json") and by_gradients(str(read_run(folder)["config"].get("method"))):
        raise ConfigError(
            f"searcher.earlier: {folder} searched by gradients, and its accuracies are those of a supernet; "
            "name a run by trials"
        )
    for trial in done:
        job.plan.goals.check(trial)
    return tuple(comparable(trials, sorted({trial.fidelity for trial in done}), enough=enough))


def early_stopped(job: Job, measure: Evaluator, study: Study) -> Evaluator:
    """The evaluator, giving up trials that will hardly beat the best one so far."""
    chance = job.plan.early_stop
    if not chance or not isinstance(measure, Trained):
        return measure

    def hopeless(accuracies: Sequence[float], epochs: int) -> bool:
        done = [trial.metrics["val_acc"] for trial in job.plan.goals.kept_by(study.history)]
        if len(accuracies) < 2 or not done:
            return False
        return extrapolate(accuracies, at=epochs).probability_above(max(done)) < chance

    return dataclasses.replace(measure, hopeless=hopeless)


def grown(job: Job, measure: Evaluator, study: Study) -> Evaluator:
    """The evaluator whose trials begin with the weights of an earlier one, where the job wants that."""
    if job.config.warm_start != "parent":
        return measure
    if not isinstance(measure, Trained):
        raise ConfigError(
            "warm_start is parent, but trials on a ladder continue their own training; remove it"
        )
    return Grown(measure, job.folder / CHECKPOINT / "weights", study.history)


def apart(job: Job, measure: Evaluator, *, phase: str = "") -> tuple[Evaluator, int]:
    """The evaluator in processes of their own, and how many; itself and one where it cannot run there.

    That is where it looks at what this process knows, and where it cannot be sent to another. One process at
    a time where latencies are measured, which others would disturb. phase: of trials one at a time, with as
    many threads as `nas.budget.threads` has decided.
    """
    processes = job.processes
    tied = isinstance(measure, Trained) and (measure.start is not None or measure.hopeless is not None)
    if processes is None or tied or not isinstance(measure, Trained | Laddered):
        return measure, 1
    disturbed = LATENCY in job.plan.goals.metrics and job.latency_table is None
    try:
        threads, step_s = job.clock.decide(f"threads {phase}", lambda: [1, 0.0]) if phase else (1, 0.0)
        places = 1 if phase or disturbed else processes.places
        evaluate = processes.evaluator(measure, count=places, threads=int(threads), step_s=step_s)
        return evaluate, places
    except TypeError as error:
        job.progress.note(f"one training at a time: the space cannot be sent to another process ({error})")
        return measure, 1


def evaluator(job: Job) -> tuple[Evaluator, float]:
    """The evaluator of the trials, and the seconds it took to prepare."""
    return shared_weights(job) if job.config.shares_weights else (_trained(job), 0.0)


def _trained(job: Job) -> Evaluator:
    """From scratch for one rung of all images at full size, else up the ladder."""
    ladder, folder = job.plan.ladder, job.folder / CHECKPOINT
    if len(ladder) == 1 and ladder.rungs[0] == Fidelity(ladder.rungs[0].epochs):
        return Trained(job.space, job.search_task, job.plan.trial, folder=folder, stop=job.stop)
    return Laddered(
        job.space,
        job.search_task,
        job.plan.trial,
        ladder,
        folder / "ladder",
        seed=job.seed(SEARCH),
        stop=job.stop,
    )


def telling(job: Job, study: str) -> Callable[[Trial], None]:
    """What hears of every ended trial of a study: the user, and the trackers."""

    def told(trial: Trial) -> None:
        job.progress.advance(trial_line(trial))
        job.tracking.tell(of_trials(study, [trial]))

    return told


def trial_line(trial: Trial) -> str:
    """One ended trial in words."""
    if trial.state == "failed":
        return f"trial {trial.number}: failed, {trial.reason}"
    metrics = trial.metrics
    size = f", {metrics['params']:,.0f} parameters" if "params" in metrics else ""
    rate = f", at {metrics[LR_FACTOR]:g} times the learning rate" if LR_FACTOR in metrics else ""
    accuracy = f"validation accuracy {metrics['val_acc']:.4f}"
    return f"trial {trial.number}: {accuracy}{size}{rate}, {trial.cost_s:.1f} s"
