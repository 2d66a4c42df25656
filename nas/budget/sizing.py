"""The size of the last network that a time allows: from a ladder of sizes, by steps that are timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from nas.budget.pace import final_pace
from nas.budget.threads import paced, threads
from nas.errors import NasError
from nas.evaluation.measured import COUNTED, free_metrics
from nas.job.final_network import final_space
from nas.job.job import Job
from nas.results.run_record import RETRAIN
from nas.types import Genotype

STEPS, EPOCHS = 2200, 28
"""Of a last training that is long enough: the fewer of both."""
WIDTHS = (4.0, 3.0, 2.5, 2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5)
"""Times the preset's last network; beyond the first of them images keep twice the resolution."""
LEAST_SIDE = 16
"""Pixels of a map that cells, which halve it twice, still make something of."""
TIMED = 10
"""Steps."""
FASTER = 1.15
"""So many times as fast as float32 must bfloat16 be, at least, to be taken."""


def sized(job: Job, genotype: Genotype, last_s: float) -> tuple[Job, float]:
    """The job whose last network is as large as a time for its training allows, and the seconds of a step.

    It is the largest of which `STEPS` steps or `EPOCHS` epochs fit. With it the arithmetic is chosen, since a
    CPU may do bfloat16 several times as fast; what the user has set stays.
    """
    images = len(job.task.train) + len(job.task.val)
    wanted = min(STEPS, EPOCHS * max(1, images // job.recipe.batch))
    found = job.clock.decide("size", lambda: _chosen(job, genotype, last_s / wanted), lasting=True)
    return _at(job, found["settings"], found["precision"]), found["step_s"]


def _chosen(job: Job, genotype: Genotype, step_s: float) -> dict[str, Any]:
    """Settings, arithmetic and the seconds of a step, of which at most `step_s` are wanted."""
    limit_s = (TIMED + 2) * step_s

    def pace(at: Job) -> float:
        return final_pace(at, genotype, steps=TIMED, limit_s=limit_s)

    count, exact_s = paced(job, RETRAIN, lambda: pace(job))
    with threads(count):
        precision = job.recipe.precision
        if precision == "auto" and job.task.train.x.device.type == "cpu":
            precision = "float32" if pace(_at(job, {}, "bfloat16")) * FASTER > exact_s else "bfloat16"
        sizes = _sizes(job, genotype)
        low, high, timed = 0, len(sizes) - 1, {}
        while low < high:  # the first that is fast enough; they get cheaper
            middle = (low + high) // 2
            timed[middle] = pace(_at(job, sizes[middle], precision))
            low, high = (low, middle) if timed[middle] <= step_s else (middle + 1, high)
        took_s = timed.get(low) or pace(_at(job, sizes[low], precision))
    return {"settings": sizes[low], "precision": precision, "step_s": took_s}


def _at(job: Job, settings: Mapping[str, object], precision: str) -> Job:
    """The job at another size of its last network."""
    recipe = dataclasses.replace(job.recipe, precision=precision)  # type: ignore[arg-type]
    if not settings:
        return dataclasses.replace(job, recipe=recipe)
    config = job.config.model_copy(update={"final_settings": {**settings, **job.config.final_settings}})
    final = final_space(config, job.plan, job.space, job.task)
    return dataclasses.replace(job, config=config, final=final, recipe=recipe)


def _sizes(job: Job, genotype: Genotype) -> list[dict[str, object]]:
    """Settings of the last network, the most expensive first, at which an architecture keeps the constraints.

    They set, where the space knows them and the user does not, its width, the stride of its stem and the
    number of its cells.
    """
    config, known = job.config, job.final.settings
    fixed = config.final_settings.keys() | config.space_settings.keys()
    free = {name for name in ("width", "cells", "stem_stride") if type(known.get(name)) is int} - fixed
    side = min(job.task.image_shape[1:])
    stride = 1 << max(0, (side // LEAST_SIDE).bit_length() - 1)
    cells = max(3, round(0.6 * int(known.get("cells", 0))))  # type: ignore[call-overload]
    ladder: list[tuple[int, float, dict[str, int]]] = [
        (max(1, stride // 2), width, {}) for width in WIDTHS[:2]
    ]
    ladder += [(stride, width, {}) for width in WIDTHS]
    ladder += [(stride, WIDTHS[-1], {"cells": cells}), (2 * stride, WIDTHS[-1], {"cells": cells})]
    found: list[dict[str, object]] = []
    for stem_stride, width, fewer in ladder:
        wide = max(4, round(width * int(known.get("width", 0))))  # type: ignore[call-overload]
        size = {"width": wide, "stem_stride": stem_stride, **fewer}
        settings = {name: value for name, value in size.items() if name in free}
        if settings not in found and _keeps(job, settings, genotype):
            found.append(settings)
    return found or [{}]


def _keeps(job: Job, settings: Mapping[str, object], genotype: Genotype) -> bool:
    """Whether an architecture can be built at a size, and keeps the constraints on what can be counted."""
    bounds = [bound for bound in job.plan.goals.constraints if bound.metric in COUNTED]
    try:
        costs = free_metrics(_at(job, settings, "auto").final, genotype, job.task.image_shape, None)
    except NasError:
        return False
    return all(bound.excess(costs) == 0 for bound in bounds)
