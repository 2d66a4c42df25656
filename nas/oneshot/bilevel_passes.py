"""The passes of a bilevel step: under which mixture they run, of which images, and where they draw.

What a pass draws follows from the step and the pass's place in it, so that one that is asked for again, as by
the second order, sees what it saw before. The alphas' images come from the validation split.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.oneshot.keeping import kept, without_gradients
from nas.oneshot.method import Method
from nas.oneshot.mixed import Share, chosen_of
from nas.oneshot.perturbations import Perturbation
from nas.oneshot.supernet import Supernet
from nas.seeding import derive
from nas.task import Task
from nas.training.arithmetic import precision, to_layout
from nas.training.batches import Batches, images_of, policy_of
from nas.training.loop import Loop
from nas.training.recipe import Precision
from nas.training.streams import Streams
from nas.training.team import Team

ALPHA_PLACES = ("alphas", "penalty")
"""Where a step of the alphas draws."""
STEP_PLACES = ("unrolled", "up", "down")
"""Where the second order draws what the step of the weights draws."""
POINTS = "points"
"""Where a mixture is drawn that is then perturbed."""


class Passes:
    """The passes through a supernet in the coming step of a loop that trains its weights.

    points: the mixture that passes run under; that of the alphas where it is None.
    drawn: this rank's part of the validation images, once the alphas' step has drawn them.
    over: whether the search proper is over.
    """

    def __init__(
        self, supernet: Supernet, task: Task, method: Method, loop: Loop, *, seed: int, over: bool, team: Team
    ) -> None:
        self.supernet, self.method, self.loop, self.team = supernet, method, loop, team
        self.over, self._seed = over, seed
        self.points: Sequence[Tensor] | None = None
        self.drawn: tuple[Tensor, Tensor] | None = None
        policy, size = policy_of(method.weights, task), method.weights.batch
        self.validation = Batches(task.val, task, policy, size=size, seed=derive(seed, "validation"))
        images_of(team, self.validation.size)
        self._places = perturbed_places(method)
        self._streams = Streams(loop.record, (*ALPHA_PLACES, *STEP_PLACES, POINTS, *self._places))
        self._perturbation = torch.Generator(loop.device)
        if loop.record is not None:
            supernet.hold(loop.device)

    @property
    def generators(self) -> list[torch.Generator]:
        """What they draw from, beside torch's own and those of the images."""
        return [*self._streams.generators, self._perturbation]

    # -- how far the search is -------------------------------------------------------------------------

    @property
    def done(self) -> float:
        """Share of the search that is done, in [0, 1]."""
        return 1.0 if self.over else self.loop.step / self.loop.steps

    @property
    def progress(self) -> float | Tensor:
        """The same, of a step that may be captured as a scalar on the device; see `Supernet.hold`."""
        held = self.supernet.progress
        return held if isinstance(held, Tensor) else self.done

    def follow(self) -> None:
        """Tells the supernet how far the search is."""
        if isinstance(self.supernet.progress, Tensor):
            self.supernet.progress.fill_(self.done)
        else:
            self.supernet.progress = self.done

    # -- where a step begins ---------------------------------------------------------------------------

    def begin_alphas(self) -> None:
        """Sets the streams of a step of the alphas, and which images it sees."""
        for place in ALPHA_PLACES:
            self._streams.begin(place, self._alpha_seed)
        if self.method.order == 2:
            for place in STEP_PLACES:
                self._streams.begin(place, self.loop.seed_of_step)
            self.loop.begin()
        self.validation.prepare(self.loop.step)

    def begin_perturbation(self) -> None:
        """Sets the streams of a perturbation, where there is one."""
        if self.method.perturbation is not None:
            self._perturbation.manual_seed(derive(self._seed, "perturbation", self.loop.step))
            self._streams.begin(POINTS, self._seed_of_points)
            for place in self._places:
                self._streams.begin(place, self.loop.seed_of_step)

    # -- losses ----------------------------------------------------------------------------------------

    @contextmanager
    def one_validation_batch(self) -> Iterator[None]:
        """Runs a block in which the validation images of the step, once it has begun, are drawn once."""
        self.drawn = self._mine(*self.validation.draw())
        try:
            yield
        finally:
            self.drawn = None

    def validation_loss(self) -> Tensor:
        """The cross-entropy on the coming step's validation batch."""
        x, y = self.drawn or self._mine(*self.validation.at(self.loop.step)[:2])
        arithmetic = precision(x.device, self.method.weights.precision)
        with self._streams.at("alphas", self._alpha_seed), arithmetic:
            mixture = self._mixture()
            self.team.apart(self._alpha_seed)
            logits = self.supernet.mix(to_layout(x), mixture)
        return F.cross_entropy(logits.float(), y)

    def training_loss(self, place: str, wanted: Precision | None = None) -> Tensor:
        """Of the coming step's training batch, in a pass with a place of its own.

        wanted: arithmetic, the recipe's unless given.
        """
        with self._streams.at(place, self.loop.seed_of_step):
            return self.loop.loss(wanted)

    def trained(self, x: Tensor) -> Tensor:
        """The logits that the weights are trained on."""
        mixture = self._mixture()
        self.loop.apart()
        return self.supernet.mix(x, mixture)

    def penalised(self) -> list[Tensor]:
        """The mixture weights `[E, O]`, those of edges left out, that regularisers see."""
        with self._streams.at("penalty", self._alpha_seed):
            return self.supernet.points()[: len(self.supernet.alphas)]

    # -- mixtures --------------------------------------------------------------------------------------

    @contextmanager
    def under_points(self) -> Iterator[Sequence[Tensor]]:
        """Runs a block on the mixture of the alphas as points of its own, whose gradients can be taken."""
        self.points = found = [point.detach().requires_grad_() for point in self.supernet.points()]
        try:
            yield found
        finally:
            self.points = None

    def perturb(self) -> None:
        """Sets the mixture that the coming step trains the weights under, where it is not the present one."""
        if self.method.perturbation is not None:
            self.points = self._perturbed(self.method.perturbation)

    def _perturbed(self, perturbation: Perturbation) -> Sequence[Tensor]:
        count = len(self.supernet.alphas)
        with torch.no_grad(), self._streams.at(POINTS, self._seed_of_points):
            points = self.supernet.points()
        mixed, edges = points[:count], points[count:]
        places = iter(self._places or itertools.repeat(POINTS))

        def loss(candidate: Sequence[Tensor]) -> Tensor:
            self.points = [*candidate, *edges]
            try:
                with self._streams.at(next(places), self.loop.seed_of_step):
                    return self.loop.loss()
            finally:
                self.points = None

        def mean(candidate: Sequence[Tensor]) -> Tensor:
            return self.team.across(candidate, loss, self.loop.batch)

        with kept(self.supernet.network.buffers()), without_gradients(self.loop.parameters.values()):
            return [*perturbation(mixed, mean, self.progress, self._perturbation), *edges]

    def _mixture(self) -> Mapping[str, Share]:
        points = self.supernet.points() if self.points is None else self.points
        mixture = self.supernet.mixture(points, whole=self.points is not None)
        if self.team.size > 1:  # what is drawn is known to the device only
            self.team.note(chosen_of(mixture), [*points, *self.supernet.architecture()])
        return mixture

    def _mine(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """This rank's part of a batch."""
        return self.team.part(x), self.team.part(y)

    @property
    def _alpha_seed(self) -> int:
        return derive(self._seed, "alpha step", self.loop.step)

    @property
    def _seed_of_points(self) -> int:
        return derive(self._seed, "perturbed points", self.loop.step)


def perturbed_places(method: Method) -> list[str]:
    """Where passes draw that a perturbation asks for, if it is known how many these are."""
    passes = method.perturbation.passes if method.perturbation is not None else None
    return [f"perturbed {number}" for number in range(passes or 0)]
