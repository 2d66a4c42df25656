"""What a search would face: how large a space is, what its networks cost on a task, and what looks wrong."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from nas.data.task import Task, first_of
from nas.errors import SpaceError, TrialError
from nas.oneshot.supernet import Supernet
from nas.seeding import isolated, rng
from nas.space.cost import Cost, cost, count_params
from nas.space.graph import architecture_hash
from nas.space.space import Size, Space
from nas.testing import Probe, Probing, blaming, check_listing, check_space, options_of, variants
from nas.training.evaluate import evaluate
from nas.training.loop import Loop
from nas.training.memory_estimate import memory_bytes
from nas.training.recipe import compressed, preset
from nas.types import Decision, Genotype

CHECKED, CHECK_BATCH = 3, 4
BATCH, STEPS = 64, 3
SHOWN, SHOWN_MACS, VALIDATED = 100, 3e10, 1000
"""Steps and multiply-accumulates that the default may show itself in, and on how many images."""
PARAMETER_SHARE, BATCH_SHARE = 0.1, 0.5
TRAINING_COPIES = 3
"""Of the parameters: themselves, their gradients and the momentum."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How one cost varies over the sampled architectures."""

    least: int
    median: int
    most: int


@dataclass(frozen=True, slots=True)
class Report:
    """What `validate` found.

    samples: number of random architectures behind `params`, `macs` (of one image) and `activation_bytes`
      (kept for the backward pass of one image).
    batch: images per training step of the median network, to which `step_s` and `step_bytes` belong.
    step_s, epoch_s: measured seconds of one training step, and those of a whole epoch that follow from it.
    step_bytes: estimated memory of parameters, gradients, momentum and activations.
    supernet_params: number of shared weights; None where there is no supernet, and `no_supernet` says why.
    default: what a search is held against, in words; default_named: whether the author has named it.
    default_acc, random_acc: validation accuracies of the default and of the median network after as many
      `steps`.
    warnings: what is allowed but probably not meant, one finding each.
    """

    space: str
    task: str
    device: str
    size: Size
    decisions: tuple[Decision, ...]
    samples: int
    params: Spread
    macs: Spread
    activation_bytes: Spread
    batch: int
    step_s: float
    step_bytes: int
    epoch_s: float
    supernet_params: int | None
    no_supernet: str
    default: Mapping[str, str]
    default_named: bool
    default_acc: float
    random_acc: float
    steps: int
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """The findings as text for a terminal."""
        hint = [] if self.default_named else [("", "all last options; Space(default=...) names a better one")]
        rows = [
            ("space", f"{self.space}, on {self.task}: every check passed"),
            ("size", f"{self.size} architectures"),
            *(("decisions", text) for text in _groups(self.decisions)),
            ("sampled", f"{self.samples} random architectures: least, median, most"),
            ("parameters", _row(self.params)),
            ("MACs", f"{_row(self.macs)} for one image"),
            ("activations", f"{_row(self.activation_bytes)} bytes for one training image"),
            ("step", f"{1e3 * self.step_s:.3g} ms for {self.batch} images on {self.device}, median network"),
            ("epoch", f"about {self.epoch_s:.3g} s"),
            ("memory", f"about {_short(self.step_bytes)} bytes for that step"),
            ("supernet", self.no_supernet or f"{_short(self.supernet_params or 0)} parameters"),
            ("default", ", ".join(f"{name} {option}" for name, option in self.default.items())),
            ("", f"accuracy {self.default_acc:.3f} after {self.steps} steps, median {self.random_acc:.3f}"),
            *hint,
            *(("warning", text) for text in self.warnings),
        ]
        return [f"{name:<12} {text}" for name, text in rows]

    def to_dict(self) -> dict[str, object]:
        """The findings as plain values for JSON."""
        return asdict(self)


def validate(space: Space, task: Task, *, samples: int = 50, seed: int = 0) -> Report:
    """Checks that `space` can be searched on `task`, and measures what that would take on the task's device.

    samples: number of random architectures to count the costs of, at least 1.

    Raises:
        SpaceError: when a promise is broken, a network does not fit the task's classes, or is too large for
          the device; that is found out before anything is allocated.
        TrialError: when costs cannot be counted.
    """
    check_listing(space)
    draw = rng(seed, "validate")
    genotypes = [space.sample(draw) for _ in range(samples)]
    warnings = [*_check_parameters(space, genotypes, task), *_size_warnings(space, genotypes)]
    x = task.normalise(task.train.x[:CHECK_BATCH])
    costs = _costs(space, genotypes, task, x)
    batch = _affordable_batch(space, costs, task)
    check_space(space, x, samples=CHECKED, seed=seed)
    with blaming(space), isolated(seed, "validate"):
        warnings += _output_warnings(space.network(genotypes[0]).to(x.device), x)
        warnings += _idle_warnings(space, genotypes[:CHECKED], x)
    median = sorted(range(samples), key=lambda i: costs[i].macs)[samples // 2]
    with blaming(space, f" on task {task.name!r} of {task.num_classes} classes"):
        # A backward pass takes two forward ones. Counted and not timed, so that a busy machine says the same.
        steps = max(1 + STEPS, min(SHOWN, int(SHOWN_MACS / (3 * batch * max(1, costs[median].macs)))))
        train = partial(_trained_for_a_moment, space, task=task, batch=batch, seed=seed, steps=steps)
        (_, default_acc), (step_s, random_acc) = map(train, (space.default_genotype, genotypes[median]))
    supernet_params, no_supernet = _supernet(space)
    if batch < min(BATCH, len(task.train)):
        warnings.append(f"a batch of more than {batch} images takes over half of the device's memory")
    return Report(
        space=space.name,
        task=task.name,
        device=str(task.train.x.device),
        size=space.size,
        decisions=space.decisions,
        samples=samples,
        params=_spread(c.params for c in costs),
        macs=_spread(c.macs for c in costs),
        activation_bytes=_spread(c.activation_bytes for c in costs),
        batch=batch,
        step_s=step_s,
        step_bytes=_step_bytes(costs[median], batch),
        epoch_s=step_s * (len(task.train) // batch),
        supernet_params=supernet_params,
        no_supernet=no_supernet,
        default=space.asked(space.default_genotype),
        default_named=space.default is not None,
        default_acc=default_acc,
        random_acc=random_acc,
        steps=steps,
        warnings=tuple(warnings),
    )


# -- before anything is allocated ---------------------------------------------------------------------


def _check_parameters(space: Space, genotypes: Sequence[Genotype], task: Task) -> list[str]:
    """Refuses what is too large to be built even once; returns what looks like a slip of the pen."""
    valued = not all(d.mixable for d in space.decisions)
    alike: dict[str, None] = {}
    for genotype in dict.fromkeys([*variants(space), *(genotypes if valued else [])]):
        choices = space.choices(genotype)
        with blaming(space), torch.device("meta"):
            network = space.build(Probing(choices, {}))
        for probe in (m for m in network.modules() if isinstance(m, Probe)):
            for option, op in zip(probe.options, probe.ops, strict=True):
                _check_bytes(space, f"decision {probe.decision!r}, option {option!r}", op, task)
            alike |= dict.fromkeys(_look_alikes(probe))
        values = {d.name: choices[d.name] for d in space.decisions if not d.mixable}
        _check_bytes(space, f"all candidates together{f' at {values}' if values else ''}", network, task)
    return list(alike)


def _check_bytes(space: Space, what: str, module: nn.Module, task: Task) -> None:
    tensors = [*module.parameters(), *module.buffers()]
    needed, memory = sum(t.nbytes for t in tensors), memory_bytes(task.train.x.device)
    if needed > PARAMETER_SHARE * memory:
        raise SpaceError(
            f"space {space.name!r}, {what}: {_short(sum(t.numel() for t in tensors))} parameters take "
            f"{_short(needed)} bytes, more than {PARAMETER_SHARE:.0%} of the {_short(memory)} bytes of "
            f"{task.train.x.device}; make it narrower"
        )


def _look_alikes(probe: Probe) -> list[str]:
    first: dict[str, str] = {}
    found = []
    for option, op in zip(probe.options, probe.ops, strict=True):
        other = first.setdefault(repr(op), option)
        if other != option:
            found.append(
                f"decision {probe.decision!r}: options {other!r} and {option!r} build modules that look "
                "the same; does a lambda in a loop see only the last value?"
            )
    return found


def _costs(space: Space, genotypes: Sequence[Genotype], task: Task, x: Tensor) -> list[Cost]:
    try:
        return [cost(space, genotype, task.image_shape) for genotype in genotypes]
    except TrialError:
        check_space(space, x, samples=CHECKED)  # It says which option is to blame, where one alone is.
        raise


def _affordable_batch(space: Space, costs: Sequence[Cost], task: Task) -> int:
    """The largest halving of `BATCH` with which every sampled network can take a training step."""
    memory = BATCH_SHARE * memory_bytes(task.train.x.device)
    batch = min(BATCH, len(task.train))
    while max(_step_bytes(c, batch) for c in costs) > memory:
        batch //= 2
        if batch < CHECK_BATCH:
            needed = max(_step_bytes(c, CHECK_BATCH) for c in costs)
            raise SpaceError(
                f"space {space.name!r}: a training step of {CHECK_BATCH} images takes "
                f"{_short(needed)} bytes, more than half of the memory of {task.train.x.device}; "
                "make its feature maps smaller"
            )
    return batch


def _step_bytes(counted: Cost, batch: int) -> int:
    return 4 * TRAINING_COPIES * counted.params + batch * counted.activation_bytes


def _supernet(space: Space) -> tuple[int | None, str]:
    try:
        with torch.device("meta"):
            return count_params(Supernet(space).network), ""
    except SpaceError as error:
        return None, str(error)


def _output_warnings(network: nn.Module, x: Tensor) -> list[str]:
    """What the loss, which takes logits, would make little of."""
    with torch.no_grad():
        y: Tensor = network.eval()(x)
    if (y < 0).any() or not torch.allclose(y.sum(1), torch.ones(len(y), device=y.device), atol=1e-4):
        return []
    return [
        "the networks give probabilities, but the loss takes logits and learns little from these; leave "
        "the softmax out"
    ]


def _idle_warnings(space: Space, genotypes: Sequence[Genotype], x: Tensor) -> list[str]:
    """Which values change nothing: all their options give networks that answer the same, to the bit.

    In training, and with the same random numbers, so that what is dropped at random counts.
    """

    def answer(genotype: Genotype) -> Tensor:
        with isolated(0, "validate"), torch.no_grad():
            found: Tensor = space.network(genotype).to(x.device)(x)
        return found

    def alike(row: Sequence[Genotype]) -> bool:
        first = answer(row[0])
        return all(torch.equal(first, answer(other)) for other in row[1:])

    found = []
    for i, decision in enumerate(space.decisions):
        if decision.mixable:
            continue
        rows = [row for genotype in genotypes if len(row := options_of(space, genotype, i)) > 1]
        if rows and all(map(alike, rows)):
            found.append(
                f"decision {decision.name!r} changes nothing: networks with {' and '.join(decision.options)} "
                "answer alike; let build use what the chooser returns, or do not ask"
            )
    return found


def _size_warnings(space: Space, genotypes: Sequence[Genotype]) -> list[str]:
    different = set(genotypes)
    graphs = {architecture_hash(space, genotype) for genotype in different}
    found = []
    if space.size.count == 1:
        found.append("the space holds a single architecture, so there is nothing to search")
    elif space.size.count < len(genotypes):
        found.append(f"the space holds only {space.size} architectures; a longer search ends early")
    if len(graphs) < 0.9 * len(different):
        found.append(
            f"{len(different)} sampled architectures are only {len(graphs)} different graphs; "
            "many architectures are one and the same network"
        )
    return found


# -- measuring and telling ----------------------------------------------------------------------------


def _trained_for_a_moment(
    space: Space, genotype: Genotype, task: Task, *, batch: int, seed: int, steps: int
) -> tuple[float, float]:
    """The median seconds of a step by the recipe `quick`, but for the first, and the accuracy in the end."""
    device = task.train.x.device
    epochs = -(-steps * batch // len(task.train))
    recipe, times = replace(compressed(preset("quick"), epochs), batch=batch), list[float]()
    with isolated(seed, "validate"):
        network = space.network(genotype).to(device)
        loop = Loop(network, task, recipe, seed=seed, split=task.train)
        for _ in range(steps):
            start = time.perf_counter()
            loop.advance()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
        loop.settle()
        return float(np.median(times[1:])), evaluate(network, task, first_of(task.val, VALIDATED))[1]


def _spread(values: Iterable[int]) -> Spread:
    ordered = sorted(values)
    return Spread(ordered[0], ordered[len(ordered) // 2], ordered[-1])


def _groups(decisions: Sequence[Decision]) -> list[str]:
    """The decisions that share their options, in one line each."""
    names: dict[tuple[str, ...], list[str]] = {}
    for d in decisions:
        names.setdefault(d.options, []).append(d.name)
    return [
        f"{len(same)} with {len(options)} options ({', '.join(options)}): "
        + (", ".join(same) if len(same) <= 6 else f"{same[0]} to {same[-1]}")
        for options, same in names.items()
    ]


def _row(spread: Spread) -> str:
    return ", ".join(map(_short, (spread.least, spread.median, spread.most)))


def _short(number: float) -> str:
    """A count with a unit of thousands: `12.3 k`, `1.93 M`."""
    for unit in ("", " k", " M", " G", " T"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} P"
