"""Steps that train the paths of drawn architectures on the weights of a supernet."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from nas.oneshot.supernet import Supernet
from nas.training.arithmetic import precision
from nas.training.loop import Loop
from nas.training.resting import Resting
from nas.training.steps import Steps
from nas.types import Genotype

Draw = Callable[[int], list[Genotype]]
"""The architectures of a step, of which there are equally many in each."""


class PathSteps(Steps):
    """Steps that compute the gradients of one path after the other, and move the weights by their mean.

    A path computes the chosen operations only; what is on no path has no gradient, and rests.

    distils: whether the first architecture of a step teaches the others.
    """

    def __init__(self, supernet: Supernet, draw: Draw, *, distils: bool) -> None:
        """As described."""
        self.supernet, self._draw, self._distils = supernet, draw, distils

    def form(self) -> Hashable:
        """None: every architecture is another program."""
        return None

    def begin(self, loop: Loop) -> None:
        """Nothing is to be set."""

    def resting(self, loop: Loop) -> Resting:  # noqa: ARG002 - a Steps
        """None by itself: what is on no path has no gradient."""
        return Resting(())

    def backward(self, loop: Loop) -> Tensor:
        """The gradients of the mean loss of the paths, of which only one is in memory at a time."""
        x, targets = loop.batch_of_step()
        passes = self._passes(loop)
        loop.apart()
        total: Tensor | None = None
        teacher: Tensor | None = None
        for run in passes:
            with precision(loop.device, loop.recipe.precision):
                logits = run(x)
            if teacher is None:
                loss = loop.criterion(logits, targets)
            else:
                loss = F.cross_entropy(logits.float(), teacher)
            (loss / len(passes)).backward()  # type: ignore[no-untyped-call]
            total = loss.detach() if total is None else total + loss.detach()
            if self._distils and teacher is None:
                teacher = logits.detach().float().softmax(-1)
        assert total is not None
        return loop.combined(total / len(passes))

    def _passes(self, loop: Loop) -> Sequence[Callable[[Tensor], Tensor]]:
        """What the paths of the coming step make of images, one after the other."""
        paths = self._draw(loop.step)
        loop.team.note(paths)
        return [partial(self.supernet, genotype=genotype) for genotype in paths]
