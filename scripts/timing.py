"""Steps of several execution paths in turns, in one process: what the benches of speed share."""

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nas.data.loading import task_from_arrays
from nas.data.task import Task
from nas.devices import synchronise
from nas.oneshot.methods import Method
from nas.oneshot.search import Search
from nas.seeding import isolated, rng
from nas.space.space import Space
from nas.training.batched import execute_cells
from nas.training.cuda_graph import GraphedStep
from nas.training.loop import Loop
from nas.training.memory_estimate import peak_memory
from nas.training.recipe import Recipe

CLASSES, ENDLESS = 10, 10**6
WARMING = {"cuda": 4}
"""Steps before those that are timed, 1 unless given: a graph is captured, and trusted, in three."""


class Path(NamedTuple):
    """execution: how cells run. channels_last: the layout of maps. graph: whether steps are CUDA graphs."""

    execution: str
    channels_last: bool = True
    graph: bool = False


PATHS = {
    "plain": Path("plain", channels_last=False),
    "plain, channels last": Path("plain"),
    "batched": Path("batched"),
    "batched, channels first": Path("batched", channels_last=False),
    "batched, graph": Path("batched", graph=True),
}
"""The first is how published code runs: one module per operation on NCHW maps."""


class Run(NamedTuple):
    """advance: does a step. loss: of the step done last."""

    advance: Callable[[], None]
    loss: Callable[[], float]


def noise(*, channels: int, side: int, images: int, device: torch.device) -> Task:
    """Square images of noise with a trace of their class, so that losses fall: as many to validate on."""
    y = np.arange(2 * images) % CLASSES
    grey = rng(0, "noise").integers(0, 226, (2 * images, side, side, channels), dtype=np.uint8)
    x = grey + 3 * y[:, None, None, None].astype(np.uint8)
    return task_from_arrays(x, y, x[:CLASSES], y[:CLASSES], name="noise").to(device)


def searching(space: Space, task: Task, method: Method, path: str) -> tuple[Run, nn.Module]:
    """Steps of a search, of the alphas and of the weights, and its supernet: the same on every path."""
    search = Search(space, task, replace(method, weights=_on(path, method.weights)), seed=0)
    search.moves_alphas = method.learns_alphas
    return _run(search.advance, search.loop, path), search.supernet


def training(network: nn.Module, task: Task, recipe: Recipe, path: str) -> Run:
    """Steps of the training of a copy of a network."""
    loop = Loop(copy.deepcopy(network), task, _on(path, recipe), seed=0, split=task.train)
    learn = loop.learn
    if PATHS[path].graph:
        learn = GraphedStep(loop.learn, moved=loop.moved, reads=lambda: loop.weight_decay)
    return _run(lambda: loop.advance(learn), loop, path)


def compare(runs: Mapping[str, Run], *, steps: int, device: torch.device) -> dict[str, dict[str, float]]:
    """For each run: median ms of a step, ratio to the first, peak MiB of first steps, loss difference."""
    losses: dict[str, list[float]] = {name: [] for name in runs}
    times: dict[str, list[float]] = {name: [] for name in runs}
    peaks = {}
    for name, run in runs.items():
        with peak_memory(device) as peak:
            for _ in range(WARMING.get(device.type, 1)):
                run.advance()
                losses[name].append(run.loss())
        peaks[name] = peak.bytes
    for _ in range(steps):
        for name, run in runs.items():
            synchronise(device)
            began = time.perf_counter()
            run.advance()
            synchronise(device)
            times[name].append(time.perf_counter() - began)
            losses[name].append(run.loss())
    first = next(iter(runs))
    reference = statistics.median(times[first])
    return {
        name: {
            "ms": 1e3 * statistics.median(times[name]),
            "ratio": reference / statistics.median(times[name]),
            "peak_MiB": peaks[name] / 2**20,
            "loss_difference": max(abs(a - b) for a, b in zip(losses[first], losses[name], strict=True)),
        }
        for name in runs
    }


def difference_in_float64(network: nn.Module, task: Task, *, steps: int = 4) -> float:
    """The largest difference of the losses of `plain` and `batched` on four images, in float64."""
    x, y = task.normalise(task.train.x[:4]).double(), task.train.y[:4]
    found = []
    for path in ("plain", "batched"):
        exact = copy.deepcopy(network).double()
        execute_cells(exact, path, x.device)
        sgd, losses = torch.optim.SGD(exact.parameters(), lr=0.025, momentum=0.9), []
        for step in range(steps):
            sgd.zero_grad()
            with isolated(0, "step", step):
                loss = F.cross_entropy(exact(x), y)
            loss.backward()
            sgd.step()
            losses.append(loss.item())
        found.append(losses)
    return max(abs(a - b) for a, b in zip(*found, strict=True))


def _on(path: str, recipe: Recipe) -> Recipe:
    way = PATHS[path]
    return replace(recipe, execution=way.execution, graph=way.graph, epochs=ENDLESS)


def _run(advance: Callable[[], None], loop: Loop, path: str) -> Run:
    if not PATHS[path].channels_last:
        loop.network.to(memory_format=torch.contiguous_format)
        loop.network.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))

    def loss() -> float:
        # To ask for an epoch's mean loss is to begin another one, so it holds one step, whatever it counts.
        return loop.end_epoch()[0] * (loop.step % loop.steps_per_epoch or loop.steps_per_epoch)

    return Run(advance, loss)
