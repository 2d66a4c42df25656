"""Where a user's code runs: whatever it raises becomes a failed trial that names the user's line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nas.errors import NasError, TrialError
from nas.resumable import Stopped
from nas.space import describe


@contextmanager
def user_errors() -> Iterator[None]:
    """Raises TrialError for any exception but the engine's own.

    Its reason is `device` where the GPU failed for good (a device-side assert, an illegal access, an ECC
    error), else `error`.
    """
    try:
        yield
    except (NasError, Stopped):
        raise
    except torch.AcceleratorError as error:
        raise TrialError("device", describe(error)) from error
    except Exception as error:
        raise TrialError("error", describe(error)) from error
