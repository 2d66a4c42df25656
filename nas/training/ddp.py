"""The processes that train one network together: each takes a part of every batch, all do the same steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from nas.seeding import derive, seed_global

Points = Sequence[Tensor]


class Team(ABC):
    """The ranks 0 to `size - 1`; rank 0 leads: it alone writes, evaluates and decides.

    local: which of its machine's GPUs a rank has; None where there is only one rank.
    """

    def __init__(self, rank: int, size: int, *, local: int | None = None) -> None:
        self.rank, self.size, self.local = rank, size, local

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def part(self, batch: Tensor) -> Tensor:
        """This rank's share of a batch, next to that of the rank before; they differ by at most one image."""
        return batch if self.size == 1 else batch.tensor_split(self.size)[self.rank]

    def images(self, batch: int) -> int:
        """How many images the largest share of a batch has."""
        return -(-batch // self.size)

    def apart(self, seed: int) -> None:
        """From here on each rank draws its own numbers from torch's global stream, not those of rank 0."""
        if not self.leads:
            seed_global(derive(seed, "rank", self.rank))

    @abstractmethod
    def note(self, choices: object, values: Iterable[Tensor] = ()) -> None:
        """Remembers what this rank runs until the next `agree`.

        choices: plain values with a `repr` of their own. values: float32, on the device.
        """

    @abstractmethod
    def agree(self, where: str, facts: object = None) -> None:
        """Raises RankError, which names the ranks, unless all have noted the same and state the same facts.

        What is on a GPU is compared now and then only, since reading it would wait for the device.
        """

    @abstractmethod
    def average(self, tensors: Sequence[Tensor], batch: int) -> Sequence[Tensor]:
        """The means over a batch of so many images of what are means over the ranks' parts of it."""

    @abstractmethod
    def across(self, points: Points, loss: Callable[[Points], Tensor], batch: int) -> Tensor:
        """`loss(points)`, and its gradient with respect to them, averaged like that."""

    @abstractmethod
    def same(self, where: str, tensors: Iterable[Tensor]) -> None:
        """Raises RankError, which names the ranks, unless the tensors are the same on all to the bit."""

    @abstractmethod
    def any(self, ask: Callable[[], bool] | None) -> bool:
        """Whether any rank answers yes; None is no."""

    @abstractmethod
    def handed(self, state: Callable[[], Mapping[str, Any]]) -> dict[str, Any] | None:
        """On all but rank 0 the state that rank 0 has, on rank 0 None.

        state: see `nas.training.checkpoint.pack`; asked on rank 0 only.
        """

    @abstractmethod
    def call(self, phase: str, value: Any = None) -> None:  # noqa: ANN401 - whatever JSON can hold
        """Calls the other ranks to a phase of the job, with a value for JSON; these wait for that call."""

    @abstractmethod
    def called(self) -> tuple[str, Any]:
        """On another rank than 0, the next phase that rank 0 calls to, and its value.

        Raises:
            DismissedError, Stopped: when rank 0 has failed or stopped, or this rank shall stop.
        """


class Alone(Team):
    """A process that trains by itself."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    def note(self, choices: object, values: Iterable[Tensor] = ()) -> None:
        """Nobody else runs anything."""

    def agree(self, where: str, facts: object = None) -> None:
        """It does."""

    def average(self, tensors: Sequence[Tensor], batch: int) -> Sequence[Tensor]:  # noqa: ARG002
        """The tensors."""
        return tensors

    def across(self, points: Points, loss: Callable[[Points], Tensor], batch: int) -> Tensor:  # noqa: ARG002
        """`loss(points)`."""
        return loss(points)

    def same(self, where: str, tensors: Iterable[Tensor]) -> None:
        """They are."""

    def any(self, ask: Callable[[], bool] | None) -> bool:
        """The answer."""
        return ask is not None and ask()

    def handed(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Nothing to hand out."""

    def call(self, phase: str, value: Any = None) -> None:  # noqa: ANN401
        """Nobody to call."""

    def called(self) -> tuple[str, Any]:
        """Nobody calls."""
        raise RuntimeError("a process alone leads itself")


ALONE = Alone()
