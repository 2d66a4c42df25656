"""The best of a search and of its baselines trained again with fresh seeds: who is best, and how sure is it.

The best of many noisy scores is partly the luckiest one (the winner's curse). Fresh trainings are free of
the luck of training, and on the same images they can be compared in pairs. They are not free of the luck of
the images, which search and random search went by already: only the test accuracy has no bias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nas.budget.clock import TimeUp
from nas.budget.threads import threads
from nas.data.unpacking import load_arrays
from nas.errors import NoModelError, TrialError
from nas.evaluation.comparison import LEVEL, Paired, paired
from nas.evaluation.evaluators import Start, Trained
from nas.evaluation.failures import diagnosis
from nas.files.atomic import replacing
from nas.goals import Goals
from nas.graph import architecture_hash
from nas.job.job import Job
from nas.job.trial_setup import apart, telling, with_costs
from nas.results.run_record import CHECKPOINT, DEFAULT, RANDOM, RERANK, SEARCH
from nas.schedulers.scheduler import Listed
from nas.seeding import rng
from nas.study import Study
from nas.task import Task
from nas.text import counted
from nas.tracking.points import of_trials
from nas.training.accuracy import predictions
from nas.types import Genotype, Trial

ENOUGH_EPOCHS = 10
"""Accuracies after 3 epochs hardly rank architectures as those after 10 do (Spearman .13 to .26)."""


@dataclass(frozen=True, eq=False)
class Verdict:
    """The outcome of the fresh trainings.

    best: the architecture to train in full. found_by: `search`, or the name of the baseline that it is from;
      the default and random search's choice are taken unless they are beaten, see `_chosen`.
    rivals: what was compared with, by name.
    metrics: mean validation accuracies and, for each baseline, `NAME_delta` with its 95 % interval and `p`.
      That of the best, `rerank_val_acc`, is the highest of all and so partly luck.
    statements: the comparisons in words.
    """

    best: Genotype
    found_by: str
    metrics: Mapping[str, float]
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
        return Verdict(candidates[0], SEARCH, {})
    rivals = {name: _first_like(job, rival, candidates) for name, rival in rivals.items()}
    genotypes = tuple(dict.fromkeys([*candidates, *rivals.values()]))
    job = job.until(until_s)
    measure = _evaluator(job, start)
    study = _train(job, genotypes, measure)
    means = {g: mean for g in genotypes if (mean := _mean(study.history, g)) is not None}
    if not means and study.ended < len(genotypes) and until_s is not None:
        return Verdict(candidates[0], SEARCH, {}, (), rivals)
    if not means:
        raise NoModelError(f"all {len(genotypes)} candidates failed:{diagnosis(study.history)}")
    own = next((g for g in candidates if g in means), None)
    metrics: dict[str, float] = {"rerank_seconds": study.spent_s, "rerank_seeds": job.plan.seeds}
    statements: list[str] = []
    if job.plan.top_k_epochs < ENOUGH_EPOCHS:
        statements.append(
            f"the fresh trainings, of {counted(job.plan.top_k_epochs, 'epoch')}, are too short to tell much "
            f"of longer ones; about {ENOUGH_EPOCHS} are needed"
        )
    if own is not None:
        metrics["first_val_acc"] = means[own].metrics["val_acc"]
    for name, rival in rivals.items():
        if rival in means and own is not None:
            metrics[f"{name}_val_acc"] = means[rival].metrics["val_acc"]
            compared = _compare(job, study.history, measure, own, rival)
            if compared is None:
                gone = "the predictions of earlier trainings are gone"
                statements.append(f"{_FIRST} and {_WORDS[name]} are not compared: {gone}")
                continue
            metrics |= _numbers(name, compared)
            same = f"{_FIRST} is {_WORDS[name]}, too"
            different = compared.statement(_FIRST, _WORDS[name])
            statements.append(same if rival == own else different)
    trusted = {name: rivals[name] for name in (DEFAULT, RANDOM) if rivals.get(name) in means}
    compare = partial(_compare, job, study.history, measure)
    best, told = _chosen(job, means, trusted, compare)
    statements += [told] if told else []
    metrics["rerank_val_acc"] = means[best].metrics["val_acc"]
    found_by = next(
        (n for n, g in rivals.items() if g == best and (n == DEFAULT or g not in candidates)), SEARCH
    )
    if found_by == SEARCH and own not in (None, best):
        before, after = metrics["first_val_acc"], metrics["rerank_val_acc"]
        statements.append(
            f"another candidate of the search is taken, of validation accuracy {after:.4f} in fresh "
            f"trainings; the first choice has {before:.4f}"
        )
    return Verdict(best, found_by, metrics, tuple(statements), rivals)


_FIRST = "the first choice of the search"
_WORDS = {
    DEFAULT: "the default architecture",
    RANDOM: "that of random search at equal cost",
    "largest": "the largest of the random ones",
}


def _chosen(
    job: Job,
    means: Mapping[Genotype, Trial],
    trusted: Mapping[str, Genotype],
    compare: Callable[[Genotype, Genotype], Paired | None],
) -> tuple[Genotype, str]:
    """The architecture to deliver; where it is not the best of the fresh trainings, also why, in words.

    It is the best one that beats the default by more than the standard error of the difference, and random
    search's choice significantly (p < 0.05), because the best of several candidates is partly the luckiest.
    Where accuracy is not the first objective, the best of all is taken. What breaks constraints more need not
    be beaten.

    trusted: the architectures that others must beat, by name, the most trusted first.
    """
    lead = job.plan.lead

    def unbeaten(own: Genotype) -> str:
        for name, other in trusted.items():
            if own == other:
                return ""
            if lead.violation(means[other].metrics) > lead.violation(means[own].metrics):
                continue
            gain, what = compare(own, other), f"better than {_WORDS[name]}"
            if gain is None:
                return what
            told = f"({100 * gain.delta:+.2f} points, error {100 * gain.error:.2f}, p = {gain.p:.2g})"
            if name == RANDOM and (gain.delta <= 0 or gain.p >= LEVEL):
                return f"significantly {what} {told}"
            if gain.delta <= gain.error:
                return f"{what} by more than the standard error {told}"
        return ""

    ranked = [trial.genotype for trial in lead.ordered(list(means.values()))]
    if lead.objectives != Goals().objectives or not (reason := unbeaten(ranked[0])):
        return ranked[0], ""
    best = next(genotype for genotype in ranked if not unbeaten(genotype))
    taken = next(
        (_WORDS[name] for name, genotype in trusted.items() if genotype == best), "another candidate"
    )
    return best, f"the best in fresh trainings is not {reason}: {taken} is taken"


def _first_like(job: Job, genotype: Genotype, candidates: Sequence[Genotype]) -> Genotype:
    """The candidate that is isomorphic to an architecture, else the architecture itself."""
    name = architecture_hash(job.space, genotype)
    return next((g for g in candidates if architecture_hash(job.space, g) == name), genotype)


def _evaluator(job: Job, start: Start | None) -> Trained:
    """Trains as the trials are trained, and keeps which validation images were right."""
    folder, task = job.folder / CHECKPOINT / RERANK, job.search_task
    folder.mkdir(parents=True, exist_ok=True)
    judge = _Hits(folder, task)
    return Trained(job.space, task, job.plan.trial, folder=folder, judge=judge, stop=job.stop, start=start)


def _train(job: Job, genotypes: tuple[Genotype, ...], measure: Trained) -> Study:
    study = Study(
        job.space,
        Listed(genotypes, job.plan.top_k_epochs, job.plan.seeds),
        job.storage,
        name=RERANK,
        seed=job.seed(RERANK),
        goals=job.plan.goals,
    )
    trainings = len(genotypes) * job.plan.seeds
    job.progress.phase("re-evaluation", trainings, done=study.ended)
    job.tracking.tell(of_trials(study.name, study.history))

    def stop() -> bool:
        job.check_stop("re-evaluation stopped")
        return False

    evaluate, places = apart(job, measure)
    try:
        study.run(
            with_costs(job, evaluate, study.history),
            trials=trainings,
            stop=stop,
            on_trial=telling(job, study.name),
            max_failures=trainings + 1,
            places=places,
        )
    except TimeUp as error:
        job.progress.note(f"{study.ended} of {trainings} trainings are what is compared: {error}")
    return study


@dataclass(frozen=True, eq=False)
class _Hits:
    """Leaves which validation images a trained network gets right."""

    folder: Path
    task: Task

    def __call__(self, trial: Trial, network: nn.Module) -> None:
        hits = predictions(network, self.task, self.task.val) == self.task.val.y
        # Opened here, because numpy would add an ending to the temporary name.
        with replacing(_hits_path(self.folder, trial.number)) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, hits=hits.cpu().numpy())


def _mean(history: Sequence[Trial], genotype: Genotype) -> Trial | None:
    """One trial with the mean metrics of an architecture's trainings; None where one of them failed."""
    own = [t for t in history if t.genotype == genotype and t.state != "running"]
    if not own or any(t.state != "done" for t in own):
        return None
    # What only some trainings have (a second chance, say) has no mean.
    common = [name for name in own[0].metrics if all(name in t.metrics for t in own)]
    metrics = {name: float(np.mean([t.metrics[name] for t in own])) for name in common}
    return Trial(own[0].number, genotype, own[0].fidelity, "done", metrics)


def _compare(
    job: Job, history: Sequence[Trial], measure: Trained, own: Genotype, rival: Genotype
) -> Paired | None:
    """The two in pairs; None where predictions are gone, and there is no time to train for them again."""
    done = [[t for t in history if t.genotype == g and t.state == "done"] for g in (own, rival)]
    most = min(map(len, done))  # of a re-evaluation that was cut off, the rounds that both have done
    try:
        own_hits, rival_hits = (np.stack([_hits(job, t, measure) for t in ts[:most]]) for ts in done)
    except (TimeUp, TrialError):
        return None
    seed_sd, degrees = _seed_sd(history)
    return paired(own_hits, rival_hits, seed_sd=seed_sd, seed_degrees=degrees)


def _seed_sd(history: Sequence[Trial]) -> tuple[float, int]:
    """How much validation accuracy varies with the seed, pooled over all architectures; 0 if unknown.

    And the degrees of freedom of this estimate.
    """
    by_genotype: dict[Genotype, list[float]] = {}
    for trial in history:
        if trial.state == "done":
            by_genotype.setdefault(trial.genotype, []).append(trial.metrics["val_acc"])
    repeated = [values for values in by_genotype.values() if len(values) > 1]
    degrees = sum(len(values) - 1 for values in repeated)
    squares = sum(float(np.var(values)) * len(values) for values in repeated)
    return ((squares / degrees) ** 0.5 if degrees else 0.0), degrees


def _hits(job: Job, trial: Trial, measure: Trained) -> NDArray[np.bool_]:
    """Which validation images a training got right; one whose predictions are lost or damaged is repeated."""
    folder = job.folder / CHECKPOINT / RERANK
    for _ in range(2):
        try:
            hits = load_arrays(_hits_path(folder, trial.number), ["hits"])[0]["hits"].astype(bool)
            if len(hits) == len(job.search_task.val):
                return hits
        except (KeyError, TypeError, ValueError):
            pass
        job.progress.note(f"the predictions of fresh training {trial.number} are gone; it is repeated")
        with threads(torch.get_num_threads() if job.processes is None else 1):  # as it was trained before
            measure(trial, rng(job.seed(RERANK), RERANK, trial.number, "evaluate"))
    raise TrialError("error", f"{_hits_path(folder, trial.number)} cannot be read")


def _hits_path(folder: Path, number: int) -> Path:
    return folder / f"hits-{number}.npz"


def _numbers(name: str, compared: Paired) -> dict[str, float]:
    return {
        f"{name}_delta": compared.delta,
        f"{name}_delta_low": compared.low,
        f"{name}_delta_high": compared.high,
        f"{name}_p": compared.p,
    }
