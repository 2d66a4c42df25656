"""The bilevel search of DARTS (Liu et al., ICLR 2019): alphas by validation loss, weights by training loss.

Algorithm 1 of the paper: each step first moves the alphas along equation 7, whose second term is left out at
first order, and then the weights along the training loss. The alphas' batch comes from the validation split.

Deviations: the step's random numbers come from (seed, step) instead of a loader; the perturbed passes of the
second order leave batch-norm's running statistics as they were.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.devices import exact
from nas.oneshot.freezing import Freezer
from nas.oneshot.fused.execution import unasked
from nas.oneshot.gradients import gradients
from nas.oneshot.keeping import kept, without_gradients
from nas.oneshot.method import Method
from nas.oneshot.mixed import Share, chosen_of
from nas.oneshot.perturbations import Perturbation
from nas.oneshot.recompute import recompute_cells
from nas.oneshot.supernet import Supernet
from nas.seeding import derive
from nas.task import Task
from nas.training.arithmetic import precision, to_layout
from nas.training.batches import Batches, images_of, policy_of
from nas.training.captured import Captured, tensors_in
from nas.training.loop import Loop, one_pass
from nas.training.recipe import Precision
from nas.training.resting import Resting
from nas.training.streams import Streams
from nas.training.team import ALONE, Team

ALPHA_PLACES = ("alphas", "penalty")
"""Where a step of the alphas draws."""
STEP_PLACES = ("unrolled", "up", "down")
"""Where the second order draws what the step of the weights draws."""
POINTS = "points"
"""Where a mixture is drawn that is then perturbed."""


class BilevelLoop:
    """A search that can be advanced one step at a time, and saved and restored between any two steps.

    alphas_move: whether the coming steps move the alphas, or only the weights.
    over: whether the search proper is over and this is the training after it.
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
        policy, size = policy_of(method.weights, task), method.weights.batch
        self._validation = Batches(task.val, task, policy, size=size, seed=derive(seed, "validation"))
        self.team, self._validated = team, self._validation.size
        images_of(team, self._validated)
        self._mover = method.update.begin(supernet.architecture(), captured=self.loop.record is not None)
        self._points: Sequence[Tensor] | None = None
        record = self.loop.record
        self._passes = perturbed_places(method)
        self._streams = Streams(record, (*ALPHA_PLACES, *STEP_PLACES, POINTS, *self._passes))
        self._perturbation = torch.Generator(self.loop.device)
        own = [*self._streams.generators, self._perturbation]
        generators = [*own, *self.loop.generators, self._validation.generator]
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
        self._batch: tuple[Tensor, Tensor] | None = None
        if method.freezing is not None:
            self._freezer = Freezer(supernet, method.freezing)
            self.loop.resting = Resting(self._freezer.weights)

    @cached_property
    def _unasked(self) -> bool:
        """Whether one option of each decision is drawn, and Python is never told which."""
        return self.method.relaxation.one_at_a_time and unasked(self.supernet.network)

    @property
    def progress(self) -> float:
        """Share of the search that is done, in [0, 1]."""
        return 1.0 if self.over else self.loop.step / self.loop.steps

    @property
    def frozen(self) -> int:
        """How many operations have stopped learning."""
        return 0 if self._freezer is None else len(self._freezer.frozen)

    def advance(self) -> None:
        """Moves the alphas, if it is their time, then the weights; in one CUDA graph where that can be."""
        started = time.perf_counter()
        self._set_progress()
        self.loop.set_rates()
        if (key := self._form_of_both()) is not None:
            self._captured.forget()
            self.loop.forget()
            self._both.run(key, self._begin_both)
            self.loop.end_step()
            self.loop.seconds += time.perf_counter() - started
            return
        if self.alphas_move:
            self._captured.run(self._alpha_form(), self._begin_alphas)
        self.loop.seconds += time.perf_counter() - started
        with without_gradients(self.supernet.architecture()):
            self.loop.advance(self._begin_perturbation)
            self._points = None

    def alpha_gradient(self) -> list[Tensor]:
        """The gradient of the alphas' loss, by the method's order, and of the regularisers.

        The former is with respect to the alphas and betas, or to the mixture weights where those are what
        moves; the latter always to the alphas.
        """
        found = self._loss_gradient()
        if not self.method.regularizers:
            return found
        added = gradients(self.penalty(), self.supernet.architecture())
        return [gradient + more for gradient, more in zip(found, added, strict=True)]

    def penalty(self) -> Tensor:
        """The regularisers at the coming step's alphas and mixture."""
        alphas, mixed = self.supernet.logits(), list[Tensor]()
        if any(regularizer.reads_mixture for regularizer in self.method.regularizers):
            with self._streams.at("penalty", self._alpha_seed):
                mixed = self.supernet.points()[: len(alphas)]
        held = self.supernet.progress
        progress = held if isinstance(held, Tensor) else self.progress
        terms = [regularizer(alphas, mixed, progress) for regularizer in self.method.regularizers]
        return torch.stack(terms).sum()

    def validation_loss(self, wanted: Precision | None = None) -> Tensor:
        """The cross-entropy on the coming step's validation batch.

        wanted: arithmetic, the recipe's unless given.
        """
        x, y = self._batch or self._mine(*self._validation.at(self.loop.step)[:2])
        arithmetic = precision(x.device, wanted or self.method.weights.precision)
        with self._streams.at("alphas", self._alpha_seed), arithmetic:
            mixture = self._mixture(self._current())
            self.team.apart(self._alpha_seed)
            logits = self.supernet.mix(to_layout(x), mixture)
        return F.cross_entropy(logits.float(), y)

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

    def _set_progress(self) -> None:
        if self.loop.record is None:
            self.supernet.progress = self.progress
            return
        if not isinstance(self.supernet.progress, Tensor):
            # A number would stay in a captured step what it was.
            self.supernet.progress = torch.zeros((), dtype=torch.float64, device=self.loop.device)
        self.supernet.progress.fill_(self.progress)

    @property
    def _watching(self) -> Freezer | None:
        """What compares the gradients of the coming step's two losses."""
        return self._freezer if self.alphas_move else None

    def _form(self) -> Hashable:
        """What a step reads of Python, see `Loop`."""
        method = self.method
        if method.perturbation is not None and method.perturbation.passes is None:
            return None
        if method.relaxation.one_at_a_time and not self._unasked:
            return None
        if method.checkpointing:
            return None
        skips = tuple(mixed.skip_dropout for mixed in self.supernet.mixed())
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

    def _begin_alphas(self) -> None:
        for place in ALPHA_PLACES:
            self._streams.begin(place, self._alpha_seed)
        if self.method.order == 2:
            for place in STEP_PLACES:
                self._streams.begin(place, self.loop.seed_of_step)
            self.loop.begin()
        self._validation.prepare(self.loop.step)

    def _begin_perturbation(self) -> None:
        if self.method.perturbation is not None:
            self._perturbation.manual_seed(derive(self.seed, "perturbation", self.loop.step))
            self._streams.begin(POINTS, self._seed_of_points)
            for place in self._passes:
                self._streams.begin(place, self.loop.seed_of_step)

    def _begin_both(self) -> None:
        self._begin_alphas()
        self._begin_perturbation()
        self.loop.begin()

    def _move_both(self) -> None:
        # The second order sees the batch of the weights, too; to draw it once gives the same images.
        with self.loop.one_batch() if self.method.order == 2 else nullcontext():
            self._move_alphas()
            with without_gradients(self.supernet.architecture()):
                self.loop.do()
            self._points = None

    def _moved_by_both(self) -> Iterator[Tensor]:
        yield from self._moved()
        yield from self.loop.moved()

    def _move_alphas(self) -> None:
        """A step of the alphas, once it has begun."""
        self._batch = self._mine(*self._validation.draw())
        try:
            self._mover.step(self.alpha_gradient())
        finally:
            self._batch = None

    def _moved(self) -> Iterator[Tensor]:
        yield from (*self.supernet.architecture(), *self.supernet.network.buffers())
        yield from tensors_in(self._mover.state())
        if self._freezer is not None:
            yield from self._freezer.moved()

    @property
    def _alpha_seed(self) -> int:
        return derive(self.seed, "alpha step", self.loop.step)

    def _current(self) -> Sequence[Tensor]:
        return self.supernet.points() if self._points is None else self._points

    def _mixture(self, points: Sequence[Tensor]) -> Mapping[str, Share]:
        mixture = self.supernet.mixture(points, whole=self._points is not None)
        if self.team.size > 1:  # what is drawn is known to the device only
            self.team.note(chosen_of(mixture), [*points, *self.supernet.architecture()])
        return mixture

    def _mine(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """This rank's part of a batch."""
        return self.team.part(x), self.team.part(y)

    def _forward(self, _: nn.Module, x: Tensor, __: int) -> Tensor:
        mixture = self._mixture(self._current())
        self.loop.apart()
        return self.supernet.mix(x, mixture)

    def _gradients(self, loss: Tensor, inputs: Sequence[Tensor], images: int) -> list[Tensor]:
        """Of a loss that is the mean over a batch of so many images, of which each rank has a part."""
        found = gradients(loss, inputs)
        self.team.agree(f"search, alphas of step {self.loop.step}")
        return list(self.team.average(found, images))

    def _backward(self, loop: Loop) -> Tensor:
        loss = one_pass(loop)
        if self._freezer is not None:
            if self._watching is not None:
                self._freezer.watch()
            self._freezer.hold()
        return loss

    def _loss_gradient(self) -> list[Tensor]:
        with self._targets() as targets:
            if self.method.order == 2:
                return self._second_order(targets)
            if self._freezer is None:
                with without_gradients(self.loop.parameters.values()):
                    return self._gradients(self.validation_loss(), targets, self._validated)
            loss = self.validation_loss()
            found = self._gradients(loss, [*targets, *self._freezer.weights], self._validated)
            self._freezer.note(found[len(targets) :])
            return found[: len(targets)]

    @contextmanager
    def _targets(self) -> Iterator[Sequence[Tensor]]:
        """What the alphas' gradient is taken of: themselves, or the points of the simplex they stand for."""
        if not self.method.update.on_simplex:
            yield self.supernet.architecture()
            return
        self._points = [point.detach().requires_grad_() for point in self.supernet.points()]
        try:
            yield self._points
        finally:
            self._points = None

    @property
    def _seed_of_points(self) -> int:
        return derive(self.seed, "perturbed points", self.loop.step)

    def _perturb(self) -> None:
        """Sets the mixture that the coming step trains the weights under, where it is not the present one."""
        if self.method.perturbation is not None:
            self._points = self._perturbed(self.method.perturbation)

    def _perturbed(self, perturbation: Perturbation) -> Sequence[Tensor]:
        count = len(self.supernet.alphas)
        with torch.no_grad(), self._streams.at(POINTS, self._seed_of_points):
            points = self.supernet.points()
        mixed, edges = points[:count], points[count:]
        places = iter(self._passes or itertools.repeat(POINTS))

        def loss(candidate: Sequence[Tensor]) -> Tensor:
            self._points = [*candidate, *edges]
            try:
                with self._streams.at(next(places), self.loop.seed_of_step):
                    return self.loop.loss()
            finally:
                self._points = None

        def mean(candidate: Sequence[Tensor]) -> Tensor:
            return self.team.across(candidate, loss, self.loop.batch)

        held = self.supernet.progress
        progress = held if isinstance(held, Tensor) else self.progress
        with kept(self.supernet.network.buffers()), without_gradients(self.loop.parameters.values()):
            return [*perturbation(mixed, mean, progress, self._perturbation), *edges]

    def _second_order(self, targets: Sequence[Tensor]) -> list[Tensor]:
        """Equations 7 and 8: the gradient at the unrolled weights w', less ξ times a Hessian-vector product.

        w' = w - ξ (momentum buffer + ∇w L_train + weight decay), with ξ the current learning rate, as in the
        released code; the product is a central difference of ∇α L_train at w ± ε ∇w' L_val, with
        ε = 0.01 / ‖∇w' L_val‖ (footnote 2). Four passes one after the other: at no time are there more
        activations than at first order; beside them two copies of the weights. In float32 whatever the
        recipe says, since the difference of the last two passes is smaller than what bfloat16 rounds off.
        """
        weights: list[Tensor] = list(self.loop.parameters.values())
        rate, images = self.loop.rate, self.loop.batch
        if self._batch is None:  # asked for outside of a step
            self.loop.set_rates()
            self.loop.begin()
        arithmetic, buffers = exact(), kept(self.supernet.network.buffers())
        with arithmetic, self.loop.one_batch(), buffers, kept(weights) as back:
            step = self.loop.descent(self._gradients(self._training_loss("unrolled"), weights, images))
            with torch.no_grad():
                if isinstance(rate, Tensor):
                    torch._foreach_mul_([*step], rate)
                torch._foreach_sub_(weights, [*step], alpha=1.0 if isinstance(rate, Tensor) else rate)
            del step
            loss = self.validation_loss("float32")
            found = self._gradients(loss, [*targets, *weights], self._validated)
            direct, vector = found[: len(targets)], found[len(targets) :]
            epsilon = 0.01 / nn.utils.get_total_norm(vector).clamp_min(1e-12)
            torch._foreach_mul_(vector, epsilon)
            sides = []
            for side, place in ((1, "up"), (-1, "down")):
                back()
                with torch.no_grad():
                    torch._foreach_add_(weights, vector, alpha=side)
                with without_gradients(self.loop.parameters.values()):
                    sides.append(self._gradients(self._training_loss(place), targets, images))
        product = [(up - down) / (2 * epsilon) for up, down in zip(*sides, strict=True)]
        return [d - rate * p for d, p in zip(direct, product, strict=True)]

    def _training_loss(self, place: str) -> Tensor:
        """Of the coming step's batch, in a pass with a place of its own among the streams."""
        with self._streams.at(place, self.loop.seed_of_step):
            return self.loop.loss("float32")


def perturbed_places(method: Method) -> list[str]:
    """Where passes draw that a perturbation asks for, if it is known how many these are."""
    passes = method.perturbation.passes if method.perturbation is not None else None
    return [f"perturbed {number}" for number in range(passes or 0)]
