"""What every job goes through, whatever its work: ranks, folder, record, trackers, and last the bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from nas import devices
from nas.export.at_end import bundle_at_end, is_bundled
from nas.files.folder_lock import FolderLock
from nas.results.result import Result, is_finished, load_result
from nas.results.run_record import RETRAIN, SEARCH
from nas.run.config import Config
from nas.run.differentiable import help_to_search
from nas.run.final_training import help_to_retrain
from nas.run.forecast import EXPORT_S
from nas.run.job import Job
from nas.run.ranks import BEGIN, follow_to, help_all
from nas.run.run_folder import begin, clear_checkpoints, open_folder
from nas.run.supernet_phase import SHARED, help_with_weights
from nas.run.trackers import check_trackers, open_tracking
from nas.show.console import telling
from nas.show.progress import Progress, Silent, Wanted
from nas.show.tracking.tracker import Tracker
from nas.space.loading import is_plugin
from nas.training.ddp import Team
from nas.training.distributed import joined

Prepare = Callable[[Progress, Team], tuple[Job, list[str]]]
"""Makes a job of what was asked, checked before anything is written, and notes on it for the user."""


def carry_out(
    config: Config,
    place: Path,
    prepare: Prepare,
    work: Callable[[Job], Result],
    *,
    progress: Wanted,
    trackers: Sequence[Tracker],
    stop: Callable[[], bool] | None,
    force: bool,
) -> Result:
    """Prepares a job on every rank and does its work in its folder, which may hold its result already.

    work: done by rank 0, which calls the others to its trainings; writes the result and returns it.
    progress, trackers, stop, force: as of `nas.search`.
    """
    with telling(progress) as told:
        with joined(limit_s=config.rank_timeout, stop=stop) as team:
            if team.leads:
                check_trackers(config)
            else:
                follow_to(place, team)
            job, notes = prepare(told if team.leads else Silent(), team)
            if not team.leads:
                _follow(job)
                return load_result(place, space=job.final)
            result = _lead(job, notes, work, trackers, force=force)
        # Without the other ranks, which would wait in vain.
        if config.export and not is_bundled(result.folder):
            if job.clock.left_s < EXPORT_S:
                job.progress.note(f"budget: no time for a bundle; nas export {result.folder} writes it")
            else:
                bundle_at_end(result, job.task, job.progress)
        return result


def _lead(
    job: Job, notes: Sequence[str], work: Callable[[Job], Result], trackers: Sequence[Tracker], *, force: bool
) -> Result:
    folder = open_folder(job.folder)
    job = replace(job, folder=folder)
    with FolderLock(folder):
        record = begin(
            folder,
            job.config,
            job.plan,
            space=job.space,
            task=job.task,
            genotype=job.genotype,
            ranks=job.team.size,
            force=force,
        )
        job.team.call(BEGIN)
        note = job.progress.note
        with open_tracking(job.config, folder, record, own=trackers, note=note) as tracking:
            result = _result(replace(job, tracking=tracking), notes, work)
            tracking.finish(result.metrics, folder)
    return result


def _result(job: Job, notes: Sequence[str], work: Callable[[Job], Result]) -> Result:
    if is_finished(job.folder):
        job.progress.note(f"{job.folder} holds this run already, finished")
        clear_checkpoints(job.folder)
        # Its own record knows the size of its network, which a budget may have chosen.
        named = job.config.space if is_plugin(job.config.space) else None
        return load_result(job.folder, space=named if job.final.origin else job.final)
    job.clock.open(job.folder)
    for note in notes:
        job.progress.note(note)
    return work(job)


def _follow(job: Job) -> None:
    """What the other ranks do: they join the trainings that rank 0 calls them to, until the job ends."""
    phases = {
        SEARCH: lambda _: help_to_search(job),
        SHARED: lambda _: help_with_weights(job),
        RETRAIN: lambda genotype: help_to_retrain(job, tuple(genotype)),
    }
    with devices.repeatable(enabled=job.config.deterministic):
        help_all(job.team, phases)
