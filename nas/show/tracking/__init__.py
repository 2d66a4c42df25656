"""Experiment trackers: TensorBoard, MLflow, or your own, told of every trial and epoch of a job.

`Tracker` is what one must be; `open_tracking` begins those of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from nas.errors import ConfigError
from nas.show.tracking.mlflow import MLflow
from nas.show.tracking.tensorboard import TensorBoard
from nas.show.tracking.tracker import TrackedRun, Tracker, Tracking

AUTO = "auto"


def check_trackers(tensorboard: str | None, mlflow: str | None) -> None:
    """Raises ConfigError when a tracker that is asked for is not installed or cannot be used."""
    for name, wanted in (("tensorboard", tensorboard), ("mlflow", mlflow)):
        if wanted is not None and find_spec(name) is None:
            raise ConfigError(
                f"{name} is {wanted!r}, but the package {name} is not installed; "
                f"pip install 'nas-engine[{name}]'"
            )
    if mlflow is not None and urlsplit(mlflow).password is not None:
        raise ConfigError(
            "the mlflow URI holds a password, which would be written into the run's record; give the whole "
            "URI in the environment variable MLFLOW_TRACKING_URI (with --mlflow auto), or the password of a "
            "server in MLFLOW_TRACKING_PASSWORD"
        )


def open_tracking(
    name: str,
    folder: Path,
    settings: Mapping[str, str],
    *,
    tensorboard: str | None,
    mlflow: str | None,
    own: Sequence[Tracker],
    note: Callable[[str], None],
) -> Tracking:
    """Begins to track a run.

    name: other than that of any other run. settings: what was asked, as text.
    tensorboard: the folder of event files, `auto` for `tensorboard` in the run's. mlflow: a URI, `auto` for
      that of the environment. own: trackers that were given in Python. note: hears how to watch, and what
      fails.
    """
    trackers: list[Tracker] = []
    if tensorboard is not None:
        events = folder / "tensorboard" if tensorboard == AUTO else Path(tensorboard)
        note(f"to watch the run: tensorboard --logdir {events}")
        trackers.append(TensorBoard(events))
    if mlflow is not None:
        trackers.append(MLflow(None if mlflow == AUTO else mlflow))
    return Tracking([*trackers, *own], TrackedRun(name, folder, settings), note=note)
