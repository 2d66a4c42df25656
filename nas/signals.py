"""Signals as a polite request: the first asks the job to save and stop, the second stops it now."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self


class StopRequest:
    """While entered, SIGINT and SIGTERM set `number` instead of killing the process.

    number: the signal that came, or 0. A second SIGINT raises KeyboardInterrupt where the program is.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, signal.Handlers | object] = {}

    def __call__(self) -> bool:
        """Whether the job was asked to stop."""
        return self.number != 0

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that such a signal ended: 130 or 143."""
        return 128 + (self.number or signal.SIGINT)

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a handler's signature
        if self.number:
            raise KeyboardInterrupt
        self.number = number
