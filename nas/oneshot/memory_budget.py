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
        own = method.weights
        lr = own.lr * self.batch / own.batch
        weights = replace(own, batch=self.batch, lr=lr, lr_min=min(lr, own.lr_min), precision=self.precision)
        return replace(
            method,
            weights=weights,
            checkpointing=self.checkpointing,
            staging=SingleStage(self.parts) if self.parts else method.staging,
            relaxation=GumbelHard() if self.samples_one_path else method.relaxation,
        )

    def words(self, method: Method) -> list[str]:
        """What differs, in words."""
        old, new = method.weights, self.of(method).weights
        said = {
            f"batch {old.batch} -> {new.batch}, learning rate {old.lr:g} -> {new.lr:g}": new.batch
            < old.batch,
            "bfloat16": new.precision != old.precision,
            "checkpointing of cells": self.checkpointing and not method.checkpointing,
            f"1/{self.parts} of the channels": bool(self.parts),
            "one sampled operation at a time": self.samples_one_path,
        }
        return [text for text, differs in said.items() if differs]


def fit(
    space: Space,
    task: Task,
    method: Method,
    budget: int,
    *,
    ranks: int = 1,
    stop: Callable[[], bool] | None = None,
) -> tuple[Change, int]:
    """The least change by which a step fits into `budget` bytes, the task's images aside, and what it needs.

    In this order, each on top of the one before: a smaller batch (half, then a quarter, at least 16 images),
    bfloat16, checkpointing of cells, 1/2 and then 1/4 of the channels, one operation at a time. The
    eigenvalue that is taken after each epoch (`nas.oneshot.diagnostics`) has to fit, too.

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
                return replace(variant, batch=batch) if batch < largest else variant, needed
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
    steps, looks = zip(*(_probe(space, task, method, images) for images in PROBES), strict=True)

    def at(images: int, low: int, high: int) -> float:
        per_image = max(0.0, (high - low) / (PROBES[1] - PROBES[0]))
        return max(0.0, low - per_image * PROBES[0]) + per_image * images

    def needs(batch: int) -> int:
        looked_at = curvature_images(method, batch, task.train.x.device)
        return round(max(at(batch, *steps), at(looked_at, *looks)))

    return needs


def _probe(space: Space, task: Task, method: Method, batch: int) -> tuple[int, int]:
    """Peak bytes of one step that moves alphas and weights, and of an eigenvalue, of so many images.

    Of the stage that needs most, with those options that have the most weights.
    """
    found = []
    with isolated(0, "probe"):
        search = Search(space, task, replace(method, weights=replace(method.weights, batch=batch)), seed=0)
        for number, stage in enumerate(search.stages):
            if (stage.depth, stage.parts) in [(s.depth, s.parts) for s in search.stages[:number]]:
                continue  # of stages of one form the first has the most options
            search.enter(number)
            supernet = search.supernet
            supernet.keep(_heaviest(supernet, stage))
            with peak_memory(search.loop.device) as step:
                search.advance()
            with peak_memory(search.loop.device) as look:
                if method.learns_alphas:
                    Examiner(iterations=2).eigenvalue(search, images=batch)
            weights = sum(p.numel() * p.element_size() for p in supernet.parameters())
            # From the second step on the momentum is there, and the gradients of the step before.
            fixed = 3 * weights + sum(b.numel() * b.element_size() for b in supernet.buffers())
            found.append((step.bytes + fixed, look.bytes + fixed))
    return max(step for step, _ in found), max(look for _, look in found)


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
    """What may be changed, each with what was changed before."""
    now = Change(method.weights.batch, method.weights.precision, method.checkpointing)
    yield now
    for name, value in {"precision": "bfloat16", "checkpointing": True}.items():
        if getattr(now, name) != value:
            now = replace(now, **{name: value})  # type: ignore[arg-type]
            yield now
    if isinstance(method.staging, SingleStage):
        yield from (replace(now, parts=parts) for parts in (2, 4) if parts > method.staging.parts)
    mixes = not (method.relaxation.samples_one_path or method.update.on_simplex)
    if mixes and method.perturbation is None and method.freezing is None and method.learns_alphas:
        yield replace(now, samples_one_path=True)
