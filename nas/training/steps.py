"""Steps of a training that are more than one pass through its network, and may be captured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable

from torch import Tensor

from nas.training.loop import Loop
from nas.training.resting import Resting


class Steps(ABC):
    """How the steps of a training go."""

    @abstractmethod
    def form(self) -> Hashable:
        """What the coming step reads of Python, see `nas.training.loop`; None while it cannot be captured."""

    @abstractmethod
    def begin(self, loop: Loop) -> None:
        """Sets what the coming step finds in place; a step that is replayed reads nothing else."""

    @abstractmethod
    def backward(self, loop: Loop) -> Tensor:
        """Puts the gradients of the coming step in place and returns its loss."""

    @abstractmethod
    def resting(self, loop: Loop) -> Resting:
        """Which parameters stay as they are where their gradient is zeros."""
