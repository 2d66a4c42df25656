"""The record of a run, `run.json`: how it is read, and what a run calls the parts of its folder."""

from __future__ import annotations

import platform
import subprocess  # nosec B404
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas import __version__
from nas.errors import ConfigError
from nas.files.atomic import read_json
from nas.files.folder import check_contents, is_file
from nas.files.schemas import ComparedRecord, RunRecord, check_format, checked

if TYPE_CHECKING:  # servers read records and have no torch
    import torch

FORMAT = 1
"""Grows when the meaning of `run.json` changes."""
SEARCH, RANDOM, RERANK = "search", "random", "rerank"
"""The studies of a run: its search, random search at equal cost, and the best of both trained again."""
RETRAIN = "retrain"
"""What the last training is called."""
DEFAULT = "default"
"""What a comparison calls the space's default architecture."""
CHECKPOINT = "checkpoint"
"""The part of a run's folder that only lives until the run is finished."""


def read_run(folder: Path) -> dict[str, Any]:
    """The record of a run.

    Raises:
        ConfigError: when there is none, or it was written by a newer version.
    """
    file = folder / "run.json"
    if not is_file(file):
        raise ConfigError(f"{folder} holds no run: there is no run.json in it")
    check_contents(folder)
    record = read_json(file)
    check_format(record, FORMAT, file)
    checked(RunRecord, record, file, "record of a run")
    return dict(record)  # type: ignore[call-overload,no-any-return]  # which it is by now


def compared_of(folder: Path) -> ComparedRecord | None:
    """What a run was compared with, where it was."""
    path = folder / "baselines.json"
    return checked(ComparedRecord, read_json(path), path, "comparison") if is_file(path) else None


def environment(device: torch.device) -> dict[str, object]:
    """Versions and hardware; nothing of the process's environment variables."""
    import torch

    from nas import devices

    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "optuna", "networkx", "scikit-learn")},
        "cuda": torch.version.cuda,
        "nas-engine": __version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": str(device),
        "hardware": devices.describe(device),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the engine's own checkout, where it runs from one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        # A fixed command, without a shell.
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # nosec B603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
