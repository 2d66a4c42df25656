"""A job as its phases see it: settings, space, data, and where everything goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nas.config import Config
from nas.latency import LatencyTable
from nas.plan import Plan
from nas.progress import Progress
from nas.recipe import Recipe
from nas.seeding import derive
from nas.space import Space
from nas.task import Task


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

    @cached_property
    def latency_table(self) -> LatencyTable | None:
        """The table that latencies are looked up in, if one was named."""
        path = self.config.latency_table
        return None if path is None else LatencyTable.read(Path(path))

    def seed(self, phase: str) -> int:
        """The root of one phase's random streams."""
        return derive(self.config.seed, phase)
