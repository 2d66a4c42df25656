"""What a search needs, made of its configuration and checked before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import optuna
import torch

from nas import devices
from nas.data.augment import parts_of
from nas.data.exclusions import load_without
from nas.data.problem import CLASSIFICATION
from nas.data.task import Task
from nas.errors import ConfigError, SpaceError, TrialError
from nas.evaluate.calibration import read_calibration
from nas.files.folder import results_folder
from nas.results.result import Result, load_result
from nas.run.config import Config, make_config
from nas.run.final_network import check_trial, final_recipe, final_space, offer
from nas.run.job import BEGIN, Clock, Job, Plan
from nas.run.resolved_config import make_plan
from nas.seeding import rng
from nas.show.progress import Progress, Silent
from nas.space.loading import is_plugin, load
from nas.space.space import Space
from nas.study.address import find_address
from nas.training.ddp import ALONE, END, Team
from nas.training.recipe import Recipe
from nas.user_code import user_errors

if TYPE_CHECKING:
    from nas.oneshot.methods import Method


# -- what is asked -----------------------------------------------------------------------------------

_HINTS = {
    "Task": ", as nas.task_from_arrays and nas.task_from_datasets make it",
    "Method": "; a searcher of your own runs in a nas.Study",
}


def name_of(given: object, kind: type[Space] | type[Task] | type[Method], *, who: str) -> str:
    """How a run records its space, task or method: what it was called, or the name that it has itself.

    kind: what is taken beside a name. who: the function whose argument it is, for errors.
    """
    if isinstance(given, str):
        return given
    if isinstance(given, kind):
        return given.name
    wanted = f"a name or a nas.{kind.__name__}{_HINTS.get(kind.__name__, '')}"
    raise ConfigError(f"{who}: {kind.__name__.lower()} is a {type(given).__name__}, wanted {wanted}")


def with_names(settings: Mapping[str, object] | None, names: Mapping[str, str]) -> dict[str, object]:
    """Settings together with what a function's own arguments say.

    Raises:
        ConfigError: when a setting says something else than its argument.
    """
    if settings is not None and not isinstance(settings, Mapping):
        raise ConfigError(f"settings is a {type(settings).__name__}, wanted a mapping from names to values")
    for name, value in names.items():
        if settings and settings.get(name, value) != value:
            raise ConfigError(
                f"settings: {name} is {settings[name]!r}, but the argument says {value!r}; give one of them"
            )
    return {**(settings or {}), **names}


def refuse_others(config: Config, used: Collection[str], *, what: str) -> None:
    """Raises ConfigError where a setting is given that a kind of job does not read. what: that kind."""
    for name, default in Config():
        if name not in {*used, "space", "task"} and getattr(config, name) != default:
            raise ConfigError(f"{name} is set, but {what} uses only {', '.join(used)}; remove it")


def augmented(config: Config, plan: Plan, task: Task) -> tuple[Plan, Task, str]:
    """The plan and the task whose images are varied as `augment` says, and what is on, in words.

    What the table of a phase says, such as `retrain.cutout`, stays. The square of a cutout is half as wide as
    the images.
    """
    if config.augment is None:
        for name in ("trial", "supernet", "search", "retrain"):
            if getattr(config, name).get("flip") and not task.flip:
                raise ConfigError(
                    f"{name}.flip is set, but mirrored images of {task.name!r} may mean something else; if "
                    "they do not, use --augment crop+flip"
                )
        return plan, task, "crop+flip" if task.flip else "crop"
    parts = parts_of(config.augment)
    side = min(task.image_shape[1:]) // 2 if "cutout" in parts else 0
    wanted = {"crop": "crop" in parts, "flip": "flip" in parts, "cutout": side}

    def varied(recipe: Recipe, table: Mapping[str, object]) -> Recipe:
        return replace(recipe, **{k: v for k, v in wanted.items() if k not in table})  # type: ignore[arg-type]

    search = plan.search and replace(plan.search, weights=varied(plan.search.weights, config.search))
    changed = replace(
        plan,
        trial=varied(plan.trial, config.trial),
        search=search,
        supernet=varied(plan.supernet, config.supernet),
        final=varied(plan.final, config.retrain),
    )
    return changed, replace(task, flip="flip" in parts), config.augment


# -- what is made of it ------------------------------------------------------------------------------

SAMPLES = 3
"""Random architectures of which one must fit the task."""


def prepare(
    config: Config,
    folder: Path,
    *,
    space: str | Space | None = None,
    task: str | Task | None = None,
    method: str | Method | None = None,
    architecture: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
    team: Team = ALONE,
    clock: Clock | None = None,
) -> Job:
    """All that a job needs, checked before anything is written.

    space, task, method: come before the names of the configuration, which must be theirs.
    architecture: what is trained where nothing is searched; it keeps its size, unless the preset asks for the
      space's full one.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    problem = task.problem if isinstance(task, Task) else CLASSIFICATION  # as all are that have a name
    plan = make_plan(config, None if isinstance(method, str) else method, problem=problem)
    sizes = dict[str, object]()
    own, searches = space if isinstance(space, Space) else None, architecture is None
    if searches:
        config = config.model_copy(update={"storage": find_address(config.storage)})
        _refuse_ranks(config, team)
    if architecture is not None:
        plan, sizes = replace(plan, final_size={}), architecture["settings"]
    elif own is not None or is_plugin(config.space):
        # A preset knows the sizes of the engine's own spaces; anybody else's are the author's.
        plan = replace(plan, size={}, final_size={})
    device = devices.resolve(config.device, local=team.local)
    named = config.task if task is None else task
    plan, task, varied = augmented(
        config, plan, load_without(named, config.exclude, seed=config.seed).to(device)
    )
    for name in ("trial", "supernet", "search", "retrain"):
        if getattr(config, name).get("label_smoothing") and not task.classes:
            raise ConfigError(
                f"{name}.label_smoothing is set, but targets of {task.name!r} are no classes; remove it"
            )
    if own is not None and config.space_settings:
        raise ConfigError(
            "space_settings are given, but the space is made already; make it with these settings"
        )
    sizes = {**sizes, **offer(task), **(plan.size if searches else {})}
    space = load(config.space, sizes, **config.space_settings) if own is None else own
    # What the last phase would refuse is refused before the first.
    final = final_space(config, plan, space, task)
    recipe, notes = final_recipe(config, plan, final, task)
    genotype, batches = None, [recipe.batch]
    if architecture is not None:
        genotype, space = space.genotype(architecture["choices"]), final
    if searches:
        check_trial(plan, space, task)
        check_fit(space, task)
        notes += _trust(config, plan, task)
        batches = [(plan.supernet if plan.search is None else plan.search.weights).batch, *batches]
    about = f"seed {config.seed}, device {device} ({devices.describe(device)}), augmentation {varied}"
    return Job(
        config,
        plan,
        space,
        task,
        task.reduced(plan.search_images) if searches and plan.search_images else task,
        final,
        recipe,
        folder,
        progress or Silent(),
        stop or Event().is_set,
        genotype,
        team,
        clock or Clock(),
        notes=(about, *task.notes, *notes, *team_notes(team, *batches)),
    )


def _refuse_ranks(config: Config, team: Team) -> None:
    """Trials that are trained one after the other gain nothing from many ranks, and time is told to one."""
    if team.size == 1:
        return
    if not config.is_differentiable and not config.shares_weights:
        raise ConfigError(
            f"method {config.method!r} trains its trials one by one, which several ranks cannot share; start "
            "it without torchrun and with --workers (its winner can be trained over all ranks by nas "
            "retrain), or search by gradients or with evaluator shared"
        )
    if config.budget is not None:
        raise ConfigError(
            "budget is set, but several ranks would have to agree on the time in every step; start without "
            "torchrun, or bound the work by epochs and retrain.epochs"
        )


def _trust(config: Config, plan: Plan, task: Task) -> list[str]:
    """What a calibration means for the trials."""
    if config.fidelity != "auto":
        return []
    found = read_calibration(Path(str(config.calibration)))
    changed = found.fingerprint != task.fingerprint
    notes = ["WARNING: the calibration was made on other images of this task"] if changed else []
    if found.chosen is not None:
        return [*notes, f"fidelity of the trials, by calibration: {plan.ladder}"]
    return [*notes, f"WARNING: the calibration trusts no cheap fidelity; trials take {plan.ladder}"]


def check_fit(space: Space, task: Task) -> None:
    """Raises SpaceError when none of a few random architectures turns the task's images into its outputs."""
    draw, wanted = rng(0, "fit"), (2, task.outputs)
    for _ in range(SAMPLES):
        try:
            with user_errors():
                network = space.network(space.sample(draw), meta=True).eval()
                outputs = network(torch.zeros(2, *task.image_shape, device="meta"))
        except (SpaceError, TrialError) as error:
            reason = str(error)
            continue
        if tuple(outputs.shape) == wanted:
            return
        reason = f"a batch of 2 gives {tuple(outputs.shape)}, wanted {wanted}"
    raise SpaceError(
        f"space {space.name!r} does not fit task {task.name!r}, images {task.image_shape} of "
        f"{task.outputs} {'classes' if task.classes else 'outputs'}: {_blamed(space, task) or reason}"
    )


def _blamed(space: Space, task: Task) -> str:
    """Which decision and option of a space are at fault, where one alone is; else nothing."""
    from nas.testing import check_space  # and supernets, which only this case needs

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


# -- a known architecture ----------------------------------------------------------------------------

RETRAINING = (
    *("preset", "seed", "device", "execution", "graph", "deterministic", "rank_timeout"),
    *("augment", "exclude", "export", "pictures", "tensorboard", "mlflow"),
    *("space_settings", "final_settings", "retrain"),
)
"""The settings that a retraining reads, beside space and task."""


def retraining_config(
    architecture: Mapping[str, Any],
    task: str | Task,
    *,
    space: str | Space | None,
    settings: Mapping[str, object] | None,
) -> Config:
    """The configuration of a retraining.

    Raises:
        ConfigError: for a setting that it does not read, or a space that is code and not named.
    """
    for name in ("space", "settings", "choices"):
        if name not in architecture:
            raise ConfigError(f"the architecture has no {name!r}; it has {', '.join(sorted(architecture))}")
    origin = str(architecture["space"]) if space is None else name_of(space, Space, who="retrain")
    if space is None and is_plugin(origin):
        raise ConfigError(
            f"the architecture's space {origin!r} is code of your own; name it with --space to run it, "
            "in Python with space="
        )
    names = {"space": origin, "task": name_of(task, Task, who="retrain")}
    config = make_config(with_names(settings, names))
    refuse_others(config, RETRAINING, what="a retraining")
    return config


# -- several ranks -----------------------------------------------------------------------------------


def follow_to(out: str | Path, team: Team) -> None:
    """Waits on another rank until rank 0 has begun the job in its folder.

    Raises:
        ConfigError: when this rank does not see that folder.
    """
    team.call(BEGIN)
    if not (Path(out) / "run.json").is_file():
        raise ConfigError(
            f"rank {team.rank} does not see the run folder {str(out)!r} of rank 0; choose an --out folder "
            "that all machines share"
        )


def follow(job: Job, phases: Mapping[str, Callable[[Any], None]]) -> Result:
    """What another rank than rank 0 does: it joins the trainings that it is called to, until the job ends.

    phases: by name, each with the value that rank 0 calls it with.
    """
    with devices.repeatable(enabled=job.config.deterministic):
        while (called := job.team.called())[0] != END:
            phase, value = called
            phases[phase](value)
    return load_result(job.folder, space=job.final, problem=job.problem)


def team_notes(team: Team, *batches: int) -> list[str]:
    """What the user should know of trainings over several processes.

    Raises:
        ConfigError: when a batch is too small to be divided.
    """
    if team.size == 1:
        return []
    shares = [f"{team.images(batch)} of {batch}" for batch in dict.fromkeys(batches)]
    return [f"{team.size} ranks train together: each takes {' or '.join(shares)} images of a batch"]
