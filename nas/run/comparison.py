"""What a search has to beat, and whether it did: random search at equal cost, fresh trainings of the best.

Equal cost is counted, not timed, so that it does not depend on how busy the machine is.

The best of many noisy scores is partly the luckiest one (the winner's curse). Fresh trainings are free of
the luck of training, and on the same images they can be compared in pairs. They are not free of the luck of
the images, which search and random search went by already: only the test score has no bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nas.data.decode import load_arrays
from nas.data.task import Task
from nas.errors import NoModelError, TrialError, counted
from nas.evaluate.failure_summary import diagnosis
from nas.evaluate.significance import LEVEL, Paired, Scores, paired
from nas.evaluate.trained import Start, Trained
from nas.files.atomic import replacing
from nas.results.run_record import CHECKPOINT, DEFAULT, RANDOM, RERANK, SEARCH
from nas.run.black_box import fitting, run_trials
from nas.run.final_network import bounded, default_of
from nas.run.job import Job, SearchOutcome, TimeUp
from nas.run.step_timing import threads
from nas.searchers.auto import Auto
from nas.searchers.goals import Goals, longest
from nas.searchers.pareto import hypervolume
from nas.searchers.scheduler import Fixed, Listed, epochs_granted, finalists
from nas.searchers.searcher import RandomSearch
from nas.seeding import isolated, rng
from nas.space.cost import step_work
from nas.space.graph import architecture_hash
from nas.space.space import Space
from nas.study.study import Study
from nas.training.evaluate import judged
from nas.training.train import Control, train
from nas.types import Genotype, Trial
from nas.user_code import user_errors

LARGEST = "largest"
"""The name of the second baseline in metrics and pictures; that of the first is that of its study."""
SAMPLE = 3
"""Random architectures whose training stands for that of all."""
ENOUGH_EPOCHS = 10
"""Accuracies after 3 epochs hardly rank architectures as those after 10 do (Spearman .13 to .26)."""

_FIRST = "the first choice of the search"
_WORDS = {
    DEFAULT: "the default architecture",
    RANDOM: "that of random search at equal cost",
    LARGEST: "the largest of the random ones",
}


# -- random search at equal cost ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Baselines:
    """The trials of random search, and the architecture that each baseline would have chosen, by name."""

    history: Sequence[Trial] = ()
    choices: Mapping[str, Genotype] = field(default_factory=dict)


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
        return Baselines()
    own = default_of(job) if job.is_own_baseline else None  # which is a baseline by itself
    done = [trial for trial in job.plan.goals.kept_by(history) if trial.genotype != own]
    if not done:
        job.progress.note(
            "random search found no architecture to compare with: all its trials failed or broke a constraint"
        )
        return Baselines(history)
    largest = max(done, key=lambda t: t.metrics["macs"])
    return Baselines(history, {RANDOM: finalists(done, job.plan.lead)[0].genotype, LARGEST: largest.genotype})


def _random(job: Job, found: SearchOutcome) -> list[Trial]:
    evaluate, epochs = found.measure, found.fidelity
    if evaluate is None or isinstance(evaluate, Trained):  # its checkpoints are apart from the search's
        folder = job.folder / CHECKPOINT / RANDOM
        evaluate = Trained(job.space, job.search_task, job.plan.trial, folder=folder, stop=job.stop)
    if found.measure is None:
        epochs = job.plan.trial.epochs
    study = job.study(
        RANDOM,
        Fixed(fitting(job, bounded(job, RandomSearch()), evaluate), epochs),
        announce=not job.config.shares_weights,
        alike=partial(architecture_hash, job.space),
        others=found.history if found.measure is not None else (),
    )
    trials = _equal_trials(job, found)
    run_trials(job, study, evaluate, trials, what="random search at equal cost", others=found.history)
    return study.history


def _equal_trials(job: Job, found: SearchOutcome) -> int:
    """The number of random trials of equal cost."""
    granted, history = job.plan.ladder.granted, found.history
    if found.measure is None:
        job.progress.note("counting what a step of the search and of a trial cost")
        from nas.oneshot.search import search_work

        each = _trial_work(job)
        work = search_work(job.space, job.search_task, job.plan.method, len(history)) if each else 0.0
        trials = work / each if each else 1.0
    elif job.config.early_stop:
        trials = sum(t.metrics.get("epochs_trained", t.fidelity) for t in history) / found.fidelity
    elif len(granted) == 1 or job.config.shares_weights:
        return len(history)
    else:
        trials = epochs_granted(history, granted) / granted[-1]
    return max(1, round(trials))


def _trial_work(job: Job) -> float:
    """Of a trial, the mean of a few random architectures; 0 where none of them can be trained."""
    draw, found = rng(job.seed("work"), "sample"), list[float]()
    for genotype in [job.space.sample(draw) for _ in range(SAMPLE)]:
        try:
            found.append(_step_work(job, genotype))
        except TrialError:  # of one architecture; others can be trained
            continue
    steps = job.plan.trial.epochs * max(1, len(job.search_task.train) // job.plan.trial.batch)
    return steps * sum(found) / len(found) if found else 0.0


def _step_work(job: Job, genotype: Genotype) -> float:
    recipe = replace(job.plan.trial, graph=False)
    with user_errors(), isolated(0, "work"):
        network = job.space.network(genotype).to(job.device)
        return step_work(
            lambda stop: train(network, job.search_task, recipe, seed=0, control=Control(stop=stop))
        )


def volumes(goals: Goals, searched: Sequence[Trial], drawn: Sequence[Trial]) -> dict[str, float]:
    """With several objectives, the hypervolumes of search and random search above their common worst.

    Each is that of the trials of its longest training.
    """
    kept = {"": longest(searched, goals), f"{RANDOM}_": longest(drawn, goals)}
    if len(goals.objectives) == 1 or not kept[""]:
        return {}
    scores = {name: goals.table(trials)[0] for name, trials in kept.items() if trials}
    worst = np.min([table.min(0) for table in scores.values()], axis=0)
    best = np.max([table.max(0) for table in scores.values()], axis=0)
    scale = np.where(best > worst, best - worst, 1.0)
    return {
        f"{name}hypervolume": hypervolume((table - worst) / scale, np.full(len(worst), -0.05))
        for name, table in scores.items()
    }


# -- fresh trainings ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Verdict:
    """The outcome of the fresh trainings.

    best: the architecture to train in full. found_by: `search`, or the name of the baseline that it is from;
      the default and random search's choice are taken unless they are beaten, see `_chosen`.
    rivals: what was compared with, by name.
    metrics: mean validation metrics and, for each baseline, `NAME_delta` with its 95 % interval and `p`.
      That of the best, e.g. `rerank_val_acc`, is the highest of all and so partly luck.
    statements: the comparisons in words.
    """

    best: Genotype
    found_by: str = SEARCH
    metrics: Mapping[str, float] = field(default_factory=dict)
    statements: tuple[str, ...] = ()
    rivals: Mapping[str, Genotype] = field(default_factory=dict)


def rerank(
    job: Job,
    candidates: Sequence[Genotype],
    rivals: Mapping[str, Genotype],
    *,
    start: Start | None = None,
    until_s: float | None = None,
) -> Verdict:
    """Trains candidates and rivals, as often each as there are seeds, and compares them.

    The best of all is chosen for the last training. Compared with each rival is the candidate that the search
    itself ranks first, not the best by the same fresh scores: that one would be partly the luckiest again.

    start: what each training begins with; from scratch unless given.
    until_s: when it has to be over, by the job's clock; of what was trained by then the best is chosen.
    """
    if len(candidates) == 1 and not rivals:
        return Verdict(candidates[0])
    rivals = {name: _first_like(job.space, rival, candidates) for name, rival in rivals.items()}
    genotypes = tuple(dict.fromkeys([*candidates, *rivals.values()]))
    fresh = _trained(job.until(until_s), genotypes, start)
    means = {g: mean for g in genotypes if (mean := fresh.mean(g)) is not None}
    if not means and fresh.study.ended < len(genotypes) and until_s is not None:
        return Verdict(candidates[0], rivals=rivals)
    if not means:
        raise NoModelError(f"all {len(genotypes)} candidates failed:{diagnosis(fresh.study.history)}")
    metrics: dict[str, float] = {"rerank_seconds": fresh.study.spent_s, "rerank_seeds": job.plan.repeats}
    statements: list[str] = []
    problem = job.problem
    if job.plan.top_k_epochs < ENOUGH_EPOCHS:
        statements.append(
            f"the fresh trainings, of {counted(job.plan.top_k_epochs, 'epoch')}, are too short to tell much "
            f"of longer ones; about {ENOUGH_EPOCHS} are needed"
        )
    own = next((g for g in candidates if g in means), None)
    if own is not None:
        metrics[f"first_{problem.val}"] = means[own].metrics[problem.val]
        for name, rival in rivals.items():
            if rival in means:
                metrics[f"{name}_{problem.val}"] = means[rival].metrics[problem.val]
                compared = fresh.compare(own, rival)
                metrics |= _numbers(name, compared)
                statements.append(_told(name, compared, same=rival == own))
    trusted = {name: means[rivals[name]] for name in (DEFAULT, RANDOM) if rivals.get(name) in means}
    searcher = job.plan.searcher
    shrunk = candidates if isinstance(searcher, Auto) and searcher.ranks else ()
    best, told = _chosen(fresh, list(means.values()), trusted, shrunk)
    statements += [told] if told else []
    metrics[f"rerank_{problem.val}"] = means[best].metrics[problem.val]
    found_by = next(
        (n for n, g in rivals.items() if g == best and (n == DEFAULT or g not in candidates)), SEARCH
    )
    if found_by == SEARCH and own not in (None, best):
        before, after = (problem.text(metrics[f"{name}_{problem.val}"]) for name in ("first", "rerank"))
        statements.append(
            f"another candidate of the search is taken, of validation {problem.words} {after} in fresh "
            f"trainings; the first choice has {before}"
        )
    return Verdict(best, found_by, metrics, tuple(statements), rivals)


def _first_like(space: Space, genotype: Genotype, candidates: Sequence[Genotype]) -> Genotype:
    """The candidate that is isomorphic to an architecture, else the architecture itself."""
    name = architecture_hash(space, genotype)
    return next((g for g in candidates if architecture_hash(space, g) == name), genotype)


def _numbers(name: str, compared: Paired | None) -> dict[str, float]:
    if compared is None:
        return {}
    return {
        f"{name}_delta": compared.delta,
        f"{name}_delta_low": compared.low,
        f"{name}_delta_high": compared.high,
        f"{name}_p": compared.p,
    }


def _told(name: str, compared: Paired | None, *, same: bool) -> str:
    if compared is None:
        return f"{_FIRST} and {_WORDS[name]} are not compared: the predictions of earlier trainings are gone"
    return f"{_FIRST} is {_WORDS[name]}, too" if same else compared.statement(_FIRST, _WORDS[name])


def _chosen(
    fresh: _Fresh, means: Sequence[Trial], trusted: Mapping[str, Trial], shrunk: Sequence[Genotype]
) -> tuple[Genotype, str]:
    """The architecture to deliver; where it is not the best of the fresh trainings, also why, in words.

    It is the best one that beats the default by more than the standard error of the difference, and random
    search's choice significantly (p < 0.05), because the best of several candidates is partly the luckiest;
    what was ranked by a model that expects luck need only be better.
    Where the problem's metric is not the first objective, the best of all is taken. What breaks constraints
    more need not be beaten.

    trusted: what others must beat, by name, the most trusted first.
    shrunk: what was found by a model that expects luck, and so need only be better than these.
    """
    lead = fresh.job.plan.lead

    def unbeaten(own: Trial) -> str:
        for name, other in trusted.items():
            if own == other:
                return ""
            if lead.violation(other.metrics) > lead.violation(own.metrics):
                continue
            gain, what = fresh.compare(own.genotype, other.genotype), f"better than {_WORDS[name]}"
            if gain is None:
                return what
            if own.genotype in shrunk:
                if gain.delta <= 0:
                    return f"{what} ({gain})"
            elif name == RANDOM and (gain.delta <= 0 or gain.p >= LEVEL):
                return f"significantly {what} ({gain})"
            elif gain.delta <= gain.error:
                return f"{what} by more than the standard error ({gain})"
        return ""

    ranked = lead.ordered(means)
    if lead.objectives != (fresh.job.problem.objective,) or not (reason := unbeaten(ranked[0])):
        return ranked[0].genotype, ""
    best = next(trial for trial in ranked if not unbeaten(trial))
    taken = next((_WORDS[name] for name, trial in trusted.items() if trial == best), "another candidate")
    return best.genotype, f"the best in fresh trainings is not {reason}: {taken} is taken"


def _trained(job: Job, genotypes: tuple[Genotype, ...], start: Start | None) -> _Fresh:
    """Trains as the trials are trained, and keeps the scores of the validation images."""
    folder, task, plan = job.folder / CHECKPOINT / RERANK, job.search_task, job.plan
    folder.mkdir(parents=True, exist_ok=True)
    judge = _Scores(folder, task)
    measure = Trained(job.space, task, plan.trial, folder=folder, judge=judge, stop=job.stop, start=start)
    study = job.study(RERANK, Listed(genotypes, plan.top_k_epochs, plan.repeats))
    trainings = len(genotypes) * plan.repeats
    try:
        run_trials(job, study, measure, trials=trainings, what="re-evaluation")
    except TimeUp as error:
        job.progress.note(f"{study.ended} of {trainings} trainings are what is compared: {error}")
    return _Fresh(job, study, measure, judge)


@dataclass(frozen=True, eq=False)
class _Scores:
    """Leaves the scores of a trained network on the validation images, larger better."""

    folder: Path
    task: Task

    def __call__(self, trial: Trial, network: nn.Module) -> None:
        scores = judged(network, self.task, self.task.val)[1]
        scores = scores if self.task.problem.maximize else -scores
        # Opened here, because numpy would add an ending to the temporary name.
        with replacing(self.path(trial)) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, scores=scores.cpu().numpy())

    def read(self, trial: Trial) -> Scores | None:
        """What was left of a trial; None where it is lost, damaged, or of other images."""
        try:
            scores = load_arrays(self.path(trial), ["scores"])[0]["scores"]
        except (KeyError, TypeError, ValueError):
            return None
        return scores if scores.shape == (len(self.task.val),) else None

    def path(self, trial: Trial) -> Path:
        """The file of a trial."""
        return self.folder / f"scores-{trial.number}.npz"


@dataclass(frozen=True, eq=False)
class _Fresh:
    """Fresh trainings: their study, how each was measured, and how its network did on each image."""

    job: Job
    study: Study
    measure: Trained
    scores: _Scores

    def done(self, genotype: Genotype) -> list[Trial]:
        """The finished trainings of an architecture."""
        return [t for t in self.study.history if t.genotype == genotype and t.state == "done"]

    def mean(self, genotype: Genotype) -> Trial | None:
        """One trial with the mean metrics of an architecture's trainings; None where one of them failed."""
        done = self.done(genotype)
        if not done or any(t.genotype == genotype and t.state == "failed" for t in self.study.history):
            return None
        # What only some trainings have (a second chance, say) has no mean.
        common = [name for name in done[0].metrics if all(name in t.metrics for t in done)]
        metrics = {name: float(np.mean([t.metrics[name] for t in done])) for name in common}
        return replace(done[0], metrics=metrics)

    def compare(self, own: Genotype, rival: Genotype) -> Paired | None:
        """The two in pairs; None where predictions are gone, and there is no time to train for them again."""
        done = [self.done(own), self.done(rival)]
        most = min(map(len, done))  # of a re-evaluation that was cut off, the rounds that both have done
        try:
            own_scores, rival_scores = (np.stack([self._scores_of(t) for t in ts[:most]]) for ts in done)
        except (TimeUp, TrialError):
            return None
        seed_sd, degrees = self._seed_sd()
        return paired(own_scores, rival_scores, seed_sd=seed_sd, seed_degrees=degrees)

    def _scores_of(self, trial: Trial) -> Scores:
        """Of a training on the validation images; one whose predictions are gone is repeated."""
        if (found := self.scores.read(trial)) is not None:
            return found
        job = self.job
        job.progress.note(f"the predictions of fresh training {trial.number} are gone; it is repeated")
        with threads(torch.get_num_threads() if job.processes is None else 1):  # as it was trained before
            self.measure(trial, rng(job.seed(RERANK), RERANK, trial.number, "evaluate"))
        if (found := self.scores.read(trial)) is None:
            raise TrialError("error", f"{self.scores.path(trial)} cannot be read")
        return found

    def _seed_sd(self) -> tuple[float, int]:
        """How much the validation metric varies with the seed, pooled over all architectures; 0 if unknown.

        And the degrees of freedom of this estimate.
        """
        genotypes = {t.genotype for t in self.study.history}
        values = [[t.metrics[self.job.problem.val] for t in self.done(genotype)] for genotype in genotypes]
        degrees = sum(len(own) - 1 for own in values if own)
        squares = sum(float(np.var(own)) * len(own) for own in values if own)
        return ((squares / degrees) ** 0.5 if degrees else 0.0), degrees
