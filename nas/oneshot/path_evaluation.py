"""Many architectures at once on shared weights: one batch holds every image once for each of them.

Batch-norm statistics that all architectures share fit none of them (Guo et al., ECCV 2020, SPOS, §3.4); here
each architecture gets its own in the same pass, from training images that lead the way through every layer.
Nothing of the supernet is changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from nas import devices
from nas.data.task import Split, Task
from nas.errors import ConfigError, TrialError
from nas.oneshot.supernet import Supernet
from nas.seeding import torch_rng
from nas.space.mixed_op import Many
from nas.space.ops import MixtureNorm
from nas.training.evaluate import evaluating
from nas.training.recipe import precision, to_layout
from nas.types import Genotype
from nas.user_code import memory_errors


@dataclass(frozen=True)
class Score:
    """Of one architecture: accuracy in [0, 1] and mean cross-entropy in nats."""

    accuracy: float
    loss: float


def accuracies(
    supernet: Supernet,
    genotypes: Sequence[Genotype],
    task: Task,
    *,
    calibration: int = 1024,
    seed: int,
    images: int = 4096,
) -> list[float]:
    """The accuracies of `scores`."""
    found = scores(
        supernet,
        genotypes,
        task,
        calibration=calibration,
        seed=seed,
        images=images,
    )
    return [score.accuracy for score in found]


def scores(
    supernet: Supernet,
    genotypes: Sequence[Genotype],
    task: Task,
    *,
    calibration: int = 1024,
    seed: int,
    images: int = 4096,
) -> list[Score]:
    """How well architectures do on the validation images by shared weights, batch-norm re-estimated for each.

    calibration: training images, drawn by `seed`, that the statistics are taken of in one batch.
    images: how many pass at the same time, counted once for each architecture; architectures, and then the
      images that are measured, are taken in portions accordingly. Halved where memory runs out, down to the
      calibration of one architecture.
    """
    if calibration < 2:
        raise ConfigError(f"calibration is {calibration}, but batch statistics need at least 2 images")
    split = task.val
    device = task.train.x.device
    count = min(calibration, len(task.train))
    order = torch.randperm(len(task.train), generator=torch_rng(seed, "batchnorm", "order"))[:count].to(
        device
    )
    leading = task.normalise(task.train.x[order])
    found: list[Score] = []
    with evaluating(supernet), torch.no_grad():
        while len(found) < len(genotypes):
            together = max(1, images // (count + min(len(split), count)))
            some = genotypes[len(found) : len(found) + together]
            try:
                with memory_errors(f"running {len(some)} architectures at once"):
                    found += _portion(supernet, some, task, split, leading=leading, images=images)
            except TrialError as error:
                if error.reason != "oom" or images <= count:
                    raise
                images = max(images // 2, count)
            else:
                continue
            devices.release()  # outside of the handler: what failed is kept alive by its traceback
    return found


def _portion(
    supernet: Supernet,
    genotypes: Sequence[Genotype],
    task: Task,
    split: Split,
    *,
    leading: Tensor,
    images: int,
) -> list[Score]:
    """Architectures that fit together, over all images."""
    columns = zip(*genotypes, strict=True)
    paths = {d.name: Many(tuple(c)) for d, c in zip(supernet.space.decisions, columns, strict=True)}
    for genotype in genotypes:
        supernet.space.check(genotype)
    groups = len(genotypes)
    hits, losses = torch.zeros(groups, device=leading.device), torch.zeros(groups, device=leading.device)
    with _grouped(supernet) as groups_of:

        def logits_of(x: Tensor, lead: int = 0) -> Tensor:
            """Of each image and group, `[images, groups, classes]`."""
            batch = torch.cat([leading, task.normalise(x)]) if lead else task.normalise(x)
            groups_of.begin(size=len(batch), lead=lead)
            with precision(batch.device):
                logits = supernet.mix(to_layout(batch.repeat(groups, 1, 1, 1)), paths).float()
            return logits.view(groups, len(batch), -1)[:, lead:].transpose(0, 1)

        at, lead, size = 0, len(leading), max(1, images // groups)
        while at < len(split):
            x, y = (of[at : at + max(1, size - lead)] for of in (split.x, split.y))
            logits = logits_of(x, lead).transpose(0, 1)
            hits += (logits.argmax(2) == y).sum(1)
            losses += torch.stack([F.cross_entropy(rows, y, reduction="sum") for rows in logits])
            at, lead = at + len(x), 0
    shares = zip((hits / len(split)).tolist(), (losses / len(split)).tolist(), strict=True)
    return [Score(accuracy, loss) for accuracy, loss in shares]


@dataclass
class _Groups:
    """How a batch is divided: equal groups of `size` images, whose first `lead` give the statistics.

    Without any, the statistics of the batch before are used, in the order in which layers ask for them.
    """

    size: int = 0
    lead: int = 0
    known: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    asked: int = 0

    def begin(self, *, size: int, lead: int) -> None:
        self.size, self.lead, self.asked = size, lead, 0
        if lead:
            self.known.clear()

    def normalise(self, norm: _BatchNorm, x: Tensor) -> Tensor:
        """`[G * size, C, ...]`, each group by the mean and (biased) variance of its leading images."""
        grouped = x.view(-1, self.size, *x.shape[1:])
        if self.lead:
            over = [1, *range(3, grouped.dim())]
            var, mean = torch.var_mean(grouped[:, : self.lead].float(), dim=over, correction=0, keepdim=True)
            self.known.append((mean, (var + norm.eps).rsqrt()))
        mean, scale = self.known[self.asked]
        self.asked += 1
        out = ((grouped - mean) * scale).flatten(0, 1)
        if norm.weight is not None:
            shape = (1, -1, *[1] * (x.dim() - 2))
            out = out * norm.weight.view(shape) + norm.bias.view(shape)
        return out.to(x.dtype)


@contextmanager
def _grouped(supernet: Supernet) -> Iterator[_Groups]:
    """Inside this block the batch-norm layers of the supernet normalise group by group."""
    groups = _Groups()
    norms = [
        module for module in supernet.modules() if isinstance(module, _BatchNorm) and _normalises(module)
    ]
    for norm in norms:
        norm.forward = partial(groups.normalise, norm)  # type: ignore[method-assign]
    try:
        yield groups
    finally:
        for norm in norms:
            del norm.forward


def _normalises(norm: _BatchNorm) -> bool:
    return norm.active if isinstance(norm, MixtureNorm) else True
