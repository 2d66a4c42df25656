"""The bilevel search of DARTS (Liu et al., ICLR 2019): alphas by validation loss, weights by training loss.

Algorithm 1 of the paper: each step first moves the alphas along their gradient (see
`nas.oneshot.bilevel_gradients`), and then the weights along the training loss. Deviation: the step's random
numbers come from (seed, step) instead of a loader.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from nas.oneshot import bilevel_gradients
from nas.oneshot.bilevel_passes import Passes
from nas.oneshot.freezing import Freezer
from nas.oneshot.keeping import without_gradients
from nas.oneshot.method import Method
from nas.oneshot.recompute import recompute_cells
from nas.oneshot.supernet import Supernet
from nas.task import Task
from nas.training.accuracy import Evaluation
from nas.training.captured import Captured, tensors_in
from nas.training.loop import Loop, one_pass
from nas.training.resting import Resting
from nas.training.team import ALONE, Team


class BilevelLoop:
    """A search that can be advanced one step at a time, and saved and restored between any two steps.

    alphas_move: whether the coming steps move the alphas, or only the weights.
    over: whether the search proper is over and this is the training after it.
    evaluation: of the whole mixture.
    """

    def __init__(
        self,
        supernet: Supernet,
        task: Task,
        method: Method,
        *,
        seed: int,
        over: bool = False,
        team: Team = ALONE,
    ) -> None:
        self.supernet, self.task, self.method, self.seed, self.over = supernet, task, method, seed, over
        self.alphas_move = method.learns_alphas
        self._freezer: Freezer | None = None
        self.loop = Loop(
            supernet.network,
            task,
            method.weights,
            seed=seed,
            split=task.train,
            forward=self._forward,
            backward=self._backward,
            form=self._weights_form,
            before=self._perturb,
            team=team,
        )
        if method.relaxation.one_at_a_time:
            self.loop.resting = Resting(self.loop.parameters.values())
        recompute_cells(supernet, enabled=method.checkpointing)
        self.passes = Passes(supernet, task, method, self.loop, seed=seed, over=over, team=team)
        self._mover = method.update.begin(supernet.architecture(), captured=self.loop.record is not None)
        record, own = self.loop.record, self.passes.generators
        generators = [*own, *self.loop.generators, self.passes.validation.generator]
        self._captured = Captured(self._move_alphas, self._moved, record, generators)
        if method.perturbation is not None:
            self.loop.draws_from(own)
        self._both = Captured(
            self._move_both,
            self._moved_by_both,
            record,
            generators,
            otherwise="the steps of alphas and weights are captured apart, not in one CUDA graph",
        )
        if method.freezing is not None:
            self._freezer = Freezer(supernet, method.freezing)
            self.loop.resting = Resting(self._freezer.weights)
        self.evaluation = Evaluation(
            supernet, task, batch=self.images_at_once, record=record, form=lambda: tuple(supernet.alive)
        )

    @property
    def images_at_once(self) -> int:
        """How many images pass together where nothing is learned, so that it needs about a step's memory."""
        return min(1024, 8 * self.loop.images)

    @property
    def progress(self) -> float:
        """Share of the search that is done, in [0, 1]."""
        return self.passes.done

    @property
    def frozen(self) -> int:
        """How many operations have stopped learning."""
        return 0 if self._freezer is None else len(self._freezer.frozen)

    @property
    def captures(self) -> bool:
        """Whether steps may come to be replayed."""
        return self._both.captures or self.loop.captured.captures

    @property
    def replays(self) -> bool:
        """Whether steps like the last one are replayed, which the device may do much later."""
        return self._both.replays or self.loop.captured.replays

    def advance(self) -> None:
        """Moves the alphas, if it is their time, then the weights; in one CUDA graph where that can be."""
        started = time.perf_counter()
        self.passes.follow()
        self.loop.set_rates()
        if (key := self._form_of_both()) is not None:
            self._captured.forget()
            self.loop.forget()
            self._both.run(key, self._begin_both)
            self.loop.end_step()
            self.loop.seconds += time.perf_counter() - started
            return
        if self.alphas_move:
            self._captured.run(self._alpha_form(), self.passes.begin_alphas)
        self.loop.seconds += time.perf_counter() - started
        with without_gradients(self.supernet.architecture()):
            self.loop.advance(self.passes.begin_perturbation)
            self.passes.points = None

    def alpha_gradient(self) -> list[Tensor]:
        """What the coming step's alphas are moved by, see `nas.oneshot.bilevel_gradients`."""
        return bilevel_gradients.alpha_gradient(self.passes, self.method, self._freezer)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, beside the settings and the step."""
        return {
            "loop": self.loop.state(),
            "alphas": [alpha.detach() for alpha in self.supernet.architecture()],
            "alive": [list(options) for options in self.supernet.alive],
            "mover": dict(self._mover.state()),
            "freezer": dict(self._freezer.state()) if self._freezer is not None else {},
        }

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        """Goes back to where `state` was taken, after `step` steps."""
        self._captured.forget()
        self._both.forget()
        self.loop.restore(step, state["loop"])
        self.supernet.keep(state["alive"])
        with torch.no_grad():
            for alpha, saved in zip(self.supernet.architecture(), state["alphas"], strict=True):
                alpha.copy_(saved)
        self._mover.restore(state["mover"])
        if self._freezer is not None:
            self._freezer.restore(state["freezer"])

    def take_over(self, old: BilevelLoop) -> None:
        """Goes on with what a search has learned of its weights: their decay, and which are frozen."""
        self.loop.weight_decay = old.loop.weight_decay
        if self._freezer is not None and old._freezer is not None:
            self._freezer.restore(old._freezer.state())

    @property
    def _watching(self) -> Freezer | None:
        """What compares the gradients of the coming step's two losses."""
        return self._freezer if self.alphas_move else None

    def _form(self) -> Hashable:
        """What a step reads of Python, see `Loop`."""
        method = self.method
        if method.perturbation is not None and method.perturbation.passes is None:
            return None
        if method.relaxation.one_at_a_time:
            return None
        if method.checkpointing:
            return None
        skips = any(mixed.skip_dropout > 0 for mixed in self.supernet.mixed())
        return tuple(self.supernet.alive), skips, self._watching is not None

    def _weights_form(self) -> Hashable:
        """The same of a step of the weights."""
        # By itself, it would be compared without what the freezer has counted.
        return None if self._watching is not None and not self._both.captures else self._form()

    def _alpha_form(self) -> Hashable:
        """The same of a step of the alphas."""
        form = self._form()
        return None if form is None else (form, self.loop.drop_path > 0, self.loop.weight_decay)

    def _form_of_both(self) -> Hashable:
        """The same of both, one after the other; None where they do not run as one."""
        if not self.alphas_move or not self._both.captures:
            return None
        alphas, weights = self._alpha_form(), self.loop.key()
        return None if alphas is None or weights is None else (alphas, weights)

    def _begin_both(self) -> None:
        self.passes.begin_alphas()
        self.passes.begin_perturbation()
        self.loop.begin()

    def _move_both(self) -> None:
        # The second order sees the batch of the weights, too; to draw it once gives the same images.
        with self.loop.one_batch() if self.method.order == 2 else nullcontext():
            self._move_alphas()
            with without_gradients(self.supernet.architecture()):
                self.loop.do()
            self.passes.points = None

    def _moved_by_both(self) -> Iterator[Tensor]:
        yield from self._moved()
        yield from self.loop.moved()

    def _move_alphas(self) -> None:
        """A step of the alphas, once it has begun."""
        with self.passes.one_validation_batch():
            self._mover.step(self.alpha_gradient())

    def _moved(self) -> Iterator[Tensor]:
        yield from (*self.supernet.architecture(), *self.supernet.network.buffers())
        yield from tensors_in(self._mover.state())
        if self._freezer is not None:
            yield from self._freezer.moved()

    def _forward(self, _: nn.Module, x: Tensor, __: int) -> Tensor:
        return self.passes.trained(x)

    def _perturb(self) -> None:
        self.passes.perturb()

    def _backward(self, loop: Loop) -> Tensor:
        loss = one_pass(loop)
        if self._freezer is not None:
            if self._watching is not None:
                self._freezer.watch()
            self._freezer.hold()
        return loss
