"""What is timed: steps of a search and of a training as the engine does them, on images of noise."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from nas.data.arrays import Array
from nas.oneshot.bilevel import BilevelLoop
from nas.oneshot.method import Method
from nas.oneshot.supernet import Supernet
from nas.seeding import isolated, rng
from nas.space import Space
from nas.speed.comparing import PATHS, Run, compare, paths_of, seconds_of
from nas.speed.floor import bytes_moved
from nas.task import Split, Task, task_from_arrays
from nas.training.arithmetic import to_layout
from nas.training.batches import Batches, policy_of
from nas.training.loop import Loop
from nas.training.recipe import Recipe

CLASSES = 10
ENDLESS = 10**6
"""Epochs of what is timed, so that no schedule ends."""
DRAWS = 20
"""How often the batches of a step are drawn to time that."""


@dataclass(frozen=True)
class Workload:
    """Steps that can be timed.

    network: what is trained. begin: makes the steps on a path of `PATHS`, all from the same start.
    drawn: what a step draws a batch of. alike: whether all steps compute the same operations.
    """

    network: nn.Module
    begin: Callable[[str], Run]
    drawn: Sequence[Batches]
    alike: bool = True

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.drawn[0].split.x.device


def noise(*, channels: int, side: int, images: int, device: torch.device) -> Task:
    """A task of square uint8 images, about so many to train on and as many to validate on.

    They are noise with a trace of their class, so that losses fall.
    """
    arrays = noisy(channels=channels, side=side, images=images).values()
    return task_from_arrays(*arrays, name="noise", device=device)


def noisy(*, channels: int, side: int, images: int) -> dict[str, Array]:
    """The arrays of that task, as an `.npz` file holds them for `npz:PATH`."""
    y = np.arange(2 * images) % CLASSES
    grey = rng(0, "noise").integers(0, 226, (2 * images, side, side, channels), dtype=np.uint8)
    x = grey + 3 * y[:, None, None, None].astype(np.uint8)
    return {"x_train": x, "y_train": y, "x_test": x[:CLASSES], "y_test": y[:CLASSES]}


def searching(space: Space, task: Task, method: Method) -> Workload:
    """Steps of a search: of the alphas on validation images, and of the weights on training images."""
    with isolated(0, "supernet"):
        supernet = Supernet(
            space,
            relaxation=method.relaxation,
            parts=method.staging.stages(1, 1)[0].parts,
            edge_norm=method.edge_norm,
        )
    supernet.to(task.train.x.device).train()

    def begin(path: str) -> Run:
        own, recipe = copy.deepcopy(supernet), _on(path, method.weights)
        steps = BilevelLoop(own, task, replace(method, weights=recipe), seed=0)
        return _run(steps.advance, steps.loop, path)

    drawn = [_batches(task, method.weights, split) for split in (task.train, task.val)]
    return Workload(supernet, begin, drawn, alike=not method.relaxation.one_at_a_time)


def training(network: nn.Module, task: Task, recipe: Recipe) -> Workload:
    """Steps of the training of a stand-alone network on the training images."""
    network.to(task.train.x.device).train()

    def begin(path: str) -> Run:
        own = copy.deepcopy(network)
        way = _on(path, recipe)
        loop = Loop(own, task, way, seed=0, split=task.train, forward=_forward, form=lambda: ())
        return _run(loop.advance, loop, path)

    return Workload(network, begin, [_batches(task, recipe, task.train)])


def measure(
    work: Workload,
    *,
    steps: int,
    bandwidth: float,
    also: Sequence[str] = (),
    only: Sequence[str] | None = None,
) -> dict[str, dict[str, float]]:
    """For each path that the device has, what `compare` tells of a step, and these.

    images_per_s: that are trained on. GiB: that a step has to move (see `nas.speed.floor`).
    floor_ms, floor_share: in which this could be moved, and which share of the step that is.
    input_ms, input_share: in which the batches are drawn, augmented and laid out; likewise.

    bandwidth: bytes a second that the device can move. also: more of `PATHS`. only: of those that the device
    has, if there are any among them.
    """
    device = work.device
    paths = [*(path for path in paths_of(device) if not only or path in only), *also]
    rows = compare({path: work.begin(path) for path in paths}, steps=steps, device=device)
    moved = bytes_of_a_step(work, steps)
    floor_ms, input_ms = 1e3 * moved / bandwidth, _input_ms(work)
    return {
        path: row
        | {
            "images_per_s": 1e3 * work.drawn[0].size / row["ms"],
            "GiB": moved / 2**30,
            "floor_ms": floor_ms,
            "floor_share": floor_ms / row["ms"],
            "input_ms": input_ms,
            "input_share": input_ms / row["ms"],
        }
        for path, row in rows.items()
    }


def bytes_of_a_step(work: Workload, steps: int) -> float:
    """What a step moves, or the mean of so many that differ; all paths draw the same operations."""
    plain = work.begin("plain")
    return statistics.mean(bytes_moved(plain.advance) for _ in range(1 if work.alike else steps))


def _input_ms(work: Workload) -> float:
    def draw(step: int) -> None:
        for batches in work.drawn:
            to_layout(batches.at(step)[0])

    draw(0)
    return 1e3 * statistics.median(seconds_of(partial(draw, 1 + i), work.device) for i in range(DRAWS))


def _on(path: str, recipe: Recipe) -> Recipe:
    way = PATHS[path]
    return replace(recipe, execution=way.execution, graph=way.graph, epochs=ENDLESS)


def _run(advance: Callable[[], None], loop: Loop, path: str) -> Run:
    if not PATHS[path].channels_last:
        loop.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        loop.network.register_forward_pre_hook(_channels_first)
    if PATHS[path].compiled:
        loop.network.compile()

    def loss() -> float:
        # To ask for an epoch's mean loss is to begin another one, so it holds one step, whatever it counts.
        return loop.end_epoch()[0] * (loop.step % loop.steps_per_epoch or loop.steps_per_epoch)

    return Run(advance, loss, compiles=PATHS[path].compiled)


def _channels_first(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0].contiguous(), *args[1:])


def _forward(network: nn.Module, x: Tensor, _: int) -> Tensor:
    out: Tensor = network(x)
    return out


def _batches(task: Task, recipe: Recipe, split: Split) -> Batches:
    return Batches(split, task, policy_of(recipe, task), size=recipe.batch, seed=0)
