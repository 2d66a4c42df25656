"""The supernet of a job whose trained weights its trials are measured by, or begin with."""

from __future__ import annotations

from pathlib import Path

import torch

from nas.evaluate.inherited import Inherited, from_supernet
from nas.evaluate.trained import Start
from nas.oneshot.path_training import Sharing, train_shared
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
from nas.user_code import user_errors

SHARED = "shared weights"
"""What the training of a supernet for trials is called between ranks."""


def shared_weights(job: Job) -> tuple[Inherited, float]:
    """A trained supernet as an evaluator, and the seconds that its training took."""
    # A supernet's steps have passes of their own, so that nothing eases lack of memory.
    (supernet, seconds), _ = with_retries(
        lambda retry: _trained(job, retry),
        folder=job.folder / CHECKPOINT,
        batch=1,
        note=job.progress.note,
        alone=job.team.size == 1,
    )
    return Inherited(supernet, job.search_task, sharing_of(job).calibration), seconds


def _trained(job: Job, retry: Retry) -> tuple[Supernet, float]:
    supernet = fresh_supernet(job)
    job.progress.phase("supernet", job.plan.shared.epochs)
    job.team.call(SHARED)

    def told(report: EpochReport) -> None:
        job.progress.advance(str(report), done=report.epoch)
        job.tracking.tell(of_epochs(str(retry.place(Path("supernet"))), [report]))

    curve = train_shared(
        supernet,
        job.search_task,
        retry.of(job.plan.shared),
        seed=job.seed("shared"),
        sampling=sharing_of(job).sampling,
        checkpoints=Checkpoints(retry.place(job.folder / CHECKPOINT) / "supernet"),
        on_epoch=told,
        stop=job.stop,
        team=job.team,
    )
    return supernet, sum(curve.seconds)


def help_with_weights(job: Job) -> None:
    """What the other ranks do while rank 0 trains the shared weights."""
    supernet, sampling = fresh_supernet(job), sharing_of(job).sampling
    with user_errors():
        train_shared(
            supernet,
            job.search_task,
            job.plan.shared,
            seed=job.seed("shared"),
            sampling=sampling,
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
    return from_supernet(measure.supernet)
