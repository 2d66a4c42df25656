"""Signals as a polite request: the first asks the job to save and stop, the second stops it now."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self

POLITE = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""The last two are what batch systems such as SLURM are asked to send some time before the end."""


class StopRequest:
    """While entered, SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 set `number` instead of killing the process.

    number: the first of them that came, or 0. Later on, SIGINT, or SIGTERM for the second time, raises
      KeyboardInterrupt where the program is; a batch system's warnings may be followed by SIGTERM.
    """

    def __init__(self) -> None:
        self.number = 0
        self._terminated = False
        self._before: dict[int, signal.Handlers | object] = {}

    def __call__(self) -> bool:
        """Whether the job was asked to stop."""
        return self.number != 0

    @property
    def exit_code(self) -> int:
        """What a shell or a batch system expects of a process that ends so: 130 after SIGINT, else 143."""
        return 128 + (signal.SIGINT if self.number in (0, signal.SIGINT) else signal.SIGTERM)

    def ask(self) -> None:
        """Does what SIGTERM would, for once."""
        self.number = self.number or signal.SIGTERM

    def __enter__(self) -> Self:
        for number in POLITE:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a handler's signature
        insists = number == signal.SIGINT or (number == signal.SIGTERM and self._terminated)
        self._terminated |= number == signal.SIGTERM
        if self.number and insists:
            raise KeyboardInterrupt
        self.number = self.number or number
