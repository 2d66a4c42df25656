"""Drives a long computation step by step, so that killing it at any moment loses nothing but time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from threading import Event
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from nas.errors import ConfigError, RankError, Stopped
from nas.training.checkpoint import Checkpoints
from nas.training.ddp import ALONE, Team

Report_co = TypeVar("Report_co", covariant=True)
R = TypeVar("R")


class Resumable(Protocol, Generic[Report_co]):
    """A computation of `steps` steps in epochs; what step s does depends on the state and s alone."""

    @property
    def step(self) -> int:
        """Steps done."""

    @property
    def steps(self) -> int:
        """Steps in all."""

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last step done was the last of its epoch."""

    def advance(self) -> None:
        """Does one step."""

    def end_epoch(self) -> Report_co:
        """Sums up the epoch that just ended."""

    def state(self) -> Mapping[str, Any]:
        """All that the rest depends on, beside the settings and the step."""

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        """Goes back to where `state` was taken."""

    def settings(self) -> Mapping[str, Any]:
        """What must be the same for a checkpoint to be taken up again."""

    def replicas(self) -> Iterable[Tensor]:
        """What every process of a team has the same of, to the bit."""


def run(
    work: Resumable[R],
    *,
    what: str,
    checkpoints: Checkpoints | None,
    on_epoch: Callable[[R], None] | None,
    stop: Callable[[], bool] | None,
    team: Team = ALONE,
) -> None:
    """Brings `work` to its end, from its newest checkpoint where there is one.

    In a team all ranks call this with the same work; rank 0 alone has checkpoints and sums up epochs, and the
    others go on from the state that it hands them at the start and after every epoch.

    checkpoints: written after each epoch, and in the middle of one as often as they say.
    on_epoch: called after each epoch, its checkpoint already written.
    stop: asked before every step; when true, a checkpoint is written.

    Raises:
        Stopped: when `stop` said so.
        ConfigError: when the checkpoint was written with other settings; nothing is loaded then.
        RankError: when the ranks of a team differ, or one of them is lost.
    """

    def packed() -> dict[str, Any]:
        return {"settings": dict(work.settings()), "work": dict(work.state())}

    def save() -> None:
        if checkpoints is not None:
            checkpoints.save(work.step, packed())

    def hand_out() -> None:
        handed = team.handed(lambda: {"step": work.step, **packed()})
        if handed is not None:
            if differing := _differing(work, handed):
                raise RankError(
                    f"{what}: rank {team.rank} has another {differing} than rank 0; give all ranks the same "
                    "command and the same data"
                )
            work.restore(handed["step"], handed["work"])

    saved = checkpoints.load() if checkpoints is not None else None
    if saved is not None:
        if differing := _differing(work, saved[1]):
            raise ConfigError(
                f"{what}: the checkpoint was written with another {differing}; resume with the same settings "
                "and the version that wrote it, or clear the checkpoints to start anew"
            )
        work.restore(saved[0], saved[1]["work"])
    hand_out()
    stopped = stop or Event().is_set if team.size == 1 else partial(team.any, stop)
    saved_at = time.monotonic()
    while work.step < work.steps:
        if stopped():
            save()
            raise Stopped(f"{what} stopped after step {work.step} of {work.steps}")
        work.advance()
        ended = work.at_epoch_end
        if ended:
            team.same(f"{what}, after step {work.step}", work.replicas())
        report = work.end_epoch() if ended and team.leads else None
        if ended or (checkpoints is not None and time.monotonic() - saved_at >= checkpoints.every_s):
            save()
            saved_at = time.monotonic()
        if ended:
            hand_out()
        if report is not None and on_epoch is not None:
            on_epoch(report)


def _differing(work: Resumable[R], saved: Mapping[str, Any]) -> str:
    """The names of the settings that are not those that a state was saved with."""
    settings, found = work.settings(), saved.get("settings", {})
    return ", ".join(name for name in settings if settings[name] != found.get(name))
