"""A job within its budget: what is measured ahead, how phases share the time, what the last one can do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nas import devices
from nas.budget.pace import network_pace
from nas.budget.preview import Preview, time_text
from nas.budget.preview_phases import testing_s
from nas.budget.preview_run import preview
from nas.budget.shares import Fit, Needs, Shares, divide, fit
from nas.errors import TrialError
from nas.files.atomic import write_json
from nas.graph import architecture_hash
from nas.job.job import Job
from nas.oneshot.differentiable import looks
from nas.results.run_record import CHECKPOINT
from nas.task import Split, first_of
from nas.text import counted
from nas.training.recipe import Recipe
from nas.training.resumable import Stopped
from nas.types import Genotype

FILE = "preview.json"
SHARED = 0.7
"""Of the time of a search on shared weights, for their training."""

Tell = Callable[[Preview], bool]
"""Shows a preview; whether to go on."""


@dataclass(frozen=True)
class Ahead:
    """What was measured before a job began: seconds that it needs, and those of a step of its supernet.

    spent_s: what it had taken by then, for loading libraries and data and for the measuring.
    """

    needs: Needs
    search_step_s: float
    shared_step_s: float
    spent_s: float = 0.0


def look_ahead(job: Job, tell: Tell | None) -> Ahead | None:
    """Measures what a job will take, once in its life; None where nobody wants to know.

    Raises:
        Stopped: when `tell` says not to go on.
    """
    if tell is None and job.clock.budget_s is None:
        return None

    def measure() -> dict[str, object]:
        found = measured(job)
        spent_s = job.clock.elapsed_s  # without the time that it takes somebody to answer
        write_json(job.folder / FILE, found.to_dict())
        if tell is not None and not tell(found):
            raise Stopped("nothing was trained")
        ahead = Ahead(found.needs, found.search_step_s, found.shared_step_s, spent_s)
        return dataclasses.asdict(ahead)

    known = job.clock.decide("ahead", measure, lasting=True)
    return Ahead(**{**known, "needs": Needs(**known["needs"])})


def measured(job: Job) -> Preview:
    """The preview of a job on its device."""
    return preview(job, device=devices.describe(job.task.train.x.device))


def estimated_s(job: Job, ahead: Ahead) -> float:
    """Seconds that the whole job was estimated to take, from its beginning; at most its budget."""
    return min(ahead.spent_s + ahead.needs.total_s, job.clock.budget_s or math.inf)


def within(job: Job, ahead: Ahead) -> tuple[Job, Shares]:
    """A job with a budget, its supernet's training shortened to fit, and when its phases have to be over."""
    clock, plan, budget_s = job.clock, job.plan, job.clock.budget_s
    assert budget_s is not None
    shares = Shares(
        **clock.decide("shares", lambda: dataclasses.asdict(divide(ahead.needs, clock.elapsed_s, budget_s)))
    )
    _tell(job, shares, ahead.needs, budget_s)
    left_s, images = shares.search_s - clock.elapsed_s, len(job.search_task.train)

    def epochs(name: str, recipe: Recipe, step_s: float, left_s: float) -> Recipe:
        """The epochs of a supernet stay as they were decided first: it cannot go on in others."""
        choose = lambda: dataclasses.asdict(fit(recipe, images, step_s, left_s))  # noqa: E731
        found = Fit(**clock.decide(name, choose, lasting=True))
        if found.epochs < recipe.epochs:
            job.progress.note(
                f"budget: the supernet is trained for {counted(found.epochs, 'epoch')}, not {recipe.epochs}"
            )
        return found.of(recipe)

    if plan.searcher is None:
        weights = plan.search.weights
        per_epoch = max(1, images // weights.batch)
        first, later = (looks(job.search_task, plan.search, first=first) for first in (True, False))
        step_s = ahead.search_step_s * (per_epoch + later) / per_epoch
        left_s -= ahead.search_step_s * (first - later)
        method = dataclasses.replace(plan.search, weights=epochs("search", weights, step_s, left_s))
        plan = dataclasses.replace(plan, search=method)
    elif job.config.shares_weights:
        shared = epochs("shared", plan.shared, ahead.shared_step_s, SHARED * left_s)
        plan = dataclasses.replace(plan, shared=shared)
    return dataclasses.replace(job, plan=plan), shares


def _tell(job: Job, shares: Shares, needs: Needs, budget_s: float) -> None:
    until = f"search until {time_text(max(0.0, shares.search_s))}"
    if shares.baselines_s is not None:
        until += f", random search until {time_text(shares.baselines_s)}"
    if shares.rerank_s is not None:
        until += f", re-evaluation until {time_text(shares.rerank_s)}"
    job.progress.note(f"budget {time_text(budget_s)}: {until}, then the last training")
    left_out = {
        "random search at equal cost": needs.baselines_s and shares.baselines_s is None,
        "re-evaluation": needs.rerank_s and shares.rerank_s is None,
    }
    for name, is_left_out in left_out.items():
        if is_left_out:
            job.progress.note(f"budget: no time for {name}")


@dataclass(frozen=True, eq=False)
class Last:
    """The last training as it is done: recipe, images, where its checkpoints are, and the seconds left.

    left_s: None without a budget.
    """

    recipe: Recipe
    split: Split
    folder: Path
    left_s: Callable[[], float] | None = None


def last_training(job: Job, genotype: Genotype, ahead: Ahead | None) -> Last:
    """As planned, or where there is a budget as much of it as fits by a few steps of this very network.

    They also tell how long its test will take, on the machine as it is now.
    """
    split, folder = job.task.train_and_val(), job.folder / CHECKPOINT / "retrain"
    if job.clock.budget_s is None or ahead is None:
        return Last(job.recipe, split, folder)
    clock, writing_s = job.clock, ahead.needs.finish_s

    def choose() -> dict[str, object]:
        try:
            limit_s = 0.03 * max(0.0, clock.left_s - writing_s - ahead.needs.test_s)
            step_s = network_pace(job.final, genotype, job.task, job.recipe, split=split, limit_s=limit_s)
        except TrialError:  # which the training itself will raise
            step_s = 0.0
        tested_s = testing_s(job, step_s)
        found = fit(job.recipe, len(split), step_s, clock.left_s - writing_s - tested_s)
        return {**dataclasses.asdict(found), "test_s": tested_s}

    decided = dict(clock.decide(f"retrain {list(genotype)}", choose))
    reserved_s: float = writing_s + decided.pop("test_s", 0.0)
    found = Fit(**decided)

    def left_s() -> float:
        clock.tick()
        return clock.left_s - reserved_s

    if found.images < len(split):
        job.progress.note(f"budget: the last training sees {found.images:,} of {len(split):,} images, once")
    elif found.epochs < job.recipe.epochs:
        job.progress.note(
            f"budget: the last training takes {counted(found.epochs, 'epoch')}, not {job.recipe.epochs}"
        )
    name = f"retrain-{architecture_hash(job.final, genotype)[:8]}-{found.epochs}-{found.images}"
    return Last(found.of(job.recipe), first_of(split, found.images), folder.with_name(name), left_s)
