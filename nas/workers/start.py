"""The workers of a job on this machine: how many, where, and the processes themselves."""

from __future__ import annotations

import subprocess  # nosec B404
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas.errors import WorkersError
from nas.job.job import Job
from nas.job.run_folder import describe_run
from nas.job.trial_search import TrialSearch
from nas.job.trial_setup import telling
from nas.latency import LATENCY
from nas.registry import is_plugin
from nas.results.run_record import CHECKPOINT
from nas.storage.address import VARIABLE, check_writers, writers
from nas.workers.coordinate import coordinate
from nas.workers.pool import GRACE_S, Pool, Start
from nas.workers.probe import Crowd, SampleProcess, probe
from nas.workers.slots import Slot, cores, gpus_of, make_slots

COMMAND = (sys.executable, "-m", "nas", "worker")
TAIL = 2000
"""Characters of what a worker said last that an error repeats."""


def job_slots(job: Job) -> list[Slot]:
    """The places of the job's workers; none where the coordinator does all the work itself."""
    config = job.config
    if config.workers in (0, 1) and config.trial_timeout is None:
        return []
    if config.shares_weights:
        job.progress.note(f"method {config.method!r} runs with one worker: its trials share their weights")
        return []
    gpus = gpus_of(config.device)
    if config.workers == "auto" and writers(config.storage) == 1:
        job.progress.note(f"the search runs with one worker: storage {config.storage} takes no more")
        return []
    count = _probed(job, gpus) if config.workers == "auto" else max(1, config.workers)
    check_writers(config.storage, count)
    if count > 1 and LATENCY in job.plan.goals.metrics and config.latency_table is None:
        job.progress.note(
            "WARNING: latencies are measured while other workers compute; they are relative to a reference "
            "that is measured beside them, but a latency table is surer"
        )
    return make_slots(count, gpus) if count > 1 or config.trial_timeout is not None else []


def _probed(job: Job, gpus: Sequence[str]) -> int:
    """As many workers as train a small candidate fastest: found on the first GPU, or on all cores."""
    places = max(1, len(gpus))
    job.progress.note("trying how many workers this machine bears")
    try:
        with crowd_of(job, gpus) as crowd:
            most = max(1, cores() // places)
            each = probe(crowd, most=most, on_try=lambda tried: job.progress.note(str(tried)))
    except WorkersError as error:  # the first trial will say what is wrong, if there is anything
        job.progress.note(str(error))
        each = 1
    job.progress.note(f"workers: {each * places}")
    return each * places


def crowd_of(job: Job, gpus: Sequence[str]) -> Crowd:
    """Processes on the first GPU, or on all cores, that train a candidate of a job whose folder was begun."""
    first, places = make_slots(1, gpus)[0], max(1, len(gpus))
    environment = {name: value for name, value in first.environment().items() if name != VARIABLE}
    own = [job.config.space] if is_plugin(job.config.space) else []
    command = [sys.executable, "-m", "nas.workers.sample", str(job.folder), first.device, *own]
    return Crowd(
        lambda: SampleProcess(command, environment), lambda count: make_slots(count * places, gpus)[0].threads
    )


def describe_job(job: Job) -> dict[str, Any]:
    """What a worker that joins must know."""
    return describe_run(job.config, job.plan, job.space, job.task) | {"begun": None}


def work_together(search: TrialSearch, slots: list[Slot]) -> None:
    """Evaluates the trials of a search by workers on this machine, to their end."""
    job, logs = search.job, search.job.folder / CHECKPOINT / "workers"
    logs.mkdir(parents=True, exist_ok=True)
    pool = Pool(
        slots,
        starting(job, logs),
        lease_s=job.config.lease,
        note=job.progress.note,
        last_words=lambda slot: _tail(_log(logs, slot)),
    )
    coordinate(
        search.study,
        pool,
        trials=job.plan.trials,
        stop=search.enough,
        on_trial=telling(job, search.study.name),
        trial_timeout_s=job.config.trial_timeout,
        max_failures=job.config.max_failures,
    )


def starting(job: Job, logs: Path) -> Start:
    """Starts `nas worker` processes, new ones rather than copies, on one GPU each or on some cores."""
    # Whoever named code of his own for the job has named it for its workers.
    own = ["--space", job.config.space] if is_plugin(job.config.space) else []
    address = job.config.storage
    secret = {} if address is None else {VARIABLE: address.secret}

    def start(slot: Slot, descriptor: int) -> subprocess.Popen[bytes]:
        command = [*COMMAND, str(job.folder), "--device", slot.device, *own]
        with _log(logs, slot).open("ab") as log:
            return subprocess.Popen(  # nosec B603
                [*command, "--pulse", str(descriptor), "--grace", str(GRACE_S / 2)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=slot.environment() | secret,
                pass_fds=(descriptor,),
                start_new_session=True,
            )

    return start


def _log(logs: Path, slot: Slot) -> Path:
    return logs / f"worker-{slot.number}.log"


def _tail(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[-TAIL:].strip()
    except OSError:
        return "(nothing)"
