"""The whole job: search, train the best again with fresh seeds, train the winner in full, write the result.

Every phase can be killed at any moment; the same call goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch
from torch import nn

from nas import devices
from nas.checkpoint import Checkpoints
from nas.config import Config, make_config, with_names
from nas.cost import count_params
from nas.errors import ConfigError, NoModelError
from nas.evaluate import Cached, Inherited, Trained, require_memory, user_errors
from nas.files import FolderLock
from nas.graph import architecture_hash, cell_graphs
from nas.journal import journal_storage
from nas.load import load
from nas.oneshot import differentiable
from nas.oneshot.singlepath import train_shared
from nas.oneshot.supernet import Supernet
from nas.plan import Plan, make_plan
from nas.progress import Progress, Silent
from nas.recipe import Recipe
from nas.result import Alphas, Result, is_finished, load_result, rounded, to_cpu, write_result
from nas.resumable import Stopped
from nas.retrain_run import check_trial, epoch_line, final_recipe, final_space, offer, train_final
from nas.run_folder import CHECKPOINT, begin, clear_checkpoints, open_folder
from nas.schedule import Fixed, Listed
from nas.seeding import derive, isolated, rng
from nas.space import Size, Space
from nas.study import JOURNAL, Evaluator, Study
from nas.task import Task, load_task
from nas.types import Genotype, Trial


@dataclass(frozen=True, eq=False)
class Job:
    """Everything the phases need.

    task: all images; `search_task` has what the phases before the last training may use.
    final: the space at the size of the last network. recipe: of the last training.
    """

    config: Config
    plan: Plan
    space: Space
    task: Task
    search_task: Task
    final: Space
    recipe: Recipe
    folder: Path
    progress: Progress
    stop: Callable[[], bool]

    def checkpoints(self, phase: str) -> Checkpoints:
        """Where one phase saves its state."""
        return Checkpoints(self.folder / CHECKPOINT / phase)

    def seed(self, phase: str) -> int:
        """The root of one phase's random streams."""
        return derive(self.config.seed, phase)


def search(
    space: str | Space = "darts",
    task: str | Task = "digits",
    method: str = "darts",
    *,
    out: str | Path | None = None,
    settings: Mapping[str, object] | None = None,
    force: bool = False,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> Result:
    """Finds an architecture, trains it, and leaves everything in a folder; called again, it resumes.

    space: a name, `module:function`, `file.py:function`, or a `Space`.
    task: a name that `load_task` knows, or a `Task`.
    method: `random`, `evolution`, `darts` or `darts2`.
    out: the run's folder, by default `results/SPACE-TASK-METHOD`.
    settings: any other setting of `nas.Config`, e.g. `{"epochs": 2, "seed": 1, "retrain": {"lr": 0.1}}`.
    force: go on although the data are no longer those that the run began with.
    stop: asked often; when true, the state is saved and `Stopped` raised.

    Raises:
        NasError: when a setting, the space or the data cannot be used, or no valid model was found.
    """
    names = {
        "space": space if isinstance(space, str) else space.name,
        "task": task if isinstance(task, str) else task.name,
        "method": method,
    }
    config = make_config(with_names(settings, names))
    return run(
        config,
        out=out,
        space=space if isinstance(space, Space) else None,
        task=task if isinstance(task, Task) else None,
        force=force,
        progress=progress,
        stop=stop,
    )


def run(
    config: Config,
    *,
    out: str | Path | None = None,
    space: Space | None = None,
    task: Task | None = None,
    force: bool = False,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> Result:
    """Runs or resumes the job of a configuration; `space` and `task`, if given, come before its names."""
    progress = progress or Silent()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plan = make_plan(config)
    device = devices.resolve(config.device)
    task = (task or load_task(config.task, seed=config.seed)).to(device)
    if space is None:
        space = load(config.space, offer(task) | dict(plan.size), **config.space_settings)
    elif config.space_settings:
        raise ConfigError(
            "space_settings are given, but the space is made already; make it with these settings"
        )
    # What the last phase would refuse is refused before the first.
    final = final_space(config, plan, space, task)
    recipe, notes = final_recipe(config, plan, final, task)
    check_trial(plan, space, task)
    search_task = task.reduced(plan.search_images) if plan.search_images else task
    folder = open_folder(out if out is not None else default_folder(config))
    with FolderLock(folder):
        begin(folder, config, plan, space=space, task=task, force=force)
        if is_finished(folder):
            progress.note(f"{folder} holds this run already, finished")
            clear_checkpoints(folder)
            return load_result(folder, space=final)
        progress.note(f"seed {config.seed}, device {device} ({devices.describe(device)})")
        for note in (*task.notes, *notes):
            progress.note(note)
        stop = stop or (lambda: False)
        return _run(Job(config, plan, space, task, search_task, final, recipe, folder, progress, stop))


def default_folder(config: Config) -> Path:
    """results/SPACE-TASK-METHOD, made of harmless characters."""
    parts = [config.space, config.task, config.method, *(["shared"] if config.evaluator == "shared" else [])]
    names = ("".join(c if c.isalnum() or c in "._" else "_" for c in Path(part).name) for part in parts)
    return Path("results") / "-".join(names)


def _run(job: Job) -> Result:
    size = job.space.size
    job.progress.note(f"space {job.space.name}: {len(job.space.decisions)} decisions, {size} architectures")
    if size.exact and size.count == 1:
        job.progress.note("the space holds a single architecture, so there is nothing to search")
    candidates, history, alphas, seconds = (
        _differentiable(job) if job.config.is_differentiable else _black_box(job)
    )
    best, rerank = _rerank(job, candidates)
    network, retrain = _retrain(job, best)
    metrics = {
        **retrain,
        **{f"search_{k}": v for k, v in _found(history, best).items() if k in ("val_acc",)},
        **rerank,
        "search_seconds": seconds,
        "trials": len(history),
        "failed_trials": sum(trial.state == "failed" for trial in history),
    }
    graphs = cell_graphs(job.final, best)
    result = Result(job.final, best, graphs, to_cpu(network), rounded(metrics), history, job.folder)
    title = f"{job.space.name} on {job.task.name}, method {job.config.method}"
    write_result(result, image_shape=job.task.image_shape, title=title, alphas=alphas)
    clear_checkpoints(job.folder)
    return result


_Search = tuple[list[Genotype], Sequence[Trial], "Alphas | None", float]


def _differentiable(job: Job) -> _Search:
    """Candidates: what the alphas preferred last, then what they preferred before."""
    if job.space.size == Size(1, exact=True):
        return [job.space.sample(rng(0))], (), None, 0.0
    supernet = _supernet(job)
    study = Study(
        job.space, Listed((), 0), journal_storage(job.folder / JOURNAL), name="search", announce=False
    )
    job.progress.phase("search", job.plan.search.weights.epochs, done=len(study.history))

    def record(epochs: Sequence[differentiable.Epoch]) -> None:
        for epoch in epochs[len(study.history) :]:
            trial = Trial(len(study.history), epoch.genotype, fidelity=epoch.epochs)
            study.tell(trial, {"val_acc": epoch.val_acc, "train_loss": epoch.train_loss}, epoch.seconds)
            job.progress.advance(
                f"epoch {epoch.epoch}: supernet accuracy {epoch.val_acc:.4f}, loss {epoch.train_loss:.3f}"
            )

    with user_errors():
        epochs = differentiable.search(
            supernet,
            job.search_task,
            job.plan.search,
            seed=job.seed("search"),
            checkpoints=job.checkpoints("search"),
            budget_s=job.plan.budget_s,
            on_epoch=record,
            stop=job.stop,
        )
    record(epochs)
    genotypes = _distinct(job, (epoch.genotype for epoch in reversed(epochs)))
    alphas = Alphas.of(job.space, [epoch.strengths for epoch in epochs])
    return genotypes, study.history, alphas, study.spent_s


def _black_box(job: Job) -> _Search:
    """Candidates: the best trials."""
    evaluator, spent_s = _evaluator(job)
    epochs = 0 if job.config.evaluator == "shared" else job.plan.trial.epochs
    searcher = job.plan.searcher
    assert searcher is not None, "a black-box plan has a searcher"
    study = Study(
        job.space,
        Fixed(searcher, epochs),
        journal_storage(job.folder / JOURNAL),
        name="search",
        seed=job.seed("search"),
    )
    job.progress.phase("search", job.plan.trials, done=study.ended)

    def enough() -> bool:
        if job.stop():
            raise Stopped(f"search stopped after {study.ended} trials")
        budget = job.plan.budget_s
        return budget is not None and study.ended > 0 and spent_s + study.spent_s >= budget

    reason = study.run(
        Cached(evaluator, job.space, study.history),
        trials=job.plan.trials,
        stop=enough,
        on_trial=lambda trial: job.progress.advance(_line(trial)),
    )
    if study.ended < job.plan.trials:
        job.progress.note(f"the search ends early: {reason}")
    best = study.best(len(study.history))
    if not best:
        raise NoModelError(f"all {study.ended} trials failed; the last one: {study.history[-1].reason}")
    return _distinct(job, (t.genotype for t in best)), study.history, None, spent_s + study.spent_s


def _evaluator(job: Job) -> tuple[Evaluator, float]:
    """The evaluator, and the seconds it took to prepare."""
    if job.config.evaluator == "trained":
        folder = job.folder / CHECKPOINT
        return Trained(job.space, job.search_task, job.plan.trial, folder=folder, stop=job.stop), 0.0
    supernet = _supernet(job)
    job.progress.phase("supernet", job.plan.shared.epochs)
    with user_errors():
        curve = train_shared(
            supernet,
            job.search_task,
            job.plan.shared,
            seed=job.seed("shared"),
            checkpoints=job.checkpoints("supernet"),
            on_epoch=lambda report: job.progress.advance(epoch_line(report)),
            stop=job.stop,
        )
    return Inherited(supernet, job.search_task), sum(curve.seconds)


def _supernet(job: Job) -> Supernet:
    """The job's supernet with fresh weights, counted on the meta device before any memory is taken."""
    device = job.task.train.x.device
    with torch.device("meta"):
        require_memory(count_params(Supernet(job.space)), device)
    with isolated(job.seed("supernet"), "init"):
        return Supernet(job.space).to(device)


def _rerank(job: Job, candidates: Sequence[Genotype]) -> tuple[Genotype, dict[str, float]]:
    """Trains the candidates from scratch with fresh seeds; the best by validation, and what was measured."""
    if len(candidates) == 1:
        return candidates[0], {}
    study = Study(
        job.space,
        Listed(tuple(candidates), job.plan.top_k_epochs),
        journal_storage(job.folder / JOURNAL),
        name="rerank",
        seed=job.seed("rerank"),
    )
    job.progress.phase("re-evaluation", len(candidates), done=study.ended)

    def stop() -> bool:
        if job.stop():
            raise Stopped("re-evaluation stopped")
        return False

    folder = job.folder / CHECKPOINT / "rerank"
    study.run(
        Trained(job.space, job.search_task, job.plan.trial, folder=folder, stop=job.stop),
        trials=len(candidates),
        stop=stop,
        on_trial=lambda trial: job.progress.advance(_line(trial)),
    )
    if not (best := study.best()):
        raise NoModelError(f"all {len(candidates)} candidates failed; the last: {study.history[-1].reason}")
    return best[0].genotype, {
        "rerank_val_acc": best[0].metrics["val_acc"],
        "rerank_seconds": study.spent_s,
    }


def _retrain(job: Job, genotype: Genotype) -> tuple[nn.Module, dict[str, float]]:
    return train_final(
        job.final,
        genotype,
        job.task,
        job.recipe,
        seed=job.seed("retrain"),
        checkpoints=job.checkpoints("retrain"),
        progress=job.progress,
        stop=job.stop,
    )


def _distinct(job: Job, genotypes: Iterable[Genotype]) -> list[Genotype]:
    """The first `top_k` that are not isomorphic to one before."""
    found: dict[str, Genotype] = {}
    for genotype in genotypes:
        found.setdefault(architecture_hash(job.space, genotype), genotype)
        if len(found) == job.plan.top_k:
            break
    return list(found.values())


def _found(history: Sequence[Trial], genotype: Genotype) -> Mapping[str, float]:
    done = [t for t in history if t.state == "done" and t.genotype == genotype]
    return done[-1].metrics if done else {}


def _line(trial: Trial) -> str:
    if trial.state == "failed":
        return f"trial {trial.number}: failed, {trial.reason}"
    metrics = trial.metrics
    size = f", {metrics['params']:,.0f} parameters" if "params" in metrics else ""
    return f"trial {trial.number}: validation accuracy {metrics['val_acc']:.4f}{size}, {trial.cost_s:.1f} s"
