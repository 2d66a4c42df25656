"""Where a user's code runs: whatever it raises becomes a failed trial that names the user's line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nas.errors import FAULTS, NasError, SpaceError, Stopped, TrialError, describe, staying, user_line

# Libraries report these by errors of several kinds, told apart by their words only.
_NO_MEMORY = (
    *("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory"),
    *("cublas_status_alloc_failed", "cudnn_status_alloc_failed"),
)
_NO_KERNEL = (
    *("could not run '", "not implemented for", "is not currently implemented for"),
    *("cudnn_status_not_supported", "unable to find an engine to execute"),
    *("unable to find a valid cudnn algorithm", "does not have a deterministic implementation"),
)


def reason_of(error: BaseException) -> str:
    """The short code of what went wrong: `oom`, `unsupported`, `device` or `error`.

    device: the GPU itself reported a fault (a failed assertion in a kernel, an illegal access): nothing more
      can be computed on it in this process.
    """
    words = str(error).lower() if isinstance(error, RuntimeError) else ""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in words for word in _NO_MEMORY):
        return "oom"
    if isinstance(error, torch.AcceleratorError) or words.startswith("cuda error"):
        return "device"
    # A module without a forward method is a mistake in the module; torch says so by the same type.
    without_form = isinstance(error, NotImplementedError) and "forward" not in words
    return "unsupported" if without_form or any(word in words for word in _NO_KERNEL) else "error"


@contextmanager
def user_errors() -> Iterator[None]:
    """Raises TrialError for any exception but the engine's own, its reason that of `reason_of`."""
    try:
        with staying():
            yield
    except (NasError, Stopped):
        raise
    except FAULTS as error:
        raise TrialError(reason_of(error), describe(error)) from error


@contextmanager
def build_errors() -> Iterator[None]:
    """Runs a block that builds networks; one that cannot be built fails its trial and not the search."""
    try:
        yield
    except SpaceError as error:
        cause = error.__cause__
        reason = "error" if cause is None else reason_of(cause)
        raise TrialError("build" if reason == "error" else reason, str(error)) from error


@contextmanager
def memory_errors(what: str, advice: str = "use a smaller batch or network") -> Iterator[None]:
    """Runs a block in which memory that runs out becomes a TrialError of reason `oom`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if reason_of(error) != "oom":
            raise
        raise TrialError("oom", f"out of memory while {what}{user_line(error)}; {advice}") from error
