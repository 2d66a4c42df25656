"""Few-shot NAS: a supernet is split where its architectures disagree most, its parts are trained apart."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nas.data.task import Task
from nas.errors import ConfigError
from nas.oneshot.path_training import Sharing, train_shared
from nas.oneshot.supernet import Supernet, in_training, kept
from nas.seeding import derive, rng, torch_rng
from nas.space.space import Space
from nas.training.checkpoint import Checkpoints
from nas.training.ddp import ALONE, Team
from nas.training.optimizer import flat, gradients
from nas.training.recipe import Recipe, compressed
from nas.training.train import EpochReport
from nas.types import Genotype

PATHS, BATCH = 2, 64
"""Architectures and images that the gradients of options are taken of."""


@dataclass(frozen=True, eq=False)
class Shared:
    """Trained shared weights: one supernet, or one for each combination of options of the split decisions.

    split: the split decisions, by position. supernets: by the options of these.
    seconds: what their training took.
    """

    split: tuple[int, ...]
    supernets: dict[tuple[int, ...], Supernet]
    seconds: float

    def of(self, genotype: Genotype) -> Supernet:
        """The supernet that an architecture's weights are in."""
        return self.supernets[tuple(genotype[i] for i in self.split)]


def train(
    supernet: Supernet,
    task: Task,
    recipe: Recipe,
    sharing: Sharing,
    *,
    seed: int,
    checkpoints: Callable[[str], Checkpoints] | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    stop: Callable[[], bool] | None = None,
    team: Team = ALONE,
) -> Shared:
    """Trains a supernet as `sharing` says; with splits, in as many epochs in all as without.

    Zhao et al., ICML 2021: after half of the epochs the supernet is copied once for each option of the chosen
    decisions, and every copy goes on with architectures of that option. Deviations: the copies share the
    second half of the epochs among them, at least one each and from half the learning rate on, where the
    paper trains them until they converge; the decisions are chosen by gradients (`disagreement`) and not at
    random.

    checkpoints: where each part saves its state, by name.
    team: see `nas.training.train.train`.
    """

    def store(name: str) -> Checkpoints | None:
        return checkpoints(name) if checkpoints is not None else None

    if sharing.splits:
        check_split(supernet.space, sharing.splits)
    sampling = sharing.sampler
    common = recipe if not sharing.splits else compressed(recipe, max(1, -(-recipe.epochs // 2)))
    curve = train_shared(
        supernet,
        task,
        common,
        seed=seed,
        sampling=sampling,
        checkpoints=store("supernet"),
        on_epoch=on_epoch,
        stop=stop,
        team=team,
    )
    seconds = sum(curve.seconds)
    if not sharing.splits:
        return Shared((), {(): supernet}, seconds)
    split = _same_for_all(team, lambda: choose_split(supernet, task, sharing.splits, seed=seed))
    options = [range(len(supernet.space.decisions[i].options)) for i in split]
    combinations = list(itertools.product(*options))
    epochs = max(1, (recipe.epochs - common.epochs) // len(combinations))
    apart = replace(
        compressed(recipe, epochs),
        lr=recipe.lr / 2,
        lr_min=min(recipe.lr_min, recipe.lr / 2),
        warmup_epochs=0.0,
    )
    parts = {}
    for number, chosen in enumerate(combinations):
        name = "part-" + "-".join(f"{i}.{o}" for i, o in zip(split, chosen, strict=True))
        part = copy.deepcopy(supernet)
        curve = train_shared(
            part,
            task,
            apart,
            seed=derive(seed, "part", number),
            sampling=sampling,
            within=_forcing(supernet.space, split, chosen),
            checkpoints=store(name),
            on_epoch=on_epoch,
            stop=stop,
            team=team,
        )
        seconds += sum(curve.seconds)
        parts[chosen] = part
    return Shared(split, parts, seconds)


def _same_for_all(team: Team, choose: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
    """What rank 0 chooses."""
    own = choose() if team.leads else ()
    handed = team.handed(lambda: {"split": list(own)})
    return own if handed is None else tuple(handed["split"])


def check_split(space: Space, count: int) -> None:
    """Raises ConfigError unless a supernet of this space can be split by so many decisions."""
    if not space.is_free:
        raise ConfigError(
            f"space {space.name!r}: a supernet is split by one option after the other of a decision, but "
            "this space forbids some combinations; set sharing.splits to 0"
        )
    if count > len(space.decisions):
        raise ConfigError(
            f"sharing: splits is {count}, but space {space.name!r} has {len(space.decisions)} decisions"
        )


def choose_split(supernet: Supernet, task: Task, count: int, *, seed: int) -> tuple[int, ...]:
    """The decisions, by position, whose options want the shared weights moved most differently."""
    space = supernet.space
    check_split(space, count)
    scores = [disagreement(supernet, task, i, seed=seed) for i in range(len(space.decisions))]
    return tuple(sorted(int(i) for i in np.argsort([-s for s in scores], kind="stable")[:count]))


def disagreement(supernet: Supernet, task: Task, decision: int, *, seed: int) -> float:
    """How differently the options of a decision want shared weights moved: 1 - mean cosine, in [0, 2].

    Gradient matching, Hu et al., ICLR 2022 (GM-NAS), §4. The gradient of an option is the mean over a few
    random architectures with it, the same for all options, on one batch of training images. Deviation: it
    chooses decisions only, every option of which gets a supernet, as in few-shot NAS; there options that
    match share one.
    """
    space, mixed = (
        supernet.space,
        [m for m in supernet.mixed() if m.decision == supernet.space.decisions[decision].name],
    )
    own = {p for m in mixed for p in m.parameters()}
    weights = [p for p in supernet.weights() if p not in own]
    draw = rng(seed, "disagreement", decision)
    bases = [space.sample(draw) for _ in range(PATHS)]
    order = torch.randperm(len(task.train), generator=torch_rng(seed, "disagreement"))[:BATCH]
    index = order.to(task.train.x.device)
    x, y = task.normalise(task.train.x[index]), task.train.y[index]
    found = []
    for option in range(len(space.decisions[decision].options)):
        architectures = [(*base[:decision], option, *base[decision + 1 :]) for base in bases]
        found.append(_gradient(supernet, architectures, weights, x, y))
    pairs = [F.cosine_similarity(a, b, dim=0).item() for a, b in itertools.combinations(found, 2)]
    return 1 - float(np.mean(pairs)) if pairs else 0.0


def _gradient(
    supernet: Supernet, architectures: Sequence[Genotype], weights: Sequence[Tensor], x: Tensor, y: Tensor
) -> Tensor:
    with kept(supernet.network.buffers()), in_training(supernet):
        loss = torch.stack([F.cross_entropy(supernet(x, a).float(), y) for a in architectures]).mean()
        return flat(gradients(loss, weights))


def _forcing(space: Space, split: Sequence[int], chosen: Sequence[int]) -> Callable[[Genotype], Genotype]:
    def force(genotype: Genotype) -> Genotype:
        scores = space.one_hot(genotype)
        for i, option in zip(split, chosen, strict=True):
            scores[i] = np.eye(len(scores[i]))[option]
        return space.nearest(scores)

    return force
