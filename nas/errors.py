"""The exceptions a caller may catch, and the one way to say that a name is unknown."""

from __future__ import annotations

import difflib
import os
import reprlib
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

SCREEN = 4000
"""Characters of one message at most."""
_LISTED = 60
"""Known names that an error lists."""
_ALIKE = 0.65
"""Share of letters that two names have in common, in the same order, from which on they are near."""
FAULTS = (Exception, SystemExit)
"""What is a fault of a user's code where that raises it: to end the process is not its business."""


class NasError(Exception):
    """Base of every error that a user can cause; its text says who, got, wanted and what to do."""

    exit_code = 1


class ConfigError(NasError):
    """A setting, a command line or a run folder is not usable."""

    exit_code = 2


class MismatchError(ConfigError):
    """An exported form does not do what the scored model did."""


class SpaceError(NasError):
    """A search space breaks one of the engine's promises."""

    exit_code = 3


class DataError(NasError):
    """A data set is missing, damaged or inconsistent."""

    exit_code = 3


class NoModelError(NasError):
    """A search ended without one valid model."""

    exit_code = 4


class RankError(NasError):
    """Another process of a training over many was lost, or does not do the same."""

    exit_code = 5


class DismissedError(NasError):
    """Rank 0 of a training over many processes failed and has said why; nobody else need say it again."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ExhaustedError(NasError):
    """Every architecture of the space has been tried; the study ends early."""


class DeviceError(NoModelError):
    """A GPU failed in a way that leaves its process unable to compute; a new process may go on."""

    exit_code = 6


class TrialError(NasError):
    """One trial failed; the search goes on.

    reason: a short code for counting, one of `nas.evaluate.failure_summary.ADVICE`, e.g. `"nan"` or `"oom"`.
    metrics: what was measured all the same.
    """

    exit_code = 4

    def __init__(self, reason: str, message: str, metrics: Mapping[str, float] | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.metrics = dict(metrics or {})

    def __reduce__(self) -> tuple[type[TrialError], tuple[str, str, dict[str, float]]]:
        """Travels between processes with all of its parts."""
        return type(self), (self.reason, str(self), self.metrics)


class StorageError(NasError, OSError):
    """A file cannot be written: the disk is full, a quota is used up, or the file system fails.

    Nothing that was written before is harmed; the same command goes on once there is space again.
    """

    exit_code = 5

    def __str__(self) -> str:
        return str(self.strerror)


class Stopped(Exception):
    """The caller's `stop` ended a computation; its checkpoint, if any was asked for, has been written."""


def unknown(what: str, got: str, known: Iterable[str]) -> str:
    """Says that `got` is no `what`, with the nearest known names where any is near, else all of them."""
    names = sorted(known)
    start = got[:100].lower()  # a comparison takes time and memory by length
    near = {name: likeness for name in names if (likeness := _likeness(start, name.lower()))}
    nearest = " or ".join(repr(name) for name in near if near[name] == max(near.values()))
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    hint = f"did you mean {nearest}?" if near else f"known: {', '.join(names[:_LISTED]) or 'none'}{more}"
    return f"no {what} {shown(got)}; {hint}"


def _likeness(got: str, name: str) -> tuple[int, float] | None:
    """How alike a name is to what was given, the larger the more; None for one that was hardly meant.

    A common beginning says more than common letters: 'evolve' is nearer to 'evolution' than to 'oles'.
    """
    shortest = min(len(got), len(name))
    alike = next((i for i in range(shortest) if got[i] != name[i]), shortest)
    ratio = difflib.SequenceMatcher(None, name, got).ratio()
    begins = alike >= 3 and 3 * alike >= 2 * shortest
    return (alike, ratio) if ratio >= _ALIKE or begins else None


def check_length(what: str, text: str, most: int) -> None:
    """Raises ConfigError for a text of more than `most` characters, before anything tries to read it."""
    if len(text) > most:
        raise ConfigError(f"{what} {shown(text)} has {len(text):,} characters, but at most {most:,} are read")


def describe(error: BaseException) -> str:
    """An exception in one line, with the line of the user's file that raised it."""
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, SystemExit):
        what = f"it ends the process (exit code {error.code!r}), wanted an exception that says what is wrong"
    return what + user_line(error)


@contextmanager
def staying() -> Iterator[None]:
    """Runs a user's code, in which `os._exit` raises SystemExit, as `sys.exit` does.

    Only in the main thread: the function is one for all. Other threads and forked children end as they like.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    end, process = os._exit, os.getpid()

    def leave(code: int) -> None:
        if process == os.getpid() and threading.current_thread() is threading.main_thread():
            raise SystemExit(code)
        end(code)

    os._exit = leave  # type: ignore[assignment]
    try:
        yield
    finally:
        os._exit = end


@contextmanager
def foreign_code(who: str, kind: type[NasError] = SpaceError) -> Iterator[None]:
    """Runs a user's code; what it raises, but for errors of the engine, becomes one that says who and where.

    who: begins the message. kind: of the error.
    """
    try:
        with staying():
            yield
    except NasError:
        raise
    except FAULTS as error:
        raise kind(f"{who}: {describe(error)}") from error


def user_line(error: BaseException) -> str:
    """The innermost line of the user's own code that led to `error`, or nothing."""
    foreign = {Path(__file__).parent, Path(sysconfig.get_path("stdlib"))}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        installed = frame.filename.startswith("<") or "site-packages" in frame.filename
        if not installed and foreign.isdisjoint(Path(frame.filename).parents):
            return f" (at {frame.filename}, line {frame.lineno}: {frame.line})"
    return ""


# -- words ---------------------------------------------------------------------------------------------


def printable(text: str, *, limit: int | None = None) -> str:
    r"""`text` with every character that is not printable as its escape, e.g. `\x1b`; line breaks stay.

    That covers control characters, marks that turn the direction of writing, and bytes of a path that are no
    UTF-8, which no stream could write.

    limit: characters kept of a longer text.
    """
    if limit is not None and len(text) > limit:
        text = f"{text[:limit]}... ({len(text) - limit:,} more characters)"
    if text.isprintable():
        return text
    plain = (c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)
    return "".join(plain)


class PrintableStream:
    """A stream that writes every character which is not printable as its escape, tabs as spaces.

    rich_proxied_file: the stream beneath it; rich, whose bars move the cursor, finds it by this name.
    """

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        """Writes a text; returns its length."""
        self.rich_proxied_file.write(printable(text.expandtabs()))
        return len(text)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever else a stream has
        return getattr(self.rich_proxied_file, name)


def guard_terminal() -> None:
    """From here on, what a user's code prints in this process cannot steer the terminal."""
    for name in ("stdout", "stderr"):
        if not isinstance(stream := getattr(sys, name), PrintableStream):
            setattr(sys, name, PrintableStream(stream))


def counted(number: float, noun: str) -> str:
    """A number of things in words: `1 epoch`, `1,438 images`, `2 classes`."""
    several = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,.0f} {noun}{several}"


class _Short(reprlib.Repr):
    """Representations of at most a few words, also of integers too long to be written out."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 120

    def repr_int(self, x: int, level: int) -> str:
        """An integer, or how long it is: Python refuses to write out thousands of digits."""
        bits = x.bit_length()
        return super().repr_int(x, level) if bits < 1000 else f"<an integer of {bits} bits>"


shown = _Short().repr
"""`repr` of a value from outside, with the middle of whatever is long left out."""
