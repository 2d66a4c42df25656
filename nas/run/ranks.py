"""What the ranks of one job say to each other outside of trainings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nas.errors import ConfigError
from nas.training.batches import images_of
from nas.training.ddp import Team
from nas.training.distributed import END

BEGIN = "begin"
"""What the start of a job is called between ranks."""


def follow_to(out: str | Path, team: Team) -> None:
    """Waits on another rank until rank 0 has begun the job in its folder.

    Raises:
        ConfigError: when this rank does not see that folder.
    """
    team.call(BEGIN)
    if not (Path(out) / "run.json").is_file():
        raise ConfigError(
            f"rank {team.rank} does not see the run folder {str(out)!r} of rank 0; choose an --out folder "
            "that all machines share"
        )


def help_all(team: Team, phases: Mapping[str, Callable[[Any], None]]) -> None:
    """Does on another rank what rank 0 calls to, until the end of the job."""
    while (called := team.called())[0] != END:
        phase, value = called
        phases[phase](value)


def team_notes(team: Team, *batches: int) -> list[str]:
    """What the user should know of trainings over several processes.

    Raises:
        ConfigError: when a batch is too small to be divided.
    """
    if team.size == 1:
        return []
    shares = [f"{images_of(team, batch)} of {batch}" for batch in dict.fromkeys(batches)]
    return [f"{team.size} ranks train together: each takes {' or '.join(shares)} images of a batch"]
