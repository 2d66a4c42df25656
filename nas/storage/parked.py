"""Results on their way to the database: each waits on the disk until it has arrived there."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from optuna.trial import FrozenTrial, TrialState, create_trial

from nas.errors import ConfigError
from nas.files.atomic import write_bytes
from nas.storage.sealing import seal, unsealed

PARKED = "parked"
"""The folder of parked results, inside a run's folder."""
_log = logging.getLogger("nas")


class Parked(NamedTuple):
    """How a trial of a study ended."""

    study: str
    number: int
    outcome: FrozenTrial


class Park:
    """One file for each result that is parked, `STUDY-trial-NUMBER.json`, whole or not at all.

    folder: made when something is parked.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, study: str, number: int, outcome: FrozenTrial) -> None:
        """Parks a result; that the disk does not take it is logged, but keeps nobody from telling it."""
        record = {
            "study": study,
            "number": number,
            "state": outcome.state.name,
            "values": outcome.values,
            "user_attrs": outcome.user_attrs,
            "system_attrs": outcome.system_attrs,
        }
        path = self._path(study, number)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(path, seal(json.dumps(record)))
        except OSError as error:
            _log.warning("cannot park the result of trial %d in %s: %s", number, path, error.strerror)

    def drop(self, study: str, number: int) -> None:
        """Removes a result that has arrived."""
        try:
            self._path(study, number).unlink(missing_ok=True)
        except OSError as error:  # it is told again by the next run, which changes nothing
            _log.warning("cannot remove the told result of trial %d: %s", number, error.strerror)

    def __iter__(self) -> Iterator[Parked]:
        """All that is parked.

        Raises:
            ConfigError: for a file that is not as it was written.
        """
        for path in sorted(self.folder.glob("*-trial-*.json"), key=lambda p: (len(p.name), p.name)):
            with suppress(FileNotFoundError):  # its own process has just told it
                yield _read(path)

    def _path(self, study: str, number: int) -> Path:
        return self.folder / f"{quote(study, safe='')}-trial-{number}.json"


def _read(path: Path) -> Parked:
    """A parked result; FileNotFoundError where it is no longer parked."""
    try:
        record: dict[str, Any] = unsealed(path.read_bytes())
        outcome = create_trial(
            state=TrialState[record["state"]],
            values=record["values"],
            user_attrs=record["user_attrs"],
            system_attrs=record["system_attrs"],
        )
        return Parked(record["study"], record["number"], outcome)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"cannot read the parked result {path}: {error.strerror}") from error
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"the parked result {path} is damaged: {error}; move it away, and its trial is evaluated again"
        ) from error
