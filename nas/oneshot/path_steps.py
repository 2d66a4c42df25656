"""Steps that train the paths of drawn architectures on the weights of a supernet."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cache, cached_property, partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nas.errors import ConfigError
from nas.oneshot.fused.execution import unasked
from nas.oneshot.mixed import Drawn, Mixture
from nas.oneshot.supernet import Supernet
from nas.space import Space
from nas.training.arithmetic import precision
from nas.training.loop import Loop
from nas.training.resting import Resting
from nas.training.steps import Steps
from nas.types import Genotype

AHEAD = 64
"""Steps whose architectures are drawn, and handed to the device, at once."""

Draw = Callable[[int], list[Genotype]]
"""The architectures of a step, of which there are equally many in each."""


class PathSteps(Steps):
    """Steps that compute the gradients of one path after the other, and move the weights by their mean.

    Where kernels run all mixed operations, the device is told which architectures they are before a step
    begins: one program, and one CUDA graph, serves all, and nothing waits. Weights whose gradient is zeros
    rest then; that are those of all other options, and those that read nothing but zeros or lead nowhere.
    Elsewhere a path computes the chosen operations only. There every architecture is another program, so that
    steps are not captured; what is on no path has no gradient, and rests for that reason. So it is in a team,
    whose ranks average the gradients of the paths only.

    distils: whether the first architecture of a step teaches the others.
    """

    def __init__(self, supernet: Supernet, draw: Draw, *, distils: bool, alone: bool = True) -> None:
        """As described. alone: whether this is no team."""
        self.supernet, self._draw, self._distils, self._alone = supernet, draw, distils, alone
        self._chosen: _Chosen | None = None

    def form(self) -> Hashable:
        """Nothing changes; None where Python says what is run."""
        return () if self._by_device else None

    def begin(self, loop: Loop) -> None:
        """Tells the device which architectures the step trains."""
        if self._by_device:
            if self._chosen is None:
                self._chosen = _Chosen(self.supernet.space, self._draw, loop.steps, loop.device)
            self._chosen.begin(loop.step)

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

    def resting(self, loop: Loop) -> Resting:
        """All, where every option gets a gradient."""
        return Resting(loop.parameters.values() if self._by_device else ())

    @cached_property
    def _by_device(self) -> bool:
        whole = all(len(mixed.alive) == len(mixed.ops) for mixed in self.supernet.mixed())
        return self._alone and whole and unasked(self.supernet.network)

    def _passes(self, loop: Loop) -> Sequence[Callable[[Tensor], Tensor]]:
        """What the paths of the coming step make of images, one after the other."""
        if self._chosen is not None:
            return [partial(self.supernet.mix, mixture=mixture) for mixture in self._chosen.mixtures()]
        paths = self._draw(loop.step)
        loop.team.note(paths)
        return [partial(self.supernet, genotype=genotype) for genotype in paths]


class _Chosen:
    """Which options the paths of the coming step run, on a device.

    steps: of the training, in all.
    """

    def __init__(self, space: Space, draw: Draw, steps: int, device: torch.device) -> None:
        self._space, self._draw, self._steps = space, draw, steps
        self._sizes = [len(d.options) for d in space.decisions]
        # [K, sum of O]: 1 for what a path runs, else 0; it stays where it is, as a graph reads it.
        self._rows = torch.zeros(len(draw(0)), sum(self._sizes), device=device)
        self._first, self._table = -1, self._rows[None]

    def begin(self, step: int) -> None:
        """Sets them to those of a step."""
        first = step - step % AHEAD
        if first != self._first:
            # One copy from the host for many steps, since it waits for the device.
            last = min(first + AHEAD, self._steps)
            rows = np.array([self._drawn(number) for number in range(first, last)], dtype=np.float32)
            self._first, self._table = first, torch.from_numpy(rows).to(self._rows.device)
        self._rows.copy_(self._table[step - first])

    def mixtures(self) -> list[Mixture]:
        """The mixture of each path."""
        return [self._mixture(row) for row in self._rows.unbind()]

    def _drawn(self, step: int) -> list[NDArray[np.float64]]:
        """The rows of a step."""
        paths = self._draw(step)
        if len(paths) != len(self._rows):
            raise ConfigError(
                f"sampling: {len(paths)} architectures in step {step}, but {len(self._rows)} in the first; "
                "where kernels run them, draw equally many in every step"
            )
        for genotype in paths:
            self._space.check(genotype)
        return [np.concatenate(self._space.one_hot(genotype)) for genotype in paths]

    def _mixture(self, row: Tensor) -> Mixture:
        # Asked only where a cell turns out to need it; no graph is captured then, as it would be of one path.
        asked = cache(lambda: [int(one.argmax()) for one in torch.split(row.cpu(), self._sizes)])
        names = [d.name for d in self._space.decisions]
        rows = torch.split(row, self._sizes)
        return {
            name: Drawn(own, partial(_item, asked, i))
            for i, (name, own) in enumerate(zip(names, rows, strict=True))
        }


def _item(options: Callable[[], Sequence[int]], at: int) -> int:
    return options()[at]
