"""How the trials of a job are proposed, scheduled and measured, as its plan says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from nas.data.problem import Problem
from nas.errors import ConfigError, NoModelError, TrialError, counted
from nas.evaluate.cost_metrics import LOSSES, Costs
from nas.evaluate.failure_summary import at_chance, diagnosis
from nas.evaluate.learning_curves import EarlyStop
from nas.evaluate.multi_fidelity import Laddered
from nas.evaluate.proxies import Scored
from nas.evaluate.significance import chance
from nas.evaluate.trained import Trained, too_large
from nas.files.folder import is_file
from nas.results.run_record import CHECKPOINT, SEARCH, read_run
from nas.run.final_network import bounded, default_of
from nas.run.job import Job, SearchOutcome, TimeUp, distinct
from nas.run.resolved_config import UNBOUNDED
from nas.searchers.auto import Auto
from nas.searchers.evolution import Nsga2, RegularizedEvolution
from nas.searchers.fidelity import Fidelity
from nas.searchers.goals import Goals
from nas.searchers.method_names import by_gradients
from nas.searchers.predictor_guided import Guided
from nas.searchers.scheduler import Fixed, Hyperband, Scheduler, SuccessiveHalving, comparable, finalists
from nas.searchers.searcher import Bounded, DefaultFirst, LocalSearch, Searcher
from nas.seeding import rng
from nas.show.tracking.tracker import of_trials
from nas.space.graph import architecture_hash
from nas.space.latency import LATENCY
from nas.space.space import Space
from nas.study.study import Study
from nas.study.workers import Borrowed, Evaluate, Measure, Slot, Workers, at_a_time, places_on
from nas.training.memory_estimate import memory_bytes
from nas.training.retry import LR_FACTOR
from nas.types import Genotype, Trial

IN_TIME = "no trial of the search was finished in time"


def check_search(job: Job) -> None:
    """Refuses a metric, bound, latency table, earlier run or space that the search cannot use.

    Raises:
        ConfigError, SpaceError: naming it.
    """
    if job.has_choice and (job.config.is_differentiable or job.config.shares_weights):
        job.space.check_supernet()
    if job.plan.searcher is not None:
        informed(job, job.plan.searcher)
    else:
        from nas.oneshot.expected_cost import check_bound  # loaded by those who train a supernet alone

        for bound in job.plan.goals.constraints:
            check_bound(bound, job.latency_table)
        alpha_seeds(job)
    costs_of(job, lambda: ())


def search_by_trials(
    job: Job,
    *,
    until_s: float | None = None,
    shared: Callable[[Job], tuple[Evaluate, float]] | None = None,
) -> SearchOutcome:
    """Proposes and measures trials; the candidates are the best of the longest training.

    shared: makes an evaluator of trained weights that trials share, and says how many seconds that took;
      without it they are trained one by one.
    until_s: when it has to be over, by the job's clock; what was found by then counts.

    Raises:
        NoModelError: when every trial failed.
    """
    searcher, job, goals = job.plan.searcher, job.until(until_s), job.plan.goals
    assert searcher is not None
    try:
        evaluate, prepared_s = (_trained(job), 0.0) if shared is None else shared(job)
    except TimeUp as error:  # while a supernet was trained
        job.progress.note(f"the search ends before its first trial: {error}")
        return _untaught(job, (), IN_TIME, seconds=job.clock.elapsed_s)
    fidelity = job.plan.ladder.granted[-1] if shared is None else 0
    default, proposes = default_of(job), fitting(job, bounded(job, informed(job, searcher)), evaluate)
    if default is not None:
        proposes = DefaultFirst(proposes, default)
    alike = partial(architecture_hash, job.space)
    study = job.study(SEARCH, scheduler(job, proposes, fidelity), announce=shared is None, alike=alike)
    late = False
    try:
        reason = run_trials(
            job, study, evaluate, job.plan.trials, what=SEARCH, until_spent_s=until_s, stops_at_failures=True
        )
    except TimeUp as error:
        reason, late = str(error), True
    if study.ended < job.plan.trials:
        job.progress.note(f"the search ends early, after {counted(study.ended, 'trial')}: {reason}")
    best = best_first(job, study.history)
    if not best and late:
        return _untaught(job, study.history, IN_TIME)
    if not best:
        raise NoModelError(f"all {counted(study.ended, 'trial')} failed:{diagnosis(study.history)}")
    if goals.violation(best[0].metrics) > 0:
        job.progress.note(f"WARNING: no architecture keeps all constraints ({goals}); the nearest is taken")
    seconds = prepared_s + study.spent_s
    if _learned_nothing(job, study.history, default):
        no_better = "the search learned nothing, no trial is better than guessing"
        return _untaught(job, study.history, no_better, seconds=seconds)
    return SearchOutcome(
        distinct(job, (t.genotype for t in best)), study.history, seconds, evaluate, fidelity
    )


def _learned_nothing(job: Job, history: Sequence[Trial], default: Genotype | None) -> bool:
    """Whether the problem's metric is searched for, no trial beats guessing, and the default did not fail."""
    done = [t for t in history if t.state == "done"]
    failed = {t.genotype for t in history if t.state == "failed"}
    judged = job.judges_alone and default not in {None, *failed}
    level = chance(job.search_task, job.search_task.val)
    return judged and at_chance(done, level, job.problem.objective) == len(done)


def _untaught(job: Job, history: Sequence[Trial], why: str, *, seconds: float = 0.0) -> SearchOutcome:
    """The default; where no such one keeps the constraints, what the searcher would begin with."""
    default = default_of(job)
    if default is None and job.plan.searcher is not None:
        draw = rng(job.seed("untried"))
        default = bounded(job, job.plan.searcher).ask(job.space, history, draw)
    assert default is not None
    return SearchOutcome([default], history, seconds, untaught=why)


def best_first(job: Job, history: Sequence[Trial]) -> list[Trial]:
    """The longest trial of each architecture: those of more epochs first, then by the goals, or the searcher.

    Of one objective `auto` ranks by the posterior mean, as the best of many noisy scores is partly luck, and
    the default comes last where all that is trained again is compared with it anyway.
    """
    goals, searcher = job.plan.goals, job.plan.searcher
    ranked = finalists(history, job.plan.lead)
    if ranked and isinstance(searcher, Auto) and searcher.ranks:
        longest = [t for t in ranked if t.fidelity == ranked[0].fidelity]
        ordered = searcher.ranked(job.space, longest, rng(job.seed(SEARCH), "ranked"))
        default = default_of(job) if job.plan.top_k > 1 else None
        own = None if default is None else architecture_hash(job.space, default)
        ordered.sort(key=lambda t: architecture_hash(job.space, t.genotype) == own)
        return [*ordered, *ranked[len(longest) :]]
    return front_first(ranked, goals)


def front_first(ranked: Sequence[Trial], goals: Goals) -> list[Trial]:
    """Trials, ranked by the first objective, with those of the front before all others.

    Otherwise one that another beats could be trained, where both are equal in the first objective.
    """
    longest = [t for t in ranked if t.fidelity == ranked[0].fidelity]
    best = {t.number for t in goals.front(longest)} if len(goals.objectives) > 1 else set()
    return sorted(ranked, key=lambda t: t.number not in best)


# -- what proposes -----------------------------------------------------------------------------------


def scheduler(job: Job, searcher: Searcher, fidelity: int) -> Scheduler:
    """Decides how long each trial trains; `fidelity` is that of the fixed one."""
    ladder, eta, goals = job.plan.ladder, job.config.eta, job.plan.goals
    match job.config.scheduler:
        case "successive-halving":
            return SuccessiveHalving(searcher, ladder, eta, goals, _enough(searcher))
        case "hyperband":
            return Hyperband(searcher, ladder, eta, goals, _enough(searcher))
    return Fixed(searcher, fidelity)


def _enough(searcher: Searcher) -> int:
    """Trials that a rung must have before the searcher sees it: no fewer than it draws at random at first."""
    match searcher:
        case Bounded() | DefaultFirst():
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
        earlier = _earlier(Path(job.plan.earlier), job.space, job.plan.goals, enough=_enough(searcher))
        searcher = replace(searcher, earlier=earlier)
    if job.plan.proxies:
        searcher = replace(searcher, describe=Scored(job.space, job.search_task, job.plan.proxies))
    if isinstance(searcher, Auto):
        searcher = replace(searcher, default=default_of(job))
    return searcher


def alpha_seeds(job: Job) -> list[Genotype]:
    """The best fifth of an earlier run's trials, which the alphas start from; empty where none is named."""
    folder = job.config.seed_alphas
    if folder is None:
        return []
    tried = finalists(Study.read(Path(folder), SEARCH, job.space), job.plan.goals)
    if not tried:
        raise ConfigError(f"seed_alphas: {folder} holds no finished trial of space {job.space.name!r}")
    return [trial.genotype for trial in tried[: max(1, len(tried) // 5)]]


def _earlier(folder: Path, space: Space, goals: Goals, *, enough: int) -> tuple[Trial, ...]:
    """The trials of an earlier run; of one on a ladder those of one rung, for values must be comparable."""
    trials = Study.read(folder, SEARCH, space)
    done = [trial for trial in trials if trial.state == "done"]
    if not done:
        raise ConfigError(f"searcher.earlier: {folder} holds no finished trial to learn from")
    if is_file(folder / "run.json") and by_gradients(str(read_run(folder)["config"].get("method"))):
        raise ConfigError(
            f"searcher.earlier: {folder} searched by gradients, and its accuracies are those of a supernet; "
            "name a run by trials"
        )
    for trial in done:
        goals.check(trial)
    return tuple(comparable(trials, sorted({trial.fidelity for trial in done}), enough=enough))


def fitting(job: Job, searcher: Searcher, evaluate: Evaluate) -> Searcher:
    """The searcher kept below what ran out of memory before it, where trials are trained."""
    if not isinstance(evaluate, Trained | Laddered):
        return searcher
    needed, memory = evaluate.needed_bytes, memory_bytes(job.device)

    def fits(genotype: Genotype, history: Sequence[Trial]) -> bool:
        trial = Trial(0, genotype, job.plan.ladder.granted[0])
        return too_large(trial, history, needed, memory) is None

    return Bounded(searcher, fits)


# -- what measures -----------------------------------------------------------------------------------


def _trained(job: Job) -> Evaluate:
    """From scratch, or from the weights of a parent, for one rung of all images at full size.

    Else up the ladder.
    """
    ladder, folder, parents = job.plan.ladder, job.folder / CHECKPOINT, job.config.warm_start == "parent"
    shared = job.space, job.search_task, job.plan.trial
    if len(ladder) == 1 and ladder.rungs[0] == Fidelity(ladder.rungs[0].epochs):
        weights = folder / "weights" if parents else None
        return Trained(*shared, folder=folder, stop=job.stop, weights=weights)
    if parents:
        raise ConfigError(
            "warm_start is parent, but trials on a ladder continue their own training; remove it"
        )
    return Laddered(*shared, ladder, folder / "ladder", seed=job.seed(SEARCH), stop=job.stop)


def costs_of(job: Job, timed: Callable[[], Iterable[Trial]]) -> Callable[[Trial], Mapping[str, float]]:
    """The costs that the goals need, of the last network. timed: trials that may have been timed before."""
    wanted, given = job.plan.goals.metrics, (job.problem.val, *LOSSES)
    if not set(wanted) - set(given):
        return lambda _: {}
    shape, table = job.task.image_shape, job.latency_table
    return Costs(job.final, shape, job.device, wanted, table=table, timed=timed, given=given)


def measure_of(job: Job, evaluate: Evaluate, *, study: Study, others: Sequence[Trial] = ()) -> Measure:
    """How trials are measured: by an evaluator, with the costs that the goals need.

    What is known to run out of memory is not trained, and a trial ends that will hardly beat the best one so
    far, where the job wants that.

    study: of the trials. others: trials that were measured before it began.
    """
    memory, early_stop, goals = memory_bytes(job.device), job.config.early_stop, job.plan.goals
    costs = costs_of(job, lambda: (*others, *study.history))
    if not isinstance(evaluate, Trained | Laddered):
        return Measure(evaluate, costs=costs)

    def hints(trial: Trial, known: Sequence[Trial]) -> Mapping[str, object]:
        if not isinstance(evaluate, Trained):
            return {}
        done = [t.metrics[job.problem.val] for t in goals.kept_by(known)] if early_stop else []
        return {
            **evaluate.hints(trial, known),
            **({"should_stop": EarlyStop(max(done), early_stop)} if done else {}),
        }

    def refuses(trial: Trial, before: Sequence[Trial]) -> TrialError | None:
        return too_large(trial, [*others, *before], evaluate.needed_bytes, memory)

    return Measure(evaluate, hints=hints, refuses=refuses, costs=costs)


# -- where and how long ------------------------------------------------------------------------------


def run_trials(
    job: Job,
    study: Study,
    evaluate: Evaluate,
    trials: int,
    *,
    what: str,
    others: Sequence[Trial] = (),
    until_spent_s: float | None = None,
    stops_at_failures: bool = False,
) -> str:
    """Runs the trials of a study where the job evaluates them; why they came to an end.

    what: the study is called for the user. others: trials that were measured before it began.
    until_spent_s: when the trials of all workers have taken so many seconds, no more are begun.
    stops_at_failures: after as many in a row as the settings say, as for a search. Trainings that are listed
      beforehand are all made, as many side by side as the machine bears.
    """
    job.progress.phase(what, trials if trials < UNBOUNDED else None, done=study.ended)
    job.tracking.tell(of_trials(study.name, study.history))

    def enough() -> bool:
        job.check_stop(f"{what} stopped after {counted(study.ended, 'trial')}")
        return until_spent_s is not None and study.ended > 0 and study.spent_s >= until_spent_s

    def told(trial: Trial) -> None:
        job.progress.advance(trial_line(trial, job.problem))
        job.tracking.tell(of_trials(study.name, [trial]))

    with workers(job, evaluate, beside=not stops_at_failures) as found:
        if found is not None and isinstance(evaluate, Trained | Laddered):
            evaluate = replace(evaluate, stop=None)  # a worker asks nobody whether to stop
        return study.run(
            measure_of(job, evaluate, study=study, others=others),
            trials=trials,
            stop=enough,
            on_trial=told,
            max_failures=job.config.max_failures if stops_at_failures else trials + 1,
            workers=found,
        )


@contextmanager
def workers(job: Job, evaluate: Evaluate, *, beside: bool) -> Iterator[Workers | None]:
    """Where trials are evaluated for a block; None is this process.

    beside: for trainings that do not wait for each other, of which this machine makes as many at a time as it
      bears, each with one thread; else as many as the job has workers. One at a time where latencies are
      measured, which others would disturb.
    """
    if not isinstance(evaluate, Trained | Laddered) or (job.executor is None and job.processes is None):
        yield None
        return
    gpus = [] if job.processes is None else job.processes.gpus
    count = at_a_time(job.config.workers, gpus)
    slots: Sequence[Slot]
    if job.executor is not None:
        slots = [Borrowed(job.executor) for _ in range(count)]
    else:
        assert job.processes is not None
        disturbed = LATENCY in job.plan.goals.metrics and job.latency_table is None
        count = (1 if disturbed else places_on(job.device)) if beside else count
        alone = count == 1 and not beside
        threads = int(job.clock.decide(f"threads {SEARCH}", lambda: [1, 0.0])[0]) if alone else 1
        slots = job.processes.slots(count, threads=threads)
    found = Workers(
        slots,
        job.folder / CHECKPOINT / "workers",
        ordered=job.executor is None and not job.config.asynchronous,
        timeout_s=job.config.trial_timeout,
        stop=job.stop,
    )
    try:
        yield found
    finally:
        found.close()


def trial_line(trial: Trial, problem: Problem) -> str:
    """One ended trial in words. problem: whose metric is told first."""
    if trial.state == "failed":
        return f"trial {trial.number}: failed, {trial.reason}"
    metrics = trial.metrics
    rate = f", at {metrics[LR_FACTOR]:g} times the learning rate" if LR_FACTOR in metrics else ""
    size = f", {metrics['params']:,.0f} parameters" if "params" in metrics else ""
    if problem.val in metrics:
        score = f"validation {problem.words} {problem.text(metrics[problem.val])}{size}{rate}"
    else:
        score = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    return f"trial {trial.number}: {score}, {trial.cost_s:.1f} s"
