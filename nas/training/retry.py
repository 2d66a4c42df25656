"""Second chances for a training: a lower learning rate after it diverged, smaller parts when memory ran out.

A training that diverges begins again, once. One that runs out of memory goes on from its last checkpoint with
its batches divided in two, at most three times; the batch that a step learns from stays the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from nas import devices
from nas.errors import ConfigError, TrialError
from nas.files.atomic import read_json, storage_errors, write_json
from nas.files.schemas import checked
from nas.training.recipe import Recipe
from nas.user_code import user_errors

T = TypeVar("T")
_log = logging.getLogger("nas")

LR_FACTOR, PASSES = "lr_factor", "passes_per_step"
"""Metrics of a training that had a second chance."""
LOWER = 0.1
MOST_PASSES = 8
RETRY = "retry.json"
"""Where is written down what is being tried."""


@dataclass(frozen=True, slots=True)
class Retry:
    """What another attempt at a training changes of its recipe; nothing by default.

    lr_factor: of the learning rates. passes: forward and backward that each step is divided into.
    """

    lr_factor: float = 1.0
    passes: int = 1

    def of(self, recipe: Recipe) -> Recipe:
        """The recipe at the lower rate."""
        if self.lr_factor == 1:
            return recipe
        return replace(recipe, lr=recipe.lr * self.lr_factor, lr_min=recipe.lr_min * self.lr_factor)

    @property
    def metrics(self) -> dict[str, float]:
        """What differs, to be recorded."""
        lower = {LR_FACTOR: self.lr_factor} if self.lr_factor != 1 else {}
        return lower | ({PASSES: float(self.passes)} if self.passes > 1 else {})

    def after(self, reason: str, batch: int) -> Retry | None:
        """What to try after a failure of that reason at that batch; None when nothing is left.

        Every part keeps at least two images, which batch-norm needs.
        """
        if reason == "nan" and self.lr_factor == 1:
            return replace(self, lr_factor=LOWER)
        if reason == "oom" and 2 * self.passes <= min(MOST_PASSES, batch // 2):
            return replace(self, passes=2 * self.passes)
        return None

    def place(self, folder: Path) -> Path:
        """Where its checkpoints are: at another learning rate it is another training."""
        return folder if self.lr_factor == 1 else folder / f"lr-{self.lr_factor:g}"

    def __str__(self) -> str:
        rate = [f"at {self.lr_factor:g} times the learning rate"] * (self.lr_factor != 1)
        return " and ".join([*rate, *[f"with batches in {self.passes} parts"] * (self.passes > 1)])


def with_retries(
    attempt: Callable[[Retry], T],
    *,
    folder: Path | None,
    batch: int,
    note: Callable[[str], None] = _log.warning,
    alone: bool = True,
) -> tuple[T, Retry]:
    """What `attempt` returns, asked again where it diverges or runs out of memory, and what was changed.

    attempt: trains as told, with checkpoints where `Retry.place` says, on a network that it makes anew.
    folder: where is written down what was tried, so that a killed training goes on with the last of it.
    batch: images per step; below 4 there is nothing to divide.
    note: hears why there is another attempt.
    alone: whether no other process trains along; those of a team could not know of another attempt, so there
      is one only.

    Raises:
        TrialError: of the last attempt.
    """
    retry = last_retry(folder) if alone else Retry()
    while True:
        try:
            with user_errors():
                return attempt(retry), retry
        except TrialError as error:
            following = retry.after(error.reason, batch) if alone else None
            if following is None:
                if retry == Retry():
                    raise
                raise TrialError(error.reason, f"{error} (tried again {retry})", error.metrics) from error
            reason, why = error.reason, str(error)
        if reason == "oom":  # outside of the handler: what failed is kept alive by its traceback
            devices.release()
        retry = following
        note(f"{why}; tried again {retry}")
        if folder is not None:
            with storage_errors(folder / RETRY):
                folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / RETRY, asdict(retry))


def last_retry(folder: Path | None) -> Retry:
    """What was being tried in a folder when its training was interrupted."""
    if folder is None or not (folder / RETRY).exists():
        return Retry()
    try:
        return checked(Retry, read_json(folder / RETRY), folder / RETRY, "record of a second chance")
    except ConfigError as error:
        _log.warning("%s; the training begins as its recipe says", error)
        return Retry()
