"""A memory budget for a differentiable search: what has to give so that a step fits, found by a probe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from nas.data.task import Task
from nas.errors import ConfigError, SpaceError, Stopped
from nas.oneshot.bilevel import Bilevel
from nas.oneshot.darts_step import stepping
from nas.oneshot.diagnostics import Examiner, curvature_images
from nas.oneshot.methods import Method
from nas.oneshot.progressive import supernet_of
from nas.oneshot.relaxations import GumbelHard
from nas.oneshot.stages import Stage, Whole
from nas.oneshot.supernet import Supernet
from nas.seeding import isolated
from nas.space.space import Space
from nas.training.memory_estimate import peak_memory
from nas.training.recipe import Precision

PROBES = (16, 32)
"""Images of the two probes; memory is a straight line in them."""
LEAST_BATCH = 16


@dataclass(frozen=True)
class Change:
    """What is changed of a method, all that a run must remember of it.

    parts: of the channels, see `nas.oneshot.stages.Whole`; 0 leaves them. one_at_a_time: sample operations.
    """

    batch: int
    precision: Precision = "auto"
    checkpointing: bool = False
    parts: int = 0
    one_at_a_time: bool = False

    def of(self, method: Method) -> Method:
        """The changed method; the weights' learning rate follows the batch (Goyal et al. 2017)."""
        lr = method.weights.lr * self.batch / method.weights.batch
        weights = dataclasses.replace(
            method.weights,
            batch=self.batch,
            lr=lr,
            lr_min=min(lr, method.weights.lr_min),
            precision=self.precision,
        )
        return dataclasses.replace(
            method,
            weights=weights,
            checkpointing=self.checkpointing,
            staging=Whole(self.parts) if self.parts else method.staging,
            relaxation=GumbelHard() if self.one_at_a_time else method.relaxation,
        )

    def words(self, method: Method) -> list[str]:
        """What differs, in words."""
        after = self.of(method)
        old, new = method.weights, after.weights
        return [
            *(
                [f"batch {old.batch} -> {new.batch}, learning rate {old.lr:g} -> {new.lr:g}"]
                * (new.batch < old.batch)
            ),
            *(["bfloat16"] * (new.precision != old.precision)),
            *(["checkpointing of cells"] * (after.checkpointing and not method.checkpointing)),
            *([f"1/{self.parts} of the channels"] * bool(self.parts)),
            *(["one sampled operation at a time"] * self.one_at_a_time),
        ]


@dataclass(frozen=True)
class Fit:
    """What makes a method fit, and how many bytes a step then needs, weights and optimizer included."""

    change: Change
    needed: int


def fit(
    space: Space,
    task: Task,
    method: Method,
    budget: int,
    *,
    ranks: int = 1,
    stop: Callable[[], bool] | None = None,
) -> Fit:
    """Changes a method as little as it takes to fit a step, but for the task's images, into `budget` bytes.

    In this order, each on top of the one before: a smaller batch (half, then a quarter, at least 16 images),
    bfloat16, checkpointing of cells, 1/2 and then 1/4 of the channels, one operation at a time.

    The eigenvalue that is taken after each epoch (`nas.oneshot.diagnostics`) has to fit, too.

    ranks: how many processes divide a batch among them; the budget is that of each.
    stop: asked before each variant is measured.

    Raises:
        Stopped: when `stop` said so.
        ConfigError: when nothing fits, with what the least demanding variant needs.
    """
    least: int | None = None
    for variant in _variants(method):
        if stop is not None and stop():
            raise Stopped("stopped while the memory of a step was measured")
        try:
            needs = Needs.probed(space, task, variant.of(method))
        except SpaceError:  # channels that cannot be divided, candidates that cannot be narrowed
            continue
        for batch in _batches(method.weights.batch, len(task.train)):
            needed = needs.bytes(-(-batch // ranks))
            least = needed if least is None else min(least, needed)
            if needed <= budget:
                reduced = batch < min(method.weights.batch, len(task.train))
                return Fit(dataclasses.replace(variant, batch=batch if reduced else variant.batch), needed)
    raise ConfigError(
        f"memory: a step of {method.name} needs at least {gib(least or 0)}, the budget is {gib(budget)}; "
        "raise it, or make the space narrower or shallower"
    )


def gib(size: int) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


@dataclass(frozen=True)
class Needs:
    """Bytes of a search by a method: of its steps, and of the eigenvalues between them."""

    step: _Line
    eigenvalue: _Line
    method: Method
    device: torch.device

    @classmethod
    def probed(cls, space: Space, task: Task, method: Method) -> Needs:
        """Measured on steps and eigenvalues of few images."""
        low, high = (_probe(space, task, method, images) for images in PROBES)
        steps, eigenvalues = zip(low, high, strict=True)
        return cls(_Line.through(*steps), _Line.through(*eigenvalues), method, task.train.x.device)

    def bytes(self, batch: int) -> int:
        """At a batch of so many images."""
        images = curvature_images(self.method, batch, self.device)
        return round(max(self.step.at(batch), self.eigenvalue.at(images)))


@dataclass(frozen=True)
class _Line:
    fixed: float
    per_image: float

    @classmethod
    def through(cls, low: int, high: int) -> _Line:
        per_image = max(0.0, (high - low) / (PROBES[1] - PROBES[0]))
        return cls(max(0.0, low - per_image * PROBES[0]), per_image)

    def at(self, images: int) -> float:
        return self.fixed + self.per_image * images


def _probe(space: Space, task: Task, method: Method, batch: int) -> tuple[int, int]:
    """Peak bytes of one step that moves alphas and weights, and of an eigenvalue, of so many images.

    Those of the stage that needs most, where stages differ in depth or channels.
    """
    stages = method.staging.stages(method.weights.epochs, max(len(d.options) for d in space.decisions))
    forms: dict[tuple[float, int], Stage] = {}
    for stage in stages:  # of equal stages the first one has the most options
        forms.setdefault((stage.depth, stage.parts), stage)
    found = [_probe_stage(space, task, method, stage, batch) for stage in forms.values()]
    steps, looks = zip(*found, strict=True)
    return max(steps), max(looks)


def _probe_stage(space: Space, task: Task, method: Method, stage: Stage, batch: int) -> tuple[int, int]:
    """The same of one stage, whose options are those with the most weights."""
    weights, device = dataclasses.replace(method.weights, batch=batch), task.train.x.device
    with isolated(0, "probe"):
        supernet = supernet_of(space, method, stage)
        supernet.keep(_heaviest(supernet, stage))
        probed = dataclasses.replace(method, weights=weights)
        state = Bilevel.begun(supernet.to(device).train(), task, probed, seed=0)
        with peak_memory(device) as step:
            stepping(state)()
        with peak_memory(device) as look:
            if method.learns_alphas:
                Examiner(iterations=2).eigenvalue(state, images=batch)
    kept = sum(t.numel() * t.element_size() for t in (*supernet.parameters(), *supernet.buffers()))
    weights_bytes = sum(p.numel() * p.element_size() for p in supernet.parameters())
    # From the second step on the momentum is there, and the gradients of the step before.
    fixed = kept + 2 * weights_bytes
    return step.bytes + fixed, look.bytes + fixed


def _heaviest(supernet: Supernet, stage: Stage) -> list[list[int]]:
    """For each decision, the options in the race that have the most weights, as many as a stage has."""
    places = {mixed.decision: mixed for mixed in supernet.mixed()}
    kept = []
    for decision, alive in zip(supernet.space.decisions, supernet.alive, strict=True):
        ops = places[decision.name].ops
        # What has no weights keeps the less for the backward pass, the fewer modules it is made of.
        sizes = {o: (sum(p.numel() for p in ops[o].parameters()), len(list(ops[o].modules()))) for o in alive}
        order = sorted(alive, key=lambda o, sizes=sizes: sizes[o], reverse=True)  # type: ignore[misc]
        kept.append(order[: stage.options(len(decision.options))])
    return kept


def _variants(method: Method) -> Iterator[Change]:
    now = Change(method.weights.batch, method.weights.precision, method.checkpointing)
    yield now
    if now.precision != "bfloat16":
        now = dataclasses.replace(now, precision="bfloat16")
        yield now
    if not now.checkpointing:
        now = dataclasses.replace(now, checkpointing=True)
        yield now
    if isinstance(method.staging, Whole):
        own = method.staging.parts
        yield from (dataclasses.replace(now, parts=parts) for parts in (2, 4) if parts > own)
    mixes = not (
        method.relaxation.one_at_a_time
        or method.update.on_simplex
        or method.perturbation is not None
        or method.freezing is not None
    )
    if mixes and method.learns_alphas:
        yield dataclasses.replace(now, one_at_a_time=True)


def _batches(wanted: int, images: int) -> list[int]:
    largest = min(wanted, images)
    return [b for b in (largest, largest // 2, largest // 4) if b >= min(LEAST_BATCH, largest)]
