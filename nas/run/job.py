"""A job as its phases see it, settings, space, data, and where everything goes, and what its search found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage

from nas.data.task import Task
from nas.errors import Stopped
from nas.results.alphas import Alphas
from nas.results.run_record import read_run
from nas.run.clock import Clock
from nas.run.config import Config
from nas.run.resolved_config import Plan
from nas.searchers.scheduler import Scheduler
from nas.seeding import derive
from nas.show.progress import Progress
from nas.show.tracking.tracker import NO_TRACKING, Tracking
from nas.space.genotypes import Size
from nas.space.graph import architecture_hash
from nas.space.latency import LatencyTable
from nas.space.space import Space
from nas.study.journal import JOURNAL
from nas.study.local_processes import Processes
from nas.study.storage import open_storage
from nas.study.study import Study
from nas.study.workers import Evaluate
from nas.training.ddp import ALONE, Team
from nas.training.recipe import Recipe
from nas.types import Genotype, Trial


@dataclass(frozen=True, eq=False)
class Job:
    """Everything the phases need.

    task: all images; `search_task` has what the phases before the last training may use.
    final: the space at the size of the last network. recipe: of the last training.
    genotype: the architecture to train, where the job does not search for one.
    team: the processes that train together. clock: how long the job has been at work.
    tracking: what is told to experiment trackers. processes: of this machine, in which trials are evaluated;
      None where all is done in this one. executor: where they are evaluated instead.
    notes: what the user should know before it begins.
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
    genotype: Genotype | None = None
    team: Team = ALONE
    clock: Clock = field(default_factory=Clock)
    tracking: Tracking = NO_TRACKING
    processes: Processes | None = None
    executor: Executor | None = None
    notes: Sequence[str] = ()

    @cached_property
    def latency_table(self) -> LatencyTable | None:
        """The table that latencies are looked up in, if one was named."""
        path = self.config.latency_table
        return None if path is None else LatencyTable.read(Path(path))

    @cached_property
    def storage(self) -> BaseStorage:
        """Where the trials are written."""
        address = self.config.storage
        return open_storage(self.folder / JOURNAL if address is None else address)

    @cached_property
    def prefix(self) -> str:
        """What stands before the names of the job's studies, in a database that others use, too."""
        if self.config.storage is None:
            return ""
        return f"{read_run(self.folder).get('run', self.folder.name)}/"

    def study(self, name: str, scheduler: Scheduler, **options: Any) -> Study:  # noqa: ANN401 - of `Study`
        """A study of this job. options: of `nas.Study`."""
        waiting = partial(self.check_stop, "stopped while the storage could not be used")
        options = {"goals": self.plan.goals, "seed": self.seed(name)} | options
        return Study(
            self.space,
            scheduler,
            self.storage,
            name=name,
            prefix=self.prefix,
            patience_s=self.config.storage_patience,
            stop=waiting,
            **options,
        )

    @property
    def has_choice(self) -> bool:
        """Whether there is anything to search: more than one architecture."""
        return self.space.size != Size(1, exact=True)

    @property
    def is_own_baseline(self) -> bool:
        """Whether the search is a random one itself, which needs none beside it to be compared with."""
        return self.config.method == "random" and self.plan.scheduler == "fixed"

    def until(self, at_s: float | None) -> Job:
        """The job, stopped by TimeUp when its clock is at `at_s`; None is never."""
        return self if at_s is None else replace(self, stop=self.clock.until(at_s, self.stop))

    def check_stop(self, words: str) -> None:
        """Raises Stopped with these words when the job was asked to stop."""
        if self.stop():
            raise Stopped(words)

    def seed(self, phase: str) -> int:
        """The root of one phase's random streams."""
        return derive(self.config.seed, phase)


@dataclass(frozen=True, eq=False)
class SearchOutcome:
    """What a search found.

    candidates: the best architectures, best first, no two isomorphic.
    history: its trials. seconds: what they and their supernet took.
    alphas, epochs: of a differentiable search, its strengths, and the record of each epoch as of
      `EpochRecord`.
    measure: the evaluator of its trials, None where gradients searched. fidelity: epochs of a full trial.
    untaught: why nothing was learned, so that its one candidate is the default architecture; empty where
      anything was.
    """

    candidates: Sequence[Genotype]
    history: Sequence[Trial] = ()
    seconds: float = 0.0
    measure: Evaluate | None = None
    fidelity: int = 0
    alphas: Alphas | None = None
    epochs: Sequence[Mapping[str, object]] = ()
    untaught: str = ""


def distinct(job: Job, genotypes: Iterable[Genotype]) -> list[Genotype]:
    """The first `top_k` that are not isomorphic to one before."""
    found: dict[str, Genotype] = {}
    for genotype in genotypes:
        found.setdefault(architecture_hash(job.space, genotype), genotype)
        if len(found) == job.plan.top_k:
            break
    return list(found.values())
