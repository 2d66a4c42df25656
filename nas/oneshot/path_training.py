"""Shared weights: a supernet trained along the paths of drawn architectures, or split where these disagree.

`train_shared` trains one supernet. `train_split` does that, or few-shot NAS: after half of the epochs the
supernet is split by the options of some decisions, and its parts are trained apart.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nas.data.task import Task
from nas.errors import ConfigError, unknown
from nas.oneshot.expected_cost import option_costs
from nas.oneshot.supernet import Supernet, in_training, preserving
from nas.seeding import derive, rng, torch_rng
from nas.space.space import Space
from nas.training.checkpoint import Checkpoints
from nas.training.ddp import ALONE, Team
from nas.training.evaluate import Batch
from nas.training.loop import Loop, criterion
from nas.training.optimizer import flat, gradients
from nas.training.recipe import Recipe, compressed, precision
from nas.training.train import Curve, EpochReport, train
from nas.types import Genotype

PATHS, BATCH = 2, 64
"""Architectures and images that the gradients of options are taken of, to find what to split."""


# -- which paths a step trains ----------------------------------------------------------------------------

Draw = Callable[[Space, np.random.Generator, Sequence[int]], list[Genotype]]
"""The architectures whose gradients are averaged in one step, equally many in each."""


def uniform(space: Space, rng: np.random.Generator, image_shape: Sequence[int]) -> list[Genotype]:  # noqa: ARG001
    """One architecture (Guo et al., ECCV 2020, SPOS, §3.2).

    Deviation: the architecture is drawn by the space, so that only valid ones are.
    """
    return [space.sample(rng)]


def strictly_fair(
    space: Space,
    rng: np.random.Generator,
    image_shape: Sequence[int],  # noqa: ARG001
) -> list[Genotype]:
    """As many architectures as a decision has options, each option in one (Chu et al., ICCV 2021, FairNAS).

    Deviations: the gradients of a step are averaged, where the paper adds them up, so that its learning rate
    is that many times ours, and one fits every sampling. Where decisions differ in size, one with fewer
    options than the largest has each of them equally often over the steps, drawn in blocks without repeats;
    the paper's all have as many.

    Raises:
        ConfigError: unless every combination of options is valid.
    """
    if not space.is_free:
        raise ConfigError(
            f"space {space.name!r}: strict fairness trains every option equally often, but this space "
            "forbids some combinations; use sampling uniform"
        )
    counts = [len(d.options) for d in space.decisions]
    most = max(counts)
    columns = [
        np.concatenate([rng.permutation(count) for _ in range(-(-most // count))])[:most] for count in counts
    ]
    return [tuple(int(column[i]) for column in columns) for i in range(most)]


def sandwich(
    space: Space, rng: np.random.Generator, image_shape: Sequence[int], *, random: int = 2
) -> list[Genotype]:
    """The largest architecture, the smallest, and some at random (Yu & Huang, ICCV 2019, §4.1), in turn.

    random: how many. The others learn from the largest one's predictions, not from labels (in-place
    distillation, §4.2). Size is multiply-accumulates; the extremes take the most and the fewest that each
    decision alone can make. Deviation: gradients are averaged, where the paper adds them up, so that one
    learning rate fits every sampling.
    """
    key = ("extremes", tuple(image_shape))
    if key not in space.memo:
        _, costs = option_costs(space, image_shape, "macs")
        rows = [np.array(row) for row in costs]
        space.memo[key] = [space.nearest(rows), space.nearest([-row for row in rows])]
    return [*space.memo[key], *(space.sample(rng) for _ in range(random))]


SAMPLINGS: Mapping[str, Draw] = {"uniform": uniform, "fair": strictly_fair, "sandwich": sandwich}
"""Every sampling by the name that a user types."""


# -- one supernet -----------------------------------------------------------------------------------------


def train_shared(
    supernet: Supernet,
    task: Task,
    recipe: Recipe,
    *,
    seed: int,
    sampling: str = "uniform",
    within: Callable[[Genotype], Genotype] | None = None,
    checkpoints: Checkpoints | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    stop: Callable[[], bool] | None = None,
    team: Team = ALONE,
) -> Curve:
    """Trains the shared weights of `supernet` in place.

    Step s draws architectures as (seed, s) says, one after the other computes the gradients of their paths,
    and then moves the weights once by the mean. A path computes the chosen operations only; what is on no
    path has no gradient, and rests.

    sampling: one of `SAMPLINGS`. within: turns a drawn architecture into one that may be trained.
    team: see `nas.training.train.train`; its ranks train the same paths.
    """

    def path_gradients(loop: Loop, batch: Batch) -> Tensor:
        paths = SAMPLINGS[sampling](supernet.space, rng(seed, "path", loop.step), task.image_shape)
        if within is not None:
            paths = [within(genotype) for genotype in paths]
        return _path_gradients(supernet, loop, batch, paths, distils=sampling == "sandwich")

    return train(
        supernet.network,
        task,
        recipe,
        seed=seed,
        checkpoints=checkpoints,
        on_epoch=on_epoch,
        gradients=path_gradients,
        stop=stop,
        team=team,
    )


def _path_gradients(
    supernet: Supernet, loop: Loop, batch: Batch, paths: Sequence[Genotype], *, distils: bool
) -> Tensor:
    """Puts the mean gradient of the paths in place, one of which is in memory at a time; the mean loss.

    distils: whether the first architecture teaches the others.
    """
    x, targets = batch
    loop.team.agree(f"train, step {loop.step}", paths)
    loop.team.apart(loop.seed_of_step)
    losses: list[Tensor] = []
    teacher: Tensor | None = None
    for genotype in paths:
        with precision(loop.device, loop.recipe.precision):
            logits = supernet(x, genotype)
        if teacher is None:
            loss = criterion(logits, targets, loop.recipe, loop.task, network=supernet)
        else:
            loss = F.cross_entropy(logits.float(), teacher)
        (loss / len(paths)).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        if distils and teacher is None:
            teacher = logits.detach().float().softmax(-1)
    return sum(losses[1:], losses[0]) / len(paths)


# -- one supernet, or several -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Sharing:
    """How the weights of a supernet are trained and used.

    sampling: `uniform`, `fair` or `sandwich`.
    splits: decisions that the supernet is split by after half of the epochs; every option then has a supernet
      of its own (few-shot NAS, Zhao et al., ICML 2021), see `train_split`.
    calibration: training images that batch-norm statistics are taken of for each architecture.
    """

    sampling: str = "uniform"
    splits: int = 0
    calibration: int = 1024

    def __post_init__(self) -> None:
        if self.sampling not in SAMPLINGS:
            raise ConfigError(f"sharing: {unknown('sampling', self.sampling, SAMPLINGS)}")
        if self.splits < 0 or self.calibration < 2:
            raise ConfigError(
                f"sharing: splits is {self.splits} and calibration {self.calibration}; wanted at least 0 and "
                "2"
            )


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


def train_split(
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
    space = supernet.space
    run = partial(train_shared, task=task, sampling=sharing.sampling, on_epoch=on_epoch, stop=stop, team=team)

    def saved(name: str) -> Checkpoints | None:
        return checkpoints(name) if checkpoints is not None else None

    if not sharing.splits:
        curve = run(supernet, recipe=recipe, seed=seed, checkpoints=saved("supernet"))
        return Shared((), {(): supernet}, sum(curve.seconds))
    check_split(space, sharing.splits)
    common = compressed(recipe, max(1, -(-recipe.epochs // 2)))
    seconds = sum(run(supernet, recipe=common, seed=seed, checkpoints=saved("supernet")).seconds)
    split = choose_split(supernet, task, sharing.splits, seed=seed) if team.leads else ()
    if (handed := team.handed(lambda: {"split": list(split)})) is not None:
        split = tuple(handed["split"])
    combinations = list(itertools.product(*(range(len(space.decisions[i].options)) for i in split)))
    apart = replace(
        compressed(recipe, max(1, (recipe.epochs - common.epochs) // len(combinations))),
        lr=recipe.lr / 2,
        lr_min=min(recipe.lr_min, recipe.lr / 2),
        warmup_epochs=0.0,
    )
    parts = {}
    for number, chosen in enumerate(combinations):
        name = "part-" + "-".join(f"{i}.{o}" for i, o in zip(split, chosen, strict=True))
        parts[chosen] = copy.deepcopy(supernet)
        curve = run(
            parts[chosen],
            recipe=apart,
            seed=derive(seed, "part", number),
            within=partial(_forced, space, dict(zip(split, chosen, strict=True))),
            checkpoints=saved(name),
        )
        seconds += sum(curve.seconds)
    return Shared(split, parts, seconds)


def _forced(space: Space, options: Mapping[int, int], genotype: Genotype) -> Genotype:
    """The valid architecture nearest to one with the given options of some decisions."""
    scores = space.one_hot(genotype)
    for i, option in options.items():
        scores[i] = np.eye(len(scores[i]))[option]
    return space.nearest(scores)


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
    check_split(supernet.space, count)
    scores = [disagreement(supernet, task, i, seed=seed) for i in range(len(supernet.space.decisions))]
    return tuple(sorted(int(i) for i in np.argsort([-s for s in scores], kind="stable")[:count]))


def disagreement(supernet: Supernet, task: Task, decision: int, *, seed: int) -> float:
    """How differently the options of a decision want shared weights moved: 1 - mean cosine, in [0, 2].

    Gradient matching, Hu et al., ICLR 2022 (GM-NAS), §4. The gradient of an option is the mean over a few
    random architectures with it, the same for all options, on one batch of training images. Deviation: it
    chooses decisions only, every option of which gets a supernet, as in few-shot NAS; there options that
    match share one.
    """
    space, name = supernet.space, supernet.space.decisions[decision].name
    own = {p for op in supernet.mixed_ops if op.decision == name for p in op.parameters()}
    weights = [p for p in supernet.network.parameters() if p not in own]
    draw = rng(seed, "disagreement", decision)
    bases = [space.sample(draw) for _ in range(PATHS)]
    order = torch.randperm(len(task.train), generator=torch_rng(seed, "disagreement"))[:BATCH]
    index = order.to(task.train.x.device)
    x, y = task.normalise(task.train.x[index]), task.train.y[index]
    found = []
    for option in range(len(space.decisions[decision].options)):
        architectures = [(*base[:decision], option, *base[decision + 1 :]) for base in bases]
        with preserving(supernet.network.buffers()), in_training(supernet):
            losses = [F.cross_entropy(supernet(x, a).float(), y) for a in architectures]
            found.append(flat(gradients(torch.stack(losses).mean(), weights)))
    pairs = [F.cosine_similarity(a, b, dim=0).item() for a, b in itertools.combinations(found, 2)]
    return 1 - float(np.mean(pairs)) if pairs else 0.0
