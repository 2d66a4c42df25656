"""Progress for people: a live bar with the time left on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich import progress
from rich.console import Console

from nas.errors import ConfigError
from nas.show.progress import Progress, Silent, Wanted
from nas.text import printable, shown
from nas.training.launch import follows

WARNING = "WARNING"
"""What a note begins with that people should not miss."""


class LiveProgress:
    """A bar that stays at the bottom while finished units scroll by above it."""

    def __init__(self, console: Console) -> None:
        self._bar = progress.Progress(
            progress.TextColumn("[bold]{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=console,
        )
        self._task: progress.TaskID | None = None

    def phase(self, name: str, total: int | None, *, done: int = 0) -> None:
        """Begins a new bar."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(name, total=total, completed=done)

    def advance(self, text: str, *, done: int | None = None) -> None:
        """Prints the unit and moves the bar."""
        self._bar.console.print(printable(text), highlight=False, markup=False)
        if self._task is not None and done is not None:
            self._bar.update(self._task, completed=done)
        elif self._task is not None:
            self._bar.advance(self._task)

    def note(self, text: str) -> None:
        """Prints the note."""
        self._bar.console.print(printable(text), style="dim", highlight=False, markup=False)

    def ask(self, question: str) -> bool:
        """Whether the answer is yes; the bar waits."""
        self._bar.stop()
        answer = self._bar.console.input(f"{question} [y/N] ")
        self._bar.start()
        return answer.strip().lower() in ("y", "yes")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


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
        each = (time.monotonic() - self._begun) / self._here
        left = each * max(0, self._total - self._done)
        _say(f"{self._name} {self._done}/{self._total}  {text}  ({left:.0f} s left)")

    def note(self, text: str) -> None:
        """Prints the note."""
        _say(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves nothing to clean up."""


class QuietProgress:
    """Warnings alone."""

    def phase(self, name: str, total: int | None, *, done: int = 0) -> None:
        """Ignores the phase."""

    def advance(self, text: str, *, done: int | None = None) -> None:
        """Ignores the unit."""

    def note(self, text: str) -> None:
        """Prints a warning, ignores any other note."""
        if text.startswith(WARNING):
            _say(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves nothing to clean up."""


def reporter(*, plain: bool = False, quiet: bool = False) -> LiveProgress | PlainProgress | QuietProgress:
    """The progress that suits where standard error goes: a bar on a terminal, else lines, as in a notebook.

    plain: lines on a terminal, too. quiet: warnings alone, wherever it goes.
    """
    if quiet:
        return QuietProgress()
    console = Console(stderr=True)
    live = console.is_terminal and not console.is_jupyter and not plain
    return LiveProgress(console) if live else PlainProgress()


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
