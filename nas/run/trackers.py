"""Which trackers a job has, by its settings; what is missing or unsafe is said before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from nas.errors import ConfigError
from nas.run.config import Config
from nas.show.tracking.feed import Feed
from nas.show.tracking.mlflow import MLflow
from nas.show.tracking.tensorboard import TensorBoard
from nas.show.tracking.tracker import Run, Tracker
from nas.show.tracking.tracking import NO_TRACKING, Tracking

AUTO = "auto"
TENSORBOARD = "tensorboard"
"""The folder in a run's folder where its event files are unless another one is named."""


def check_trackers(config: Config) -> None:
    """Raises ConfigError when a tracker that is asked for is not installed or cannot be used."""
    for name, wanted in (("tensorboard", config.tensorboard), ("mlflow", config.mlflow)):
        if wanted is not None and find_spec(name) is None:
            raise ConfigError(
                f"{name} is {wanted!r}, but the package {name} is not installed; "
                f"pip install 'nas-engine[{name}]'"
            )
    if config.mlflow is not None and urlsplit(config.mlflow).password is not None:
        raise ConfigError(
            "the mlflow URI holds a password, which would be written into the run's record; give the whole "
            "URI in the environment variable MLFLOW_TRACKING_URI (with --mlflow auto), or the password of a "
            "server in MLFLOW_TRACKING_PASSWORD"
        )


def open_tracking(
    config: Config,
    folder: Path,
    record: Mapping[str, object],
    *,
    own: Sequence[Tracker],
    note: Callable[[str], None],
) -> Tracking:
    """Begins to track a run.

    record: its `run.json`. own: trackers that were given in Python.
    """
    trackers = [
        *_made(config, folder).items(),
        *((type(tracker).__name__, tracker) for tracker in own),
    ]
    if not trackers:
        return NO_TRACKING
    if config.tensorboard is not None:
        note(f"to watch the run: tensorboard --logdir {_event_folder(config.tensorboard, folder)}")
    run = Run(str(record.get("run", folder.name)), folder, _settings(config))
    return Tracking([Feed(name, tracker, run) for name, tracker in trackers], note=note)


def _made(config: Config, folder: Path) -> dict[str, Tracker]:
    """The trackers that the settings ask for, by name."""
    found: dict[str, Tracker] = {}
    if config.tensorboard is not None:
        found["tensorboard"] = TensorBoard(_event_folder(config.tensorboard, folder))
    if config.mlflow is not None:
        found["mlflow"] = MLflow(None if config.mlflow == AUTO else config.mlflow)
    return found


def _event_folder(wanted: str, folder: Path) -> Path:
    """Where the event files of a run go."""
    return folder / TENSORBOARD if wanted == AUTO else Path(wanted)


def _settings(config: Config) -> dict[str, str]:
    """What differs from the defaults, and the names of what is searched, as text."""
    named = ("space", "task", "method", "preset", "seed")
    values = {**{name: getattr(config, name) for name in named}, **config.model_dump(exclude_defaults=True)}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
