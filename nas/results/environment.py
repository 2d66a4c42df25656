"""What a run was made with: versions, hardware, commit."""

from __future__ import annotations

import platform
import subprocess  # nosec B404
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from nas import __version__, devices


def environment(device: torch.device) -> dict[str, object]:
    """Versions and hardware; nothing of the process's environment variables."""
    names = ("torch", "numpy", "optuna", "networkx", "scikit-learn")
    return {
        "python": platform.python_version(),
        **{name: _installed(name) for name in names},
        "cuda": torch.version.cuda,
        "nas-engine": __version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": str(device),
        "hardware": devices.describe(device),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def _installed(name: str) -> str | None:
    """The version of a package that the engine can do without."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


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
