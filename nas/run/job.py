"""A job as its phases see it: its clock, settings, space and data, its folder, and what its search found."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from optuna.storages import BaseStorage

from nas.data.problem import Problem
from nas.data.task import Task
from nas.errors import Stopped
from nas.files.atomic import read_json, write_json
from nas.files.schemas import DecisionRecord, TimeRecord, checked
from nas.results.result import Alphas
from nas.results.run_record import read_run
from nas.run.config import Config
from nas.searchers.fidelity import Ladder
from nas.searchers.goals import Goals
from nas.searchers.scheduler import Scheduler
from nas.searchers.searcher import Searcher
from nas.seeding import derive
from nas.show.progress import Progress
from nas.show.tracking.tracker import NO_TRACKING, Tracking
from nas.space.graph import architecture_hash
from nas.space.latency import LatencyTable
from nas.space.space import Size, Space
from nas.study.storage import JOURNAL, Store, open_storage
from nas.study.study import Study
from nas.study.workers import Evaluate, Processes
from nas.training.ddp import ALONE, Team
from nas.training.recipe import Recipe
from nas.types import Genotype, Trial

if TYPE_CHECKING:
    from nas.oneshot.methods import Method
    from nas.oneshot.path_training import Sharing

BEGIN = "begin"
"""What the start of a job is called between ranks."""
TIME = "time.json"
"""The file of a run's folder that its clock is kept in."""
SAVE_S = 5.0
"""Seconds at work that a killed process may forget, at most."""


class TimeUp(Stopped):
    """The time of a phase is over; what it did so far counts."""


class Clock:
    """Counts the seconds of a job; those of its earlier processes count, too.

    budget_s: of the whole job; None for no limit.
    since: when the job began in this process, by `now`.

    What depends on measured time is written down, so that a resumed job decides the same (`decide`).
    """

    def __init__(
        self,
        budget_s: float | None = None,
        *,
        since: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget_s, self.hurried = budget_s, False
        self._now, self._since = now, now() if since is None else since
        self._end_s = math.inf if budget_s is None else budget_s
        self._saved_at = -math.inf
        self._path: Path | None = None
        self._before: TimeRecord | None = None
        self._decided: dict[str, DecisionRecord] = {}

    def open(self, folder: Path) -> None:
        """From here on the time is kept in a run's folder, and what is there counts."""
        self.recall(folder)
        self._path = folder / TIME
        self.save()

    def recall(self, folder: Path) -> None:
        """Counts what a run's folder says of earlier processes, once; nothing is written."""
        path = folder / TIME
        if self._before is None and path.exists():
            self._before = checked(TimeRecord, read_json(path), path, "record of a job's time")
            self._decided = {**self._before.decided, **self._decided}

    @property
    def elapsed_s(self) -> float:
        """Seconds since the job began, all its processes together."""
        earlier_s = 0.0 if self._before is None else self._before.spent_s
        return earlier_s + self._now() - self._since

    @property
    def left_s(self) -> float:
        """Seconds until the end of the budget, negative after it; infinite without one."""
        return self._end_s - self.elapsed_s

    def late(self, at_s: float) -> bool:
        """Whether the clock is at `at_s` or beyond, or everybody is to hurry; asked often."""
        if self._now() - self._saved_at >= SAVE_S:
            self.save()
        return self.hurried or self.elapsed_s >= at_s

    def until(self, at_s: float, stop: Callable[[], bool]) -> Callable[[], bool]:
        """`stop`, which raises TimeUp from `at_s` on."""

        def asked() -> bool:
            if stop():
                return True
            if self.late(at_s):
                self.save()
                raise TimeUp(f"the time is over after {self.elapsed_s:.0f} s")
            return False

        return asked

    def hurry(self, grace_s: float) -> None:
        """Ends every phase at once but the last training, which gets `grace_s` at most."""
        self.hurried = True
        self._end_s = min(self._end_s, self.elapsed_s + grace_s)

    def decide(self, name: str, choose: Callable[[], Any], *, lasting: bool = False) -> Any:  # noqa: ANN401 - JSON
        """What was decided under this name before, else what `choose` says, written down; plain JSON.

        lasting: keep it under another budget, too, because what has begun cannot go on otherwise.
        """
        known = self._decided.get(name)
        if known is None or not (lasting or known.budget_s == self.budget_s):
            known = self._decided[name] = DecisionRecord(value=choose(), budget_s=self.budget_s)
            self.save()
        return known.value

    def save(self) -> None:
        """Writes the time down, where it is kept."""
        self._saved_at = self._now()
        if self._path is not None:
            spent = TimeRecord(spent_s=max(0.0, self.elapsed_s), decided=self._decided)
            write_json(self._path, spent.model_dump())


@dataclass(frozen=True)
class Plan:
    """What a preset, and the settings on top of it, come to; the fields are those of `Preset`.

    searcher: proposes the trials; None for a differentiable search, whose method is `search`.
    goals: what they are judged by.
    sharing: how the weights of a supernet are trained for trials; None where there is none.
    earlier: the folder of a run that the searcher learns from too; proxies: names of those that it sees.
    ladder: of a multi-fidelity search; without one it has a single rung.
    repeats: trainings of each of the best.
    size: offered to the space while searching. final_size: of the last network, on top of the searched one's.
    full_size: whether the space's own full size comes before `final_size`.
    """

    trial: Recipe
    search: Method | None
    supernet: Recipe
    sharing: Sharing | None
    final: Recipe
    searcher: Searcher | None
    goals: Goals
    earlier: str
    proxies: tuple[str, ...]
    ladder: Ladder
    repeats: int
    trials: int
    top_k: int
    top_k_epochs: int
    search_images: int | None
    final_images: int | None
    size: Mapping[str, object]
    final_size: Mapping[str, object]
    full_size: bool

    @property
    def method(self) -> Method:
        """The method of a differentiable search."""
        assert self.search is not None
        return self.search

    @property
    def lead(self) -> Goals:
        """The first objective under all constraints: what a single network is chosen by."""
        return Goals(self.goals.objectives[:1], self.goals.constraints)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        recipes = {name: asdict(own[name]) for name in ("trial", "supernet", "final")}
        named = {
            "search": None if self.search is None else self.search.describe(),
            "sharing": None if self.sharing is None else asdict(self.sharing),
            "searcher": {} if self.searcher is None else _plain(self.searcher),
            "goals": self.goals.to_dict(),
            "ladder": str(self.ladder),
            "proxies": list(self.proxies),
            "size": dict(self.size),
            "final_size": dict(self.final_size),
        }
        return own | recipes | named


def _plain(searcher: Searcher) -> dict[str, object]:
    """The searcher's settings that are plain values."""
    own = {f.name: getattr(searcher, f.name) for f in fields(searcher)}  # type: ignore[arg-type]
    plain = {name: value for name, value in own.items() if isinstance(value, int | float | str)}
    return plain | ({"options": dict(own["options"])} if own.get("options") else {})


@dataclass(frozen=True, eq=False)
class Job:
    """Everything the phases need.

    task: all images; `search_task` has what the phases before the last training may use.
    final: the space at the size of the last network. recipe: of the last training.
    genotype: the architecture to train, where the job does not search for one.
    team: the processes that train together. clock: how long the job has been at work.
    tracking: what is told to experiment trackers. processes: of this machine, in which trials are evaluated;
      None where all is done in this one. executor: where they are evaluated instead.
    notes: what the user should know before it begins. force: go on where a database names another writer.
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
    force: bool = False

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
        store = Store(
            self.storage,
            prefix=self.prefix,
            patience_s=self.config.storage_patience,
            stop=partial(self.check_stop, "stopped while the storage could not be used"),
            force=self.force,
        )
        given: dict[str, Any] = {"goals": self.plan.goals, "seed": self.seed(name)}
        return Study(self.space, scheduler, store, name=name, **(given | options))

    @property
    def device(self) -> torch.device:
        """Where the images are and networks are trained."""
        return self.task.train.x.device

    @property
    def problem(self) -> Problem:
        """What the task is about."""
        return self.task.problem

    @property
    def judges_alone(self) -> bool:
        """Whether the metric of the problem is all that is searched for."""
        return self.plan.goals.objectives == (self.problem.objective,)

    @property
    def has_choice(self) -> bool:
        """Whether there is anything to search: more than one architecture."""
        return self.space.size != Size(1, exact=True)

    @property
    def is_own_baseline(self) -> bool:
        """Whether the search is a random one itself, which needs none beside it to be compared with."""
        return self.config.method == "random" and self.config.scheduler == "fixed"

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
