"""The last training of a job as it is done: in a number of epochs, or in the time that is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from nas.data.task import Split
from nas.errors import TrialError
from nas.results.run_record import CHECKPOINT
from nas.run.forecast import Forecast
from nas.run.job import Job
from nas.run.step_timing import final_pace
from nas.space.graph import architecture_hash
from nas.training.recipe import Recipe, compressed
from nas.types import MOST, Genotype


@dataclass(frozen=True, eq=False)
class Last:
    """The last training: recipe, images, where its checkpoints are, and the share of its time that is over.

    elapsed: None where it takes as long as its epochs do.
    """

    recipe: Recipe
    split: Split
    folder: Path
    elapsed: Callable[[], float] | None = None


def last_training(job: Job, genotype: Genotype, made: Forecast | None) -> Last:
    """As planned, or where there is a budget for as long as is left of it.

    Its schedule follows the time, so that it is never cut; its epochs only divide it, and are as many as a
    step of this very network says. Where the user has set epochs, it takes no longer than these should.
    """
    split, folder, clock = job.task.train_and_val(), job.folder / CHECKPOINT / "retrain", job.clock
    if clock.budget_s is None or made is None:
        return Last(job.recipe, split, folder)

    def choose() -> dict[str, float]:
        left_s = clock.left_s - made.reserve_s
        try:
            step_s = final_pace(job, genotype, limit_s=0.03 * left_s)
        except TrialError:  # which the training itself will raise
            step_s = 1.0
        epoch_s = step_s * max(1, len(split) // job.recipe.batch)
        began_s, left_s = clock.elapsed_s, clock.left_s - made.reserve_s
        if "epochs" in job.config.retrain:
            left_s = min(left_s, job.recipe.epochs * epoch_s)
        return {"epochs": max(1, round(left_s / epoch_s)), "began_s": began_s, "takes_s": left_s}

    decided = clock.decide(f"retrain {list(genotype)}", choose)
    began_s, takes_s = decided["began_s"], decided["takes_s"]
    recipe = replace(compressed(job.recipe, min(MOST, decided["epochs"])), schedule="step")

    def elapsed() -> float:
        clock.tick()
        left_s = min(clock.left_s - made.reserve_s, began_s + takes_s - clock.elapsed_s)  # less after Ctrl-C
        gone_s = clock.elapsed_s - began_s
        return gone_s / (gone_s + left_s) if left_s > 0 else 1.0

    name = f"retrain-{architecture_hash(job.final, genotype)[:8]}-{recipe.epochs}"
    return Last(recipe, split, folder.with_name(name), elapsed)
