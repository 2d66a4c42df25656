"""The last training of one network, on training and validation images together, and what it measures."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

from torch import nn

from nas.data.task import Task
from nas.errors import TrialError
from nas.evaluate.metrics import wilson
from nas.evaluate.trained import affordable
from nas.results.run_record import RETRAIN
from nas.run.job import Job
from nas.run.last import Last
from nas.run.step_timing import final_pace
from nas.run.threads import suited
from nas.seeding import isolated
from nas.show.tracking.points import of_curve, of_report
from nas.space.latency import LATENCY, latency
from nas.training.checkpoint import Checkpoints
from nas.training.evaluate import evaluate
from nas.training.history import Curve, EpochReport
from nas.training.retry import Ease, eased
from nas.training.train import train
from nas.types import Genotype
from nas.user_code import user_errors


def train_final(job: Job, genotype: Genotype, last: Last) -> tuple[nn.Module, dict[str, float]]:
    """Trains one architecture at its final size, then measures test accuracy, once.

    The other ranks of a team are called to help. A training that diverges or runs out of memory has a second
    chance (`nas.training.retry`), which a note and the metrics `retrain_lr_factor` or
    `retrain_passes_per_step` tell.
    """
    with suited(job, RETRAIN, partial(final_pace, job, genotype)) as suited_job:
        return _trained(suited_job, genotype, last)


def _trained(job: Job, genotype: Genotype, last: Last) -> tuple[nn.Module, dict[str, float]]:
    task, progress = job.task, job.progress

    def attempt(ease: Ease) -> tuple[nn.Module, Curve]:
        network = _fresh(job, genotype)
        progress.phase("retrain", last.recipe.epochs if last.elapsed is None else None)
        job.team.call(RETRAIN, list(genotype))
        series = str(ease.place(Path(RETRAIN)))

        def told(report: EpochReport) -> None:
            progress.advance(str(report), done=report.epoch)
            job.tracking.tell([of_report(series, report)])

        curve = train(
            network,
            task,
            ease.of(last.recipe),
            seed=job.seed(RETRAIN),
            split=last.split,
            checkpoints=Checkpoints(ease.place(last.folder)),
            on_epoch=told,
            gradients=ease.gradients,
            stop=job.stop,
            elapsed=last.elapsed,
            team=job.team,
        )
        job.tracking.tell(of_curve(series, curve))  # what a killed process has not told
        return network, curve

    with user_errors():
        counted = affordable(job.final, genotype, task)
        (network, curve), ease = eased(
            attempt,
            folder=last.folder,
            batch=last.recipe.batch,
            note=progress.note,
            alone=job.team.size == 1,
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
        **{f"retrain_{name}": value for name, value in ease.metrics.items()},
    }


def _measured(network: nn.Module, task: Task) -> dict[str, float]:
    """The test accuracy with its 95 % interval, the test loss, and the latency of one image."""
    test_loss, test_acc = evaluate(network, task, task.test)
    if not math.isfinite(test_loss):
        raise TrialError("nan", f"the trained network's test loss is {test_loss}; lower retrain.lr")
    timed = latency(network, task.normalise(task.test.x[:1]))
    low, high = wilson(test_acc, len(task.test))
    return {
        "test_acc": test_acc,
        "test_acc_low": low,
        "test_acc_high": high,
        "test_loss": test_loss,
        LATENCY: timed.p50_ms,
        "latency_p95_ms": timed.p95_ms,
    }


def help_to_retrain(job: Job, genotype: Genotype) -> None:
    """What the other ranks do while rank 0 trains the last network, which is never cut by a budget there."""
    split, seed = job.task.train_and_val(), job.seed(RETRAIN)
    with user_errors():
        network = _fresh(job, genotype)
        train(network, job.task, job.recipe, seed=seed, split=split, stop=job.stop, team=job.team)


def _fresh(job: Job, genotype: Genotype) -> nn.Module:
    with isolated(job.seed(RETRAIN), "init"):
        return job.final.network(genotype).to(job.task.train.x.device)
