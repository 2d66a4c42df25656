"""Where the engine keeps what it can work out again: `$XDG_CACHE_HOME/nas`, by default `~/.cache/nas`."""

from __future__ import annotations

import os
from pathlib import Path

from nas.errors import ConfigError


def cache_folder() -> Path:
    """The folder, which need not be there.

    Raises:
        ConfigError: for a user without a name, as in containers, who has none.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nas"
    except RuntimeError as error:
        raise ConfigError(f"cache: {error}; set HOME or XDG_CACHE_HOME") from error
