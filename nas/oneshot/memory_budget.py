"""A memory budget for a differentiable search: what has to give so that a step fits, found by a probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from nas.data.task import Task
from nas.errors import ConfigError, SpaceError, Stopped
from nas.oneshot.diagnostics import Examiner, curvature_images
from nas.oneshot.methods import Method
from nas.oneshot.progressive import SearchStage, SingleStage
from nas.oneshot.relaxations import GumbelHard
from nas.oneshot.search import Search
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

    parts: of the channels, see `SingleStage`; 0 leaves them. samples_one_path: sample operations.
    """

    batch: int
    precision: Precision = "auto"
    checkpointing: bool = False
    parts: int = 0
    samples_one_path: bool = False

    def of(self, method: Method) -> Method:
        """The changed method; the weights' learning rate follows the batch (Goyal et al. 2017)."""
        weights = method.weights
        lr = weights.lr * self.batch / weights.batch
        return replace(
            method,
            weights=replace(
                weights,
                batch=self.batch,
                lr=lr,
                lr_min=min(lr, weights.lr_min),
                precision=self.precision,
            ),
            checkpointing=self.checkpointing,
            staging=SingleStage(self.parts) if self.parts else method.staging,
            relaxation=GumbelHard() if self.samples_one_path else method.relaxation,
        )

    def words(self, method: Method) -> list[str]:
        """What differs, in words."""
        after = self.of(method)
        old, new = method.weights, after.weights
        said = {
            f"batch {old.batch} -> {new.batch}, learning rate {old.lr:g} -> {new.lr:g}": new.batch
            < old.batch,
            "bfloat16": new.precision != old.precision,
            "checkpointing of cells": after.checkpointing and not method.checkpointing,
            f"1/{self.parts} of the channels": bool(self.parts),
            "one sampled operation at a time": self.samples_one_path,
        }
        return [text for text, differs in said.items() if differs]


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
    largest, least = min(method.weights.batch, len(task.train)), 0
    batches = [b for b in (largest, largest // 2, largest // 4) if b >= min(LEAST_BATCH, largest)]
    for variant in _variants(method):
        if stop is not None and stop():
            raise Stopped("stopped while the memory of a step was measured")
        try:
            needs = measured_needs(space, task, variant.of(method))
        except SpaceError:  # channels that cannot be divided, candidates that cannot be narrowed
            continue
        for batch in batches:
            needed = needs(-(-batch // ranks))
            least = min(least or needed, needed)
            if needed <= budget:
                return Fit(replace(variant, batch=batch) if batch < largest else variant, needed)
    raise ConfigError(
        f"memory: a step of {method.name} needs at least {gib(least)}, the budget is {gib(budget)}; "
        "raise it, or make the space narrower or shallower"
    )


def gib(size: int) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


def measured_needs(space: Space, task: Task, method: Method) -> Callable[[int], int]:
    """Bytes of a search by a method at a batch of so many images: of its steps, or of the eigenvalues.

    They follow from steps and eigenvalues of few images, which are measured.
    """
    low, high = (_probe(space, task, method, images) for images in PROBES)

    def at(images: int, kind: int) -> float:
        per_image = max(0.0, (high[kind] - low[kind]) / (PROBES[1] - PROBES[0]))
        return max(0.0, low[kind] - per_image * PROBES[0]) + per_image * images

    def needs(batch: int) -> int:
        return round(max(at(batch, 0), at(curvature_images(method, batch, task.train.x.device), 1)))

    return needs


def _probe(space: Space, task: Task, method: Method, batch: int) -> tuple[int, int]:
    """Peak bytes of one step that moves alphas and weights, and of an eigenvalue, of so many images.

    Those of the stage that needs most, where stages differ in depth or channels.
    """
    with isolated(0, "probe"):
        search = Search(space, task, replace(method, weights=replace(method.weights, batch=batch)), seed=0)
        forms: dict[tuple[float, int], int] = {}
        for number, stage in enumerate(search.stages):  # of equal stages the first one has the most options
            forms.setdefault((stage.depth, stage.parts), number)
        steps, looks = zip(*(_probe_stage(search, number, batch) for number in forms.values()), strict=True)
    return max(steps), max(looks)


def _probe_stage(search: Search, number: int, batch: int) -> tuple[int, int]:
    """The same of one stage, whose options are those with the most weights."""
    search.enter(number)
    supernet, device = search.supernet, search.loop.device
    supernet.keep(_heaviest(supernet, search.stages[number]))
    with peak_memory(device) as step:
        search.advance()
    with peak_memory(device) as look:
        if search.method.learns_alphas:
            Examiner(iterations=2).eigenvalue(search, images=batch)
    kept = sum(t.numel() * t.element_size() for t in (*supernet.parameters(), *supernet.buffers()))
    weights = sum(p.numel() * p.element_size() for p in supernet.parameters())
    # From the second step on the momentum is there, and the gradients of the step before.
    fixed = kept + 2 * weights
    return step.bytes + fixed, look.bytes + fixed


def _heaviest(supernet: Supernet, stage: SearchStage) -> list[list[int]]:
    """For each decision, the options in the race that have the most weights, as many as a stage has."""
    places = {mixed.decision: mixed for mixed in supernet.mixed_ops}
    kept = []
    for decision, alive in zip(supernet.space.decisions, supernet.alive, strict=True):
        ops = places[decision.name].ops
        # What has no weights keeps the less for the backward pass, the fewer modules it is made of.
        sizes = {o: (sum(p.numel() for p in ops[o].parameters()), len(list(ops[o].modules()))) for o in alive}
        order = sorted(alive, key=sizes.__getitem__, reverse=True)
        kept.append(order[: stage.options(len(decision.options))])
    return kept


def _variants(method: Method) -> Iterator[Change]:
    now = Change(method.weights.batch, method.weights.precision, method.checkpointing)
    yield now
    if now.precision != "bfloat16":
        now = replace(now, precision="bfloat16")
        yield now
    if not now.checkpointing:
        now = replace(now, checkpointing=True)
        yield now
    if isinstance(method.staging, SingleStage):
        own = method.staging.parts
        yield from (replace(now, parts=parts) for parts in (2, 4) if parts > own)
    mixes = not (
        method.relaxation.samples_one_path
        or method.update.on_simplex
        or method.perturbation is not None
        or method.freezing is not None
    )
    if mixes and method.learns_alphas:
        yield replace(now, samples_one_path=True)
