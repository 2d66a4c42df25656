"""The last training: one architecture at its final size, on all images but those of the test."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from nas.data.task import Split, Task
from nas.errors import TrialError
from nas.evaluate.significance import interval
from nas.evaluate.trained import affordable
from nas.results.run_record import CHECKPOINT, RETRAIN
from nas.run.job import Job
from nas.run.step_timing import final_pace, suited
from nas.seeding import derive, isolated
from nas.show.tracking.tracker import of_epochs
from nas.space.graph import architecture_hash
from nas.space.latency import LATENCY, Latency, interleaved
from nas.training.checkpoint import Checkpoints
from nas.training.evaluate import judged
from nas.training.recipe import Recipe, compressed
from nas.training.retry import Retry, with_retries
from nas.training.train import Control, Curve, EpochReport, train
from nas.types import MOST, Genotype
from nas.user_code import user_errors


@dataclass(frozen=True, eq=False)
class Last:
    """The last training: recipe, images, where its checkpoints are, and the share of its time that is over.

    elapsed: None where it takes as long as its epochs do.
    """

    recipe: Recipe
    split: Split
    folder: Path
    elapsed: Callable[[], float] | None = None


def last_training(job: Job, genotype: Genotype, *, reserve_s: float | None = None) -> Last:
    """As planned, or where there is a budget for as long as is left of it beyond `reserve_s`.

    Its schedule follows the time, so that it is never cut; its epochs only divide it, and are as many as a
    step of this very network says. Where the user has set epochs, it takes no longer than these should.
    """
    split, folder, clock = job.task.train_and_val(), job.folder / CHECKPOINT / "retrain", job.clock
    if reserve_s is None:
        return Last(job.recipe, split, folder)

    def choose() -> dict[str, float]:
        try:
            step_s = final_pace(job, genotype, limit_s=0.03 * (clock.left_s - reserve_s))
        except TrialError:  # which the training itself will raise
            step_s = 1.0
        epoch_s = step_s * max(1, len(split) // job.recipe.batch)
        began_s, left_s = clock.elapsed_s, clock.left_s - reserve_s
        if "epochs" in job.config.retrain:
            left_s = min(left_s, job.recipe.epochs * epoch_s)
        return {"epochs": max(1, round(left_s / epoch_s)), "began_s": began_s, "takes_s": left_s}

    decided = clock.decide(f"retrain {list(genotype)}", choose)
    began_s, takes_s = decided["began_s"], decided["takes_s"]
    recipe = replace(compressed(job.recipe, min(MOST, decided["epochs"])), schedule="step")

    def elapsed() -> float:
        clock.late(math.inf)  # which writes the time down now and then
        left_s = min(clock.left_s - reserve_s, began_s + takes_s - clock.elapsed_s)  # less after Ctrl-C
        gone_s = clock.elapsed_s - began_s
        return gone_s / (gone_s + left_s) if left_s > 0 else 1.0

    # Another architecture, size, or number of epochs is another training.
    what = derive(0, architecture_hash(job.final, genotype), str(dict(job.final.settings)), repr(recipe))
    return Last(recipe, split, folder.with_name(f"retrain-{what:016x}"), elapsed)


def train_final(job: Job, genotype: Genotype, last: Last) -> tuple[nn.Module, dict[str, float]]:
    """Trains one architecture at its final size, then measures it on test images, once.

    The other ranks of a team are called to help. A training that diverges or runs out of memory has a second
    chance (`nas.training.retry`), which a note and the metrics `retrain_lr_factor` or
    `retrain_passes_per_step` tell.
    """
    with suited(job, RETRAIN, partial(final_pace, job, genotype)) as suited_job:
        return _trained(suited_job, genotype, last)


def _trained(job: Job, genotype: Genotype, last: Last) -> tuple[nn.Module, dict[str, float]]:
    task, progress = job.task, job.progress

    def attempt(retry: Retry) -> tuple[nn.Module, Curve]:
        network = _fresh(job, genotype)
        progress.phase("retrain", last.recipe.epochs if last.elapsed is None else None)
        job.team.call(RETRAIN, list(genotype))
        series = str(retry.place(Path(RETRAIN)))

        def told(report: EpochReport) -> None:
            progress.advance(str(report), done=report.epoch)
            job.tracking.tell(of_epochs(series, [report]))

        curve = train(
            network,
            task,
            retry.of(last.recipe),
            seed=job.seed(RETRAIN),
            split=last.split,
            passes=retry.passes,
            control=Control(
                checkpoints=Checkpoints(retry.place(last.folder)),
                on_epoch=told,
                stop=job.stop,
                elapsed=last.elapsed,
                team=job.team,
            ),
        )
        job.tracking.tell(of_epochs(series, curve.reports()))  # what a killed process has not told
        return network, curve

    alone, batch = job.team.size == 1, last.recipe.batch
    with user_errors():
        counted = affordable(job.final, genotype, task)
        (network, curve), retry = with_retries(
            attempt, folder=last.folder, batch=batch, note=progress.note, alone=alone
        )
        measured = _measured(network, task)
    return network, {
        **measured,
        "train_loss": curve.train_loss[-1],
        "params": counted.params,
        "macs": counted.macs,
        "activation_bytes": counted.activation_bytes,
        "retrain_epochs": len(curve.train_loss),
        "retrain_seconds": sum(curve.seconds),
        **{f"retrain_{name}": value for name, value in retry.metrics.items()},
    }


def _measured(network: nn.Module, task: Task) -> dict[str, float]:
    """The test metric with its 95 % interval, the test loss, and the latency of one image."""
    test_loss, scores = judged(network, task, task.test)
    if not math.isfinite(test_loss):
        raise TrialError("nan", f"the trained network's test loss is {test_loss}; lower retrain.lr")
    timed = Latency.of(interleaved([network], task.normalise(task.test.x[:1]))[0])
    name, found = task.problem.test, scores.cpu().numpy()
    low, high = interval(found)
    return {
        name: float(found.mean(dtype=np.float64)),
        f"{name}_low": low,
        f"{name}_high": high,
        "test_loss": test_loss,
        LATENCY: timed.p50_ms,
        "latency_p95_ms": timed.p95_ms,
    }


def help_to_retrain(job: Job, genotype: Genotype) -> None:
    """What the other ranks do while rank 0 trains the last network, which is never cut by a budget there."""
    split, seed = job.task.train_and_val(), job.seed(RETRAIN)
    with user_errors():
        network = _fresh(job, genotype)
        control = Control(stop=job.stop, team=job.team)
        train(network, job.task, job.recipe, seed=seed, split=split, control=control)


def _fresh(job: Job, genotype: Genotype) -> nn.Module:
    with isolated(job.seed(RETRAIN), "init"):
        return job.final.network(genotype).to(job.device)
