"""How healthy a differentiable search is: numbers that foretell a collapse, measured after every epoch."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nas.data.task import Split, Task, first_of
from nas.oneshot.darts_step import Bilevel
from nas.oneshot.discretize import skip_shares
from nas.oneshot.early_stopping import Growth
from nas.oneshot.methods import Method
from nas.oneshot.path_training import score
from nas.oneshot.supernet import Supernet, in_training, preserving, without_gradients
from nas.seeding import derive, torch_rng
from nas.training.evaluate import FORWARD, evaluate
from nas.training.loop import Loop
from nas.training.optimizer import flat, gradients
from nas.training.recipe import is_half, precision, to_layout
from nas.types import Genotype

ITERATIONS = 10
"""Of the dominant eigenvalue, at most."""
_ONCE = re.compile("derivative .* is not implemented|differentiate twice")
"""What the library says of an operation without second derivatives."""
SELDOM = 4
"""Epochs from one eigenvalue to the next where one option runs at a time, whose steps are cheap beside it."""
LOOKS, CURVATURE = 3.0, 1.2
"""Steps that looking at a search takes about as long as, and those of an iteration of the eigenvalue."""
PASSES = 2
"""Of as many images, to train the weights and the alphas, are a step."""
Strengths = tuple[NDArray[np.float64], ...]
"""`[O]` for each decision, how much each option is preferred, in [0, 1]."""


@dataclass(frozen=True)
class Health:
    """Measured after one epoch.

    skip_shares: share of identities among the connections of the preferred architecture, in [0, 1], for each
      kind of cell.
    entropy: mean entropy of the decisions' strengths over that of a uniform choice, in [0, 1]; 1 is
      undecided.
    eigenvalue: largest in magnitude of the Hessian of the validation loss with respect to the alphas, on one
      batch that is the same after every epoch; NaN where the alphas are not learned, and in three of four
      epochs where one option runs at a time. Deviations: Zela et al.
      (ICLR 2020, RobustDARTS, §4) draw another batch each time, and this one has `curvature_images` only;
      their code takes the largest with its sign, and adds the alphas' weight decay, where a loss that falls
      off steeply is here as sharp as one that rises.
    matching: cosine of the training and validation gradients of all weights on a batch each, in [-1, 1]; of
      the preferred architecture's, where one option runs at a time.
    gap: score of the supernet, such as its accuracy, minus that of the preferred architecture on its weights,
      both on the validation split; what discretisation costs. NaN where one option runs at a time.
    changes: decisions that are other than an epoch before.
    """

    skip_shares: dict[str, float] = field(default_factory=dict)
    entropy: float = math.nan
    eigenvalue: float = math.nan
    matching: float = math.nan
    gap: float = math.nan
    changes: int = 0

    @property
    def skip_share(self) -> float:
        """The largest share of identities of all kinds of cell."""
        return max(self.skip_shares.values(), default=0.0)


class Examiner:
    """Measures the health of a search, the same whenever it is asked.

    iterations: at most so many of `dominant_eigenvalue`, which starts where the one before ended. Then one
      for each six steps of an epoch will do, at least two, so that looking takes a fraction of it.
    direction: where the last one ended.
    trouble: why the eigenvalue cannot be measured; empty while it can.
    """

    def __init__(self, *, iterations: int = ITERATIONS) -> None:
        self.iterations = iterations
        self.direction: list[Tensor] = []
        self.trouble = ""

    def examine(
        self,
        search: Bilevel,
        genotype: Genotype,
        before: Genotype | None,
        val_score: float,
        *,
        curved: bool = True,
    ) -> Health:
        """One epoch's health.

        genotype: what the alphas prefer now. before: what they did an epoch before. val_score: of the
        supernet, on the validation split. curved: whether to measure the eigenvalue.
        """
        supernet, loop = search.supernet, search.loop
        seed = derive(loop.seed, "health", loop.step // loop.steps_per_epoch)
        sampled = supernet.relaxation.samples_one_path
        learned = search.method.learns_alphas and any(len(options) > 1 for options in supernet.alive)
        return Health(
            skip_shares=skip_shares(supernet.space, genotype),
            entropy=entropy(supernet.preferences(), [len(d.options) for d in supernet.space.decisions]),
            eigenvalue=self.eigenvalue(search) if learned and curved else math.nan,
            matching=matching(search, seed, genotype if sampled else None),
            gap=math.nan if sampled else val_score - preferred_score(search, genotype, seed),
            changes=0 if before is None else sum(a != b for a, b in zip(genotype, before, strict=True)),
        )

    def eigenvalue(self, search: Bilevel, *, images: int = 0) -> float:
        """The present one; remembers its direction. images: `curvature_images` unless given.

        NaN where an operation of the space cannot be differentiated twice.
        """
        supernet, loop = search.supernet, search.loop
        seed, network = derive(loop.seed, "eigenvalue"), supernet.network
        wanted = images or curvature_images(search.method, loop.images, loop.device)
        x, y = _batch(loop.task, loop.task.val, seed, wanted)
        later = min(self.iterations, continued(loop.steps_per_epoch))
        # The library's fast ways of attention have first derivatives only.
        unmoved, twice = without_gradients(network.parameters()), sdpa_kernel(SDPBackend.MATH)
        try:
            with preserving(network.buffers()), in_training(supernet), unmoved, twice:
                logits = supernet.mix(to_layout(x), supernet.expected_mixture())
                value, self.direction = dominant_eigenvalue(
                    loop.task.problem.loss(logits.float(), y),
                    [supernet.alphas],
                    start=self.direction,
                    iterations=later if self.direction else self.iterations,
                    seed=seed,
                )
        except RuntimeError as error:
            if not _ONCE.search(str(error)):
                raise
            self.trouble = (
                "the curvature is not watched, so that a collapse may go unseen: an operation of the space "
                f"cannot be differentiated twice ({str(error).splitlines()[0]})"
            )
            return math.nan
        return value


def between(method: Method) -> int:
    """Epochs from one eigenvalue to the next."""
    return SELDOM if method.relaxation.samples_one_path else 1


def continued(steps_per_epoch: int) -> int:
    """Iterations that do for an eigenvalue that begins in the direction of the one before."""
    return max(2, steps_per_epoch // 6)


def monitoring_cost(task: Task, method: Method, *, first: bool) -> float:
    """Steps that all which is done after an epoch takes about as long as, before it was timed.

    first: whether it is the first epoch, after which the eigenvalue has no direction to begin in.
    """
    batch = method.weights.batch
    later = min(ITERATIONS, continued(len(task.train) // batch))
    iterations = (ITERATIONS if first else later) if method.learns_alphas else 0
    return LOOKS + CURVATURE * iterations / between(method) + FORWARD / PASSES * len(task.val) / batch


def curvature_images(method: Method, batch: int, device: torch.device) -> int:
    """How many images the eigenvalue is taken of, so that it needs about the memory of a step.

    All options are differentiated twice, in float32 and without recomputing anything.
    """
    half = 2 if is_half(device, method.weights.precision) else 1
    again = 2 if method.checkpointing else 1
    return max(4, batch // (2 * half * again * (4 if method.relaxation.samples_one_path else 1)))


def evaluation_images(loop: Loop) -> int:
    """How many images pass together where nothing is learned, so that it needs about a step's memory."""
    return min(1024, 8 * loop.images)


def dominant_eigenvalue(
    loss: Tensor,
    parameters: Sequence[Tensor],
    *,
    start: Sequence[Tensor] = (),
    iterations: int = 10,
    seed: int = 0,
) -> tuple[float, list[Tensor]]:
    """The eigenvalue of largest magnitude of the Hessian of `loss`, and its direction.

    Power iteration from `start`, or from a random direction, with one product with the Hessian, by
    differentiating twice, in each. Instead of the last vector alone the best combination of all of them
    counts (Lanczos 1950, with full orthogonalisation), which tells a positive from a negative eigenvalue of
    similar size, too.
    """
    gradient = flat(gradients(loss, parameters, create_graph=True))
    size = len(gradient)
    vector = flat(start) if start else torch.randn(size, generator=torch_rng(seed, "power"))
    vector = vector.to(gradient)
    basis, images = gradient.new_empty(size, 0), gradient.new_empty(size, 0)
    for _ in range(min(iterations, size)):
        for _ in range(2):  # twice is enough (Giraud et al. 2005)
            vector = vector - basis @ (basis.T @ vector)
        norm = vector.norm()
        if not norm > 1e-6 * images.norm():  # the vectors so far span all that the Hessian does
            break
        basis = torch.cat([basis, (vector / norm)[:, None]], dim=1)
        vector = flat(gradients(gradient @ basis[:, -1], parameters, retain_graph=True)).detach()
        images = torch.cat([images, vector[:, None]], dim=1)
    small = basis.T @ images
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    best = int(values.abs().argmax())
    direction = (basis @ vectors[:, best]).split([p.numel() for p in parameters])
    return float(values[best]), [d.view_as(p) for d, p in zip(direction, parameters, strict=True)]


def entropy(rows: Tensor, options: Sequence[int]) -> float:
    """Mean entropy of rows `[D, O]`, each scaled to sum to 1, over that of a uniform row; in [0, 1].

    options: how many each row has; those that have one only do not count.
    """
    shares = rows.double() / rows.double().sum(-1, keepdim=True)
    nats = -torch.xlogy(shares, shares).sum(-1).cpu()
    found = [float(n) / math.log(count) for n, count in zip(nats, options, strict=True) if count > 1]
    return float(np.mean(found)) if found else 0.0


def supernet_score(search: Bilevel, genotype: Genotype, seed: int, *, within_s: float = math.inf) -> float:
    """The mean score on validation images of the mixture, or of one architecture where one runs at a time.

    On all validation images, or in a mixture on as many as there is time for.
    """
    loop, images = search.loop, evaluation_images(search.loop)
    if search.supernet.relaxation.samples_one_path:
        return preferred_score(search, genotype, seed)
    val, portion_s = loop.task.val, max(1e-9, loop.step_s * FORWARD / PASSES * images / loop.images)
    if within_s < portion_s * len(val) / images:
        val = first_of(val, images * max(1, int(within_s / portion_s)))
    return evaluate(search.supernet, loop.task, val, batch=images)[1]


def preferred_score(search: Bilevel, genotype: Genotype, seed: int) -> float:
    """The mean score on validation images of one architecture on the shared weights."""
    images, task = evaluation_images(search.loop), search.loop.task
    return score(search.supernet, genotype, task, calibration=images // 2, seed=seed, images=images)[1]


def matching(search: Bilevel, seed: int, genotype: Genotype | None = None) -> float:
    """Cosine of the gradients of training and validation loss with respect to the weights, in [-1, 1].

    genotype: the architecture whose loss it is; the whole mixture's unless given.
    """
    task = search.loop.task
    ours, theirs = (_gradient(search, split, seed, genotype) for split in (task.train, task.val))
    norms = ours.norm() * theirs.norm()
    return float(ours @ theirs / norms) if norms > 0 else 0.0


def _gradient(search: Bilevel, split: Split, seed: int, genotype: Genotype | None) -> Tensor:
    supernet, loop, task = search.supernet, search.loop, search.loop.task
    x, y = _batch(task, split, seed, loop.images)
    with preserving(supernet.network.buffers()), in_training(supernet):
        with torch.no_grad():
            mixture = supernet.expected_mixture() if genotype is None else supernet.path(genotype)
        with precision(x.device, loop.recipe.precision):
            logits = supernet.mix(to_layout(x), mixture)
        loss = task.problem.loss(logits.float(), y)
        return flat(gradients(loss, list(loop.parameters.values())))


def _batch(task: Task, split: Split, seed: int, size: int) -> tuple[Tensor, Tensor]:
    """A batch of plain images, drawn by the seed."""
    order = torch.randperm(len(split), generator=torch_rng(seed, "batch"))[:size]
    index = order.to(split.x.device)
    return task.normalise(split.x[index]), split.y[index]


@dataclass(frozen=True, eq=False)
class Epoch:
    """The search after one more epoch.

    epoch: counted from 1 to `epochs`; a search that goes back counts the same ones again.
    genotype: what the alphas prefer now.
    strengths: how much each option is preferred now.
    train_loss: mean of the weights' loss over the epoch.
    val_score: mean score of the whole mixture on the validation split, such as its accuracy; where one option
      runs at a time, that of the preferred architecture.
    seconds: time spent on training, looking and selecting.
    health: see there.
    growth: of the eigenvalue, as the guards see it, or would where there are none.
    events: what happened at its end, in words.
    back: the epoch that the search went back to at its end; None where it went on.
    """

    epoch: int
    epochs: int
    genotype: Genotype
    strengths: Strengths
    train_loss: float
    val_score: float
    seconds: float
    health: Health = field(default_factory=Health)
    growth: Growth = field(default_factory=Growth)
    events: tuple[str, ...] = ()
    back: int | None = None

    def packed(self) -> dict[str, Any]:
        """As plain values and tensors."""
        return {**dataclasses.asdict(self), "strengths": [torch.from_numpy(row) for row in self.strengths]}

    @classmethod
    def unpacked(cls, record: Mapping[str, Any]) -> Epoch:
        """What `packed` took apart."""
        strengths = tuple(row.numpy() for row in record["strengths"])
        health, growth = Health(**record["health"]), Growth(**record["growth"])
        return cls(**{**record, "strengths": strengths, "health": health, "growth": growth})


@dataclass(frozen=True, eq=False)
class DifferentiableOutcome:
    """What a search ends with.

    selected: architectures in the order in which they are preferred: by the method's selection, by the alphas
      where that is another one, and those preferred after earlier epochs, the latest first, without those
      that were gone back on; each once.
    strengths: how much each option was preferred when the alphas chose.
    supernet: as it is at the end.
    """

    epochs: Sequence[Epoch]
    selected: Sequence[Genotype]
    strengths: Strengths
    supernet: Supernet


def lasting(epochs: Sequence[Epoch]) -> list[Epoch]:
    """The epochs without those that the search went back on."""
    found: list[Epoch] = []
    for epoch in epochs:
        found.append(epoch)
        if epoch.back is not None:
            found = [earlier for earlier in found if earlier.epoch <= epoch.back]
    return found
