"""The supernets of a job whose trained weights its trials are measured by, or begin with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from nas.evaluate.inherited import Inherited, from_supernet
from nas.evaluate.trained import Start
from nas.oneshot.path_training import Shared, Sharing, train_split
from nas.oneshot.supernet import Supernet
from nas.results.run_record import CHECKPOINT
from nas.run.job import Job
from nas.seeding import isolated
from nas.show.tracking.tracker import of_epochs
from nas.space.cost import count_params
from nas.study.workers import Evaluate
from nas.training.checkpoint import Checkpoints
from nas.training.memory_estimate import require_memory
from nas.training.retry import Retry, with_retries
from nas.training.train import EpochReport
from nas.types import Trial
from nas.user_code import user_errors

SHARED = "shared weights"
"""What the training of a supernet for trials is called between ranks."""


def shared_weights(job: Job) -> tuple[Inherited, float]:
    """Trained supernets as an evaluator, and the seconds that they took."""
    # A supernet's steps have passes of their own, so that nothing eases lack of memory.
    shared, _ = with_retries(
        lambda retry: _share(job, retry),
        folder=job.folder / CHECKPOINT,
        batch=1,
        note=job.progress.note,
        alone=job.team.size == 1,
    )
    if shared.split:
        names = ", ".join(job.space.decisions[i].name for i in shared.split)
        job.progress.note(f"the supernet was split by {names} into {len(shared.supernets)}")
    return Inherited(shared, job.search_task, sharing_of(job).calibration), shared.seconds


def _share(job: Job, retry: Retry) -> Shared:
    supernet, folder = fresh_supernet(job), retry.place(job.folder / CHECKPOINT)
    job.progress.phase("supernet", job.plan.shared.epochs)
    job.team.call(SHARED)
    done, part = 0, ""

    def told(report: EpochReport) -> None:
        nonlocal done
        done += 1
        job.progress.advance(str(report), done=done)
        job.tracking.tell(of_epochs(str(retry.place(Path(part))), [report]))

    def checkpoints(name: str) -> Checkpoints:
        nonlocal part
        part = name  # what is trained next
        return Checkpoints(folder / name)

    return train_split(
        supernet,
        job.search_task,
        retry.of(job.plan.shared),
        sharing_of(job),
        seed=job.seed("shared"),
        checkpoints=checkpoints,
        on_epoch=told,
        stop=job.stop,
        team=job.team,
    )


def help_with_weights(job: Job) -> None:
    """What the other ranks do while rank 0 trains the shared weights."""
    supernet, plan = fresh_supernet(job), job.plan
    with user_errors():
        train_split(
            supernet,
            job.search_task,
            plan.shared,
            sharing_of(job),
            seed=job.seed("shared"),
            stop=job.stop,
            team=job.team,
        )


def sharing_of(job: Job) -> Sharing:
    """How the weights of the job's supernet are trained and used."""
    return job.plan.sharing or Sharing()


def fresh_supernet(job: Job) -> Supernet:
    """The job's supernet with fresh weights, counted on the meta device before any memory is taken."""
    device = job.task.train.x.device
    with torch.device("meta"):
        require_memory(count_params(Supernet(job.space)), device)
    with isolated(job.seed("supernet"), "init"):
        return Supernet(job.space).to(device)


def warm_start(job: Job, measure: Evaluate | None) -> Start | None:
    """What the re-evaluation begins with: the weights of the trials' supernet, where the job wants that."""
    if job.config.warm_start != "supernet" or not isinstance(measure, Inherited):
        return None
    shared = measure.shared

    def start(trial: Trial, network: nn.Module) -> nn.Module:
        supernet = shared if isinstance(shared, Supernet) else shared.of(trial.genotype)
        return from_supernet(supernet)(trial, network)

    return start
