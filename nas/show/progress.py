"""Progress of a job for people: a live bar with the time left on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich import progress as bars
from rich.console import Console

from nas.errors import ConfigError, printable, shown
from nas.training.launch import follows

WARNING = "WARNING"
"""What a note begins with that people should not miss."""


class Progress(Protocol):
    """Hears how a job goes."""

    def phase(self, name: str, total: int | None, *, done: int = 0) -> None:
        """A phase of `total` units begins, `done` of them already done before a resumption.

        A `total` of None is unknown.
        """

    def advance(self, text: str, *, done: int | None = None) -> None:
        """One more unit is done, summed up in `text`; the `done`-th in all, where that is known."""

    def note(self, text: str) -> None:
        """Something the user should know."""


Wanted = Progress | bool | None
"""What a caller in Python may ask for, see `telling`."""


class Silent:
    """Says nothing."""

    def phase(self, name: str, total: int | None, *, done: int = 0) -> None:
        """Ignores the phase."""

    def advance(self, text: str, *, done: int | None = None) -> None:
        """Ignores the unit."""

    def note(self, text: str) -> None:
        """Ignores the note."""


class QuietProgress(Silent):
    """Says warnings alone."""

    def note(self, text: str) -> None:
        """Prints a warning, ignores any other note."""
        if text.startswith(WARNING):
            _say(text)


class PlainProgress:
    """One line for each unit, with the time left, for logs and pipes."""

    def __init__(self) -> None:
        self.phase("", None)

    def phase(self, name: str, total: int | None, *, done: int = 0) -> None:
        """Begins counting anew."""
        self._name, self._total, self._done, self._here = name, total, done, 0
        self._begun = time.monotonic()

    def advance(self, text: str, *, done: int | None = None) -> None:
        """Prints the unit with its number and the time left."""
        self._done = self._done + 1 if done is None else done
        self._here += 1
        if self._total is None:
            _say(f"{self._name} {self._done}  {text}")
            return
        left = (time.monotonic() - self._begun) / self._here * max(0, self._total - self._done)
        _say(f"{self._name} {self._done}/{self._total}  {text}  ({left:.0f} s left)")

    def note(self, text: str) -> None:
        """Prints the note."""
        _say(text)


class LiveProgress:
    """A bar that stays at the bottom while finished units scroll by above it.

    bar: started by the caller, who stops it, too.
    """

    def __init__(self, bar: bars.Progress) -> None:
        self._bar = bar

    def phase(self, name: str, total: int | None, *, done: int = 0) -> None:
        """Begins a new bar."""
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._bar.add_task(name, total=total, completed=done)

    def advance(self, text: str, *, done: int | None = None) -> None:
        """Prints the unit and moves the bar."""
        self._bar.console.print(printable(text), highlight=False, markup=False)
        for task in self._bar.task_ids:
            self._bar.update(task, completed=done, advance=1 if done is None else None)

    def note(self, text: str) -> None:
        """Prints the note."""
        self._bar.console.print(printable(text), style="dim", highlight=False, markup=False)

    def ask(self, question: str) -> bool:
        """Whether the answer is yes; the bar waits."""
        self._bar.stop()
        answer = self._bar.console.input(f"{question} [y/N] ")
        self._bar.start()
        return answer.strip().lower() in ("y", "yes")


@contextmanager
def reporter(*, plain: bool = False, quiet: bool = False) -> Iterator[Progress]:
    """The progress that suits where standard error goes: a bar on a terminal, else lines, as in a notebook.

    plain: lines on a terminal, too. quiet: warnings alone, wherever it goes.
    """
    console = Console(file=getattr(sys.stderr, "rich_proxied_file", sys.stderr))
    if quiet or plain or console.is_jupyter or not console.is_terminal:
        yield QuietProgress() if quiet else PlainProgress()
        return
    columns = (
        bars.TextColumn("[bold]{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console) as bar:
        yield LiveProgress(bar)


@contextmanager
def telling(progress: Wanted) -> Iterator[Progress]:
    """The progress that a caller in Python wants: True is that of `reporter`, False and None are silent.

    Of several ranks only rank 0 has one of its own.

    Raises:
        ConfigError: when it is none of these and has not the methods of `nas.Progress`.
    """
    if progress is None or progress is False or (progress is True and follows()):
        yield Silent()
    elif progress is True:
        with reporter() as told:
            yield told
    elif all(callable(getattr(progress, name, None)) for name in ("phase", "advance", "note")):
        yield progress
    else:
        raise ConfigError(
            f"progress is {shown(progress)}, wanted True for lines or a bar on standard error, or an object "
            "with the methods of nas.Progress"
        )


def _say(text: str) -> None:
    sys.stderr.write(printable(text.replace("\n", " ")) + "\n")
    sys.stderr.flush()
