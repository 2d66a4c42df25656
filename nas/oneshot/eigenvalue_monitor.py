"""Keeps an eye on the curvature of a search, and the moments that it can go back to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nas.oneshot.contexts import copied
from nas.oneshot.early_stopping import Growth, Guards

Moment = tuple[int, int, Any]
"""Epochs and steps done, and the state then."""


class Watch:
    """The eigenvalues since the alphas began to move, a stage began or the search went back.

    epochs: of the search, or of the stage where every one starts anew; the guards' shares refer to it.
    """

    def __init__(self, guards: Guards) -> None:
        self.guards = guards
        self._eigenvalues: list[float] = []
        self._moments: dict[int, Moment] = {}

    def look(
        self, epoch: int, epochs: int, eigenvalue: float, moment: Callable[[], Moment] | None
    ) -> tuple[Growth, Moment | None]:
        """Takes in one epoch; when it alarms, gives the moment to go back to, all else forgotten.

        moment: asked for the present one, which is copied to the CPU; None where nobody goes back.
        """
        self._eigenvalues.append(eigenvalue)
        growth = self.guards.growth(self._eigenvalues, epochs)
        if moment is None:
            return growth, None
        self._moments[epoch] = copied(moment())
        reach = self.guards.reach(epochs)
        if not growth.alarming:
            self._moments = {at: kept for at, kept in self._moments.items() if at > epoch - reach}
            return growth, None
        found = self._moments[epoch - reach]
        self.forget()
        return growth, found

    def forget(self) -> None:
        """Starts anew: what was measured in another form or under less weight decay says nothing now."""
        self._eigenvalues.clear()
        self._moments.clear()

    def state(self) -> dict[str, Any]:
        """What the next look depends on."""
        return {"eigenvalues": list(self._eigenvalues), "moments": dict(self._moments)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to a state."""
        self._eigenvalues = list(state["eigenvalues"])
        self._moments = dict(state["moments"])
