"""What the time that a user gives allows: an audit, and how much one trial may spend."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nas.budget.clock import Clock
from nas.budget.pace import network_pace
from nas.errors import NoModelError, TrialError
from nas.evaluation.calibration import Settings
from nas.job.calibrate_run import calibrate
from nas.job.config import make_config
from nas.job.preparation import prepare
from nas.oneshot.fused.execution import PATIENT_S
from nas.seeding import rng
from nas.space import Space
from nas.task import Task
from nas.training.resumable import Stopped

CALIBRATED_S, CALIBRATED = 1800.0, 0.15
"""From this time on so much of it may go to finding out how cheaply architectures can be compared."""
AUDITED, AUDIT_S, AUDIT_PAIRS = 0.1, 0.004, 20_000
"""Share of the time that an audit may take; its seconds for an image; so many images take twice as long."""
AUDIT_LEAST_S = 3.0
"""Of an audit of however few images: its networks are trained for a least number of steps."""
CALIBRATION = Settings(architectures=8, epochs=6, seeds=1)
WORTH, MOST_EPOCHS = 12, 12
"""So many trials should fit into half of the time, of so many epochs at most."""


def allows_audit(task: Task, budget_s: float) -> bool:
    """Whether the images can be audited in a small share of the time."""
    count = sum(len(split) for split in (task.train, task.val, task.test))
    pixels = task.image_shape[1] * task.image_shape[2]
    expected_s = AUDIT_S * count * (1 + count / AUDIT_PAIRS) * max(1.0, pixels / 28**2)
    return max(AUDIT_LEAST_S, expected_s) <= AUDITED * budget_s


def allowed_fidelity(
    space: str | Space, task: Task, folder: Path, clock: Clock, settings: Mapping[str, object]
) -> dict[str, object]:
    """What a trial may spend: calibrated where there is time for it, else epochs of which enough fit.

    folder: of the run, beside which a calibration is kept. settings: of the job, with space and task.
    """
    budget_s = clock.budget_s or 0.0
    if budget_s >= CALIBRATED_S and (place := _calibrated(space, task, folder, clock, settings)) is not None:
        return {"fidelity": "auto", "calibration": str(place)}
    made = space if isinstance(space, Space) else None
    config = make_config({**settings, "method": "random"})
    job, _ = prepare(config, folder, space=made, task=task, tries=False)
    try:
        genotype = job.space.sample(rng(0, "classifier"))
        step_s = network_pace(job.space, genotype, job.search_task, job.plan.trial, limit_s=0.02 * budget_s)
    except TrialError:  # of one architecture; the search will meet others
        return {}
    steps = max(1, len(job.search_task.train) // job.plan.trial.batch)
    epochs = round(budget_s / 2 / (WORTH * steps * step_s))
    return {"epochs": min(MOST_EPOCHS, max(1, epochs))}


def _calibrated(
    space: str | Space, task: Task, folder: Path, clock: Clock, settings: Mapping[str, object]
) -> Path | None:
    """Where the calibration is; None where it was too slow, or could tell nothing apart."""
    place, end_s = folder.with_name(f"{folder.name}-calibration"), CALIBRATED * (clock.budget_s or 0.0)
    config = {name: value for name, value in settings.items() if name not in ("space", "task")}
    if (clock.budget_s or 0.0) < PATIENT_S:
        config = {"execution": "batched", **config}
    try:
        calibrate(space, task, CALIBRATION, out=place, config=config, stop=lambda: clock.late(end_s))
    except (Stopped, NoModelError):
        return None
    return place
