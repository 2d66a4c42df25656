"""A job's clock: how long it has been at work, over all its processes, and what was decided by that."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nas.errors import NasError, Stopped
from nas.files.atomic import read_json, write_json
from nas.files.schemas import DecisionRecord, TimeRecord, checked

FILE = "time.json"
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
        self.budget_s = budget_s
        self._now, self._since = now, now() if since is None else since
        self._end_s = math.inf if budget_s is None else budget_s
        self._earlier_s, self._saved_at = 0.0, -math.inf
        self._path: Path | None = None
        self._recalled = False
        self._decided: dict[str, DecisionRecord] = {}
        self.hurried = False

    def open(self, folder: Path) -> None:
        """From here on the time is kept in a run's folder, and what is there counts."""
        self.recall(folder)
        self._path = folder / FILE
        self.save()

    def recall(self, folder: Path) -> None:
        """Counts what a run's folder says of earlier processes, once; nothing is written."""
        path = folder / FILE
        if not self._recalled and path.exists():
            record = checked(TimeRecord, read_json(path), path, "record of a job's time")
            self._earlier_s, self._decided = record.spent_s, dict(record.decided)
        self._recalled = True

    @property
    def elapsed_s(self) -> float:
        """Seconds since the job began, all its processes together."""
        return self._earlier_s + self._now() - self._since

    @property
    def left_s(self) -> float:
        """Seconds until the end of the budget, negative after it; infinite without one."""
        return self._end_s - self.elapsed_s

    def tick(self) -> None:
        """Writes the time down now and then; asked often."""
        if self._now() - self._saved_at >= SAVE_S:
            self.save()

    def late(self, at_s: float) -> bool:
        """Whether the clock is at `at_s` or beyond, or everybody is to hurry."""
        self.tick()
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
        if known is not None and (lasting or known.budget_s == self.budget_s):
            return known.value
        value = choose()
        self._decided[name] = DecisionRecord(value=value, budget_s=self.budget_s)
        self.save()
        return value

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Writes the time down where a job has failed or was stopped."""
        if isinstance(error, NasError | Stopped):
            self.save()

    def save(self) -> None:
        """Writes the time down, where it is kept."""
        self._saved_at = self._now()
        if self._path is not None:
            write_json(
                self._path, TimeRecord(spent_s=max(0.0, self.elapsed_s), decided=self._decided).model_dump()
            )
