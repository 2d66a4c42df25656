"""A queue with an end: so many requests are worked on, so many wait, and further ones are told at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")


class FullError(Exception):
    """No further request can wait."""


class Queue:
    """Places for requests.

    at_once: calls that run at the same time, in threads. places: requests inside, waiting ones included.
    """

    def __init__(self, *, at_once: int, places: int) -> None:
        self.places, self.inside = places, 0
        self._running = asyncio.Semaphore(at_once)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Holds a place from a request's first byte to its answer.

        Raises:
            FullError: when all are taken.
        """
        if self.inside >= self.places:
            raise FullError
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    async def run(self, work: Callable[[], T]) -> T:
        """The value of a function that takes the processor for a while."""
        async with self._running:
            return await asyncio.to_thread(work)
