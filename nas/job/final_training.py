"""The last training of one network, on training and validation images, and what it measures."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from torch import nn

from nas.errors import TrialError
from nas.evaluation.evaluators import affordable
from nas.evaluation.guard import user_errors
from nas.evaluation.metrics import wilson
from nas.latency import latency
from nas.progress import Progress
from nas.seeding import isolated
from nas.space import Space
from nas.task import Split, Task
from nas.tracking.points import of_curve, of_report
from nas.tracking.tracking import NO_TRACKING, Tracking
from nas.training.accuracy import evaluate
from nas.training.checkpoint import Checkpoints
from nas.training.curve import Curve, EpochReport
from nas.training.easing import Ease, eased
from nas.training.recipe import Recipe
from nas.training.team import ALONE, Team
from nas.training.train import train
from nas.types import Genotype

RETRAIN = "retrain"
"""What the last training is called between ranks and to trackers."""


def train_final(
    space: Space,
    genotype: Genotype,
    task: Task,
    recipe: Recipe,
    *,
    seed: int,
    folder: Path | None,
    progress: Progress,
    stop: Callable[[], bool],
    split: Split | None = None,
    left_s: Callable[[], float] | None = None,
    team: Team = ALONE,
    tracking: Tracking = NO_TRACKING,
) -> tuple[nn.Module, dict[str, float]]:
    """Trains one architecture on training and validation images, then measures test accuracy, once.

    The other ranks of a team are called to help.

    split: the images to learn from. left_s: see `nas.training.train.train`.
    folder: where its checkpoints live. A training that diverges or runs out of memory has a second chance
      (`nas.training.easing`), which a note and the metrics `retrain_lr_factor` or `retrain_passes_per_step`
      tell.
    """

    def attempt(ease: Ease) -> tuple[nn.Module, Curve]:
        network = _fresh(space, genotype, task, seed)
        progress.phase("retrain", recipe.epochs)
        team.call(RETRAIN, list(genotype))
        series = str(ease.place(Path(RETRAIN)))

        def told(report: EpochReport) -> None:
            progress.advance(epoch_line(report), done=report.epoch)
            tracking.tell([of_report(series, report)])

        curve = train(
            network,
            task,
            ease.of(recipe),
            seed=seed,
            split=task.train_and_val() if split is None else split,
            checkpoints=None if folder is None else Checkpoints(ease.place(folder)),
            on_epoch=told,
            backward=ease.backward,
            stop=stop,
            left_s=left_s,
            team=team,
        )
        tracking.tell(of_curve(series, curve))  # what a killed process has not told
        return network, curve

    with user_errors():
        counted = affordable(space, genotype, task)
        (network, curve), ease = eased(
            attempt, folder=folder, batch=recipe.batch, note=progress.note, alone=team.size == 1
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
        "latency_ms": timed.p50_ms,
        "latency_p95_ms": timed.p95_ms,
    }


def help_to_retrain(
    space: Space,
    genotype: Genotype,
    task: Task,
    recipe: Recipe,
    *,
    seed: int,
    stop: Callable[[], bool],
    team: Team,
) -> None:
    """What the other ranks do while rank 0 trains the last network."""
    with user_errors():
        network = _fresh(space, genotype, task, seed)
        train(network, task, recipe, seed=seed, split=task.train_and_val(), stop=stop, team=team)


def _fresh(space: Space, genotype: Genotype, task: Task, seed: int) -> nn.Module:
    with isolated(seed, "init"):
        return space.network(genotype).to(task.train.x.device)


def epoch_line(report: EpochReport) -> str:
    """One finished epoch in words."""
    return f"epoch {report.epoch}: loss {report.train_loss:.3f}, {report.seconds:.1f} s"
