"""What a search needs, made of its configuration and checked before anything is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import optuna
import torch

from nas import devices
from nas.data.exclusions import load_without
from nas.data.task import Task
from nas.errors import ConfigError, SpaceError, TrialError
from nas.evaluate.calibration import read_calibration
from nas.files.folders import results_folder
from nas.oneshot.method import Method
from nas.results.result import is_finished
from nas.run.arguments import refuse_made
from nas.run.black_box import check_search
from nas.run.clock import Clock
from nas.run.compatibility import augmented, check_trial, offer
from nas.run.config import Config
from nas.run.final_network import final_recipe, final_space
from nas.run.job import Job
from nas.run.ranks import team_notes
from nas.run.resolved_config import Plan, make_plan
from nas.seeding import rng
from nas.show.progress import Progress, Silent
from nas.space.loading import is_plugin, load
from nas.space.space import Space
from nas.study.address import find_address
from nas.study.storage import open_storage
from nas.testing import check_space
from nas.training.ddp import ALONE, Team
from nas.user_code import user_errors

SAMPLES = 3
"""Random architectures of which one must fit the task."""


def prepare(
    config: Config,
    folder: Path,
    *,
    space: Space | None = None,
    task: Task | None = None,
    method: Method | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
    team: Team = ALONE,
    clock: Clock | None = None,
) -> tuple[Job, list[str]]:
    """All that a job needs, checked before anything is written, and what the user should know of it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = config.model_copy(update={"storage": find_address(config.storage)})
    if config.storage is not None and not is_finished(folder):
        open_storage(config.storage)
    plan = make_plan(config, method)
    if space is not None or is_plugin(config.space):
        # A preset knows the sizes of the engine's own spaces; anybody else's are the author's.
        plan = dataclasses.replace(plan, size={}, final_size={})
    if team.size > 1:
        _refuse_trials(config)
        _refuse_budget(config)
    device = devices.resolve(config.device, local=team.local)
    named = config.task if task is None else task
    task = load_without(named, config.exclude, seed=config.seed).to(device)
    plan, task, varied = augmented(config, plan, task)
    if space is None:
        space = load(config.space, offer(task) | dict(plan.size), **config.space_settings)
    else:
        refuse_made(space, config)
    # What the last phase would refuse is refused before the first.
    final = final_space(config, plan, space, task)
    recipe, notes = final_recipe(config, plan, final, task)
    check_trial(plan, space, task)
    check_fit(space, task)
    search_task = task.reduced(plan.search_images) if plan.search_images else task
    job = Job(
        config,
        plan,
        space,
        task,
        search_task,
        final,
        recipe,
        folder,
        progress or Silent(),
        stop or (lambda: False),
        team=team,
        clock=clock or Clock(),
    )
    check_search(job)
    about = f"seed {config.seed}, device {device} ({devices.describe(device)}), augmentation {varied}"
    batch = plan.search.weights.batch if config.is_differentiable else plan.shared.batch
    notes = [*notes, *team_notes(team, batch, recipe.batch), *_trust(config, plan, task)]
    return job, [about, *task.notes, *notes]


def _refuse_trials(config: Config) -> None:
    """Trials that are trained one after the other gain nothing from many ranks."""
    if not config.is_differentiable and not config.shares_weights:
        raise ConfigError(
            f"method {config.method!r} trains its trials one by one, which several ranks cannot share; start "
            "it without torchrun and with --workers (its winner can be trained over all ranks by nas "
            "retrain), or search by gradients or with evaluator shared"
        )


def _refuse_budget(config: Config) -> None:
    if config.budget is not None:
        raise ConfigError(
            "budget is set, but several ranks would have to agree on the time in every step; start without "
            "torchrun, or bound the work by epochs and retrain.epochs"
        )


def _trust(config: Config, plan: Plan, task: Task) -> list[str]:
    """What a calibration means for the trials."""
    if config.fidelity != "auto":
        return []
    record = read_calibration(Path(str(config.calibration)))
    changed = record.get("fingerprint") != task.fingerprint
    notes = ["WARNING: the calibration was made on other images of this task"] if changed else []
    if record["chosen"] is not None:
        return [*notes, f"fidelity of the trials, by calibration: {plan.ladder}"]
    return [*notes, f"WARNING: the calibration trusts no cheap fidelity; trials take {plan.ladder}"]


def check_fit(space: Space, task: Task) -> None:
    """Raises SpaceError when none of a few random architectures turns the task's images into its classes."""
    draw, wanted = rng(0, "fit"), (2, task.num_classes)
    for _ in range(SAMPLES):
        try:
            with user_errors():
                network = space.network(space.sample(draw), meta=True).eval()
                logits = network(torch.zeros(2, *task.image_shape, device="meta"))
        except (SpaceError, TrialError) as error:
            reason = str(error)
            continue
        if tuple(logits.shape) == wanted:
            return
        reason = f"a batch of 2 gives {tuple(logits.shape)}, wanted {wanted}"
    raise SpaceError(
        f"space {space.name!r} does not fit task {task.name!r}, images {task.image_shape} of "
        f"{task.num_classes} classes: {_blamed(space, task) or reason}"
    )


def _blamed(space: Space, task: Task) -> str:
    """Which decision and option of a space are at fault, where one alone is; else nothing."""
    try:
        check_space(space, task.normalise(task.train.x[:4]), samples=1)
    except SpaceError as error:
        return str(error).removeprefix(f"space {space.name!r}").lstrip(",: ")
    except ConfigError:  # of fewer than two images nothing can be said
        return ""
    return ""


def default_folder(config: Config) -> Path:
    """results/SPACE-TASK-METHOD, made of harmless characters."""
    shared = ["shared"] if config.evaluator == "shared" else []
    return results_folder(config.space, config.task, config.method, *shared)
