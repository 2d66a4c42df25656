"""A worker's sign of life to the process that started it, and how it notices that that one is gone."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

EVERY_S = 1.0
EXIT_CODE = 143
"""Of a worker that had to end without having saved in time."""


class Pulse:
    """While entered, writes a byte to a pipe every second, from a thread.

    The pipe breaks when nobody reads it any more, however the reader died. Then the worker is asked to stop,
    and if it has not ended `grace_s` later, its process ends there and then.
    """

    def __init__(self, descriptor: int, *, ask_to_stop: Callable[[], None], grace_s: float) -> None:
        self._descriptor, self._ask_to_stop, self._grace_s = descriptor, ask_to_stop, grace_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def __enter__(self) -> Self:
        os.set_blocking(self._descriptor, False)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        while True:
            try:
                os.write(self._descriptor, b".")
            except BlockingIOError:  # the reader is frozen; the pipe is full of earlier signs
                pass
            except BrokenPipeError:
                self._ask_to_stop()
                if not self._ended.wait(self._grace_s):
                    os._exit(EXIT_CODE)
                return
            if self._ended.wait(EVERY_S):
                return
