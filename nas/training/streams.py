"""Streams of random numbers for the places of a step, each of which begins anew at a seed of its own.

A step that seeds torch's stream on its way cannot be captured as a CUDA graph. There, each place draws from a
stream of its own instead, which is seeded before the step begins; the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from nas.seeding import seed_global
from nas.training.captured import Recorder


class Streams:
    """The streams of one kind of step.

    record: what captures the steps; None where torch's own stream is seeded at each place.
    places: where a step draws.
    """

    def __init__(self, record: Recorder | None, places: Sequence[str]) -> None:
        self._record = record
        self._own = {place: record.stream() for place in places} if record is not None else {}

    @property
    def generators(self) -> list[torch.Generator]:
        """All that a captured step draws from."""
        return list(self._own.values())

    def begin(self, place: str, seed: int) -> None:
        """Seeds a place; to be done for all before a step that may be replayed."""
        if self._record is None:
            seed_global(seed)
        else:
            self._own[place].manual_seed(seed)

    @contextmanager
    def at(self, place: str, seed: int) -> Iterator[None]:
        """Runs a block in which torch's stream is that of a place, from its beginning.

        seed: while a graph is captured, that which the place has begun with.
        """
        self.begin(place, seed)
        if self._record is None:
            yield
            return
        with self._record.drawing(self._own[place]):
            yield
