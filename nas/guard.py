"""Where a user's code runs: whatever it raises becomes a failed trial that names the user's line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nas.errors import NasError, TrialError
from nas.resumable import Stopped
from nas.space import describe


@contextmanager
def user_errors() -> Iterator[None]:
    """Raises TrialError with reason `error` for any exception but the engine's own."""
    try:
        yield
    except (NasError, Stopped):
        raise
    except Exception as error:
        raise TrialError("error", describe(error)) from error
