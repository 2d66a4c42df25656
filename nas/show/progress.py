"""What a running job says: phases, units done and notes. The silent one is the default in Python."""

from __future__ import annotations

from typing import Protocol


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
"""What a caller in Python may ask for; True is the console's, see `nas.show.console.telling`."""


class Silent:
    """Says nothing."""

    def phase(self, name: str, total: int | None, *, done: int = 0) -> None:
        """Ignores the phase."""

    def advance(self, text: str, *, done: int | None = None) -> None:
        """Ignores the unit."""

    def note(self, text: str) -> None:
        """Ignores the note."""
