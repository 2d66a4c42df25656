"""What a differentiable search moves: the weights of a supernet and its alphas, each with its optimizer."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nas.data.task import Task
from nas.oneshot.alpha_optimizer import AlphaOptimizer
from nas.oneshot.methods import Method
from nas.oneshot.oles import Freezer
from nas.oneshot.supernet import Supernet, kept
from nas.seeding import derive
from nas.space.cell import Cell
from nas.training.ddp import ALONE, Team
from nas.training.loop import Batches, Loop
from nas.training.optimizer import MaskedUpdate


def recompute_cells(supernet: Supernet, *, enabled: bool) -> None:
    """Makes the cells of a supernet keep only their inputs while training (Chen et al. 2016), or not."""
    for cell in supernet.network.modules():
        if isinstance(cell, Cell):
            cell.recompute = _recomputing(supernet, cell) if enabled else None


def _recomputing(supernet: Supernet, cell: Cell) -> Callable[..., Tensor]:
    def run(forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        again = supernet.remixed()

        @contextmanager
        def second() -> Iterator[None]:
            """The second pass sees the first one's mixture and leaves the running statistics alone."""
            with kept(cell.buffers()), again():
                yield

        def contexts() -> tuple[Any, Any]:
            return nullcontext(), _Again(second)

        out: Tensor = checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)
        return out

    return run


class _Again(AbstractContextManager[None]):
    """A context that can be entered once for every backward pass through the same graph."""

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        self._make = make
        self._entered: list[AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        context = self._make()
        context.__enter__()
        self._entered.append(context)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._entered.pop().__exit__(kind, error, trace)


@dataclass
class Bilevel:
    """The weights w are trained by `loop`, the alphas moved by `alpha_optimizer`.

    validation: the batches that the alphas learn from.
    freezer: which operations have stopped learning (OLES); None where none may.
    moves_alphas: whether the coming steps move the alphas, or only the weights.
    seed: what the alphas' steps draw follows from it and the step.
    """

    supernet: Supernet
    method: Method
    loop: Loop
    validation: Batches
    alpha_optimizer: AlphaOptimizer
    freezer: Freezer | None
    moves_alphas: bool
    seed: int

    @classmethod
    def begun(
        cls, supernet: Supernet, task: Task, method: Method, *, seed: int, team: Team = ALONE
    ) -> Bilevel:
        """The search of a supernet by a method, before its first step.

        team: its processes divide every batch among them, see `nas.training.ddp`.
        """
        loop = Loop(supernet.network, task, method.weights, seed=seed, split=task.train, team=team)
        recompute_cells(supernet, enabled=method.checkpointing)
        recipe = replace(method.weights, mixup=0.0)
        validation = Batches(task.val, task, recipe, seed=derive(seed, "validation"), team=team)
        freezer = None if method.freezing is None else Freezer(supernet, method.freezing)
        if method.relaxation.one_at_a_time:
            loop.masked = MaskedUpdate(loop.parameters.values())
        elif freezer is not None:
            loop.masked = MaskedUpdate(freezer.weights)
        alpha_optimizer = method.update.begin(supernet.architecture())
        moves = method.learns_alphas
        return cls(supernet, method, loop, validation, alpha_optimizer, freezer, moves, seed)

    @property
    def images_at_once(self) -> int:
        """How many images pass together where nothing is learned, so that it needs about a step's memory."""
        return min(1024, 8 * self.loop.images)

    @property
    def frozen(self) -> int:
        """How many operations have stopped learning."""
        return 0 if self.freezer is None else len(self.freezer.frozen)

    @property
    def read_by_steps(self) -> Hashable | None:
        """What a step reads of Python and may change; None where a CUDA graph cannot hold the coming one."""
        method, skips = self.method, any(mixed.skip_dropout is not None for mixed in self.supernet.mixed())
        # Passes that must draw the same are seeded apart, which a graph cannot hold.
        alike = method.order == 2 or any(regularizer.reads_mixture for regularizer in method.regularizers)
        if method.relaxation.one_at_a_time or method.checkpointing:
            return None
        if alike and self.moves_alphas and (method.relaxation.draws or skips):
            return None
        return tuple(self.supernet.alive), skips, self.moves_alphas, self.loop.read_by_steps

    def moved(self) -> Iterator[Tensor]:
        """All tensors that a step changes."""
        yield from (*self.loop.moved(), *self.supernet.architecture(), *self.alpha_optimizer.moved())
        if self.freezer is not None:
            yield from self.freezer.moved()

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, beside the settings and the step."""
        return {
            "loop": self.loop.state(),
            "alphas": [alpha.detach() for alpha in self.supernet.architecture()],
            "alive": [list(options) for options in self.supernet.alive],
            "alpha_optimizer": dict(self.alpha_optimizer.state()),
            "freezer": dict(self.freezer.state()) if self.freezer is not None else {},
        }

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        """Goes back to where `state` was taken, after `step` steps."""
        self.loop.restore(step, state["loop"])
        self.supernet.keep(state["alive"])
        with torch.no_grad():
            for alpha, saved in zip(self.supernet.architecture(), state["alphas"], strict=True):
                alpha.copy_(saved)
        self.alpha_optimizer.restore(state["alpha_optimizer"])
        if self.freezer is not None:
            self.freezer.restore(state["freezer"])

    def take_over(self, old: Bilevel) -> None:
        """Goes on with what a search has learned of its weights: their decay, and which are frozen."""
        self.loop.weight_decay = old.loop.weight_decay
        if self.freezer is not None and old.freezer is not None:
            self.freezer.restore(old.freezer.state())
