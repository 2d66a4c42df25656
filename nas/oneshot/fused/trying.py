"""Tries kernels on a GPU, as a program: `python -m nas.oneshot.fused.trying cuda:0 OUTCOME PULSE`.

Steps of a small search and of a small training are done batched and by kernels: in float32 from the same
start, to compare their losses, and as a job does them, to time them. OUTCOME and PULSE are descriptors.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from nas.cell import Cell
from nas.choosers import Chooser
from nas.devices import exact
from nas.oneshot.fused.settling import BUSY
from nas.oneshot.fused.verdict import KINDS, Kind, Tried, Verdict
from nas.oneshot.method import PUBLISHED, Method
from nas.ops import FactorizedReduce, candidates, relu_conv_bn
from nas.seeding import isolated
from nas.space import Space
from nas.speed.comparing import compare
from nas.speed.workloads import Workload, noise, searching, training
from nas.task import Task
from nas.training.recipe import Precision
from nas.workers.pulse import Pulse

OPTIONS = (
    *("none", "skip_connect", "avg_pool_3x3", "max_pool_3x3", "sep_conv_3x3", "sep_conv_5x5"),
    *("dil_conv_3x3", "dil_conv_5x5", "nor_conv_1x1", "nor_conv_3x3"),
)
"""All that there are kernels for."""
EVERY = (*range(1, len(OPTIONS)), 4)
"""An architecture of the small space in which each stands."""
WIDTH, SIDE, BATCH = 16, 32, 64
COMPARED = 3
"""Steps whose losses are compared, before rounding has grown."""
TIMED = 10
BUSY_WORDS = ("out of memory", "ALLOC_FAILED", "busy or unavailable")
"""Of errors that come of others who use the GPU, and not of kernels."""


def find_out(
    device: torch.device, *, ways: tuple[str, str] = ("batched", "kernels"), timed: str = "{}, graph"
) -> Verdict:
    """Steps of both kinds on a device.

    ways: two names of `nas.speed.comparing.PATHS`. timed: what is timed of a way.
    """
    task = noise(channels=3, side=SIDE, images=8 * BATCH, device=device)
    return Verdict({kind: _tried(kind, task, ways, timed) for kind in KINDS})


def _tried(kind: Kind, task: Task, ways: tuple[str, str], timed: str) -> Tried:
    with exact():
        alike = _steps(_work(kind, task, "float32"), ways, COMPARED)
    slow, fast = (timed.format(way) for way in ways)
    rows = _steps(_work(kind, task, "auto"), (slow, fast), TIMED)
    return Tried(rows[slow]["ms"], rows[fast]["ms"], alike[ways[1]]["loss_difference"])


def _work(kind: Kind, task: Task, precision: Precision) -> Workload:
    recipe = replace(PUBLISHED, batch=BATCH, precision=precision)
    if kind == "search":
        return searching(small_space(), task, Method(weights=recipe))
    with isolated(0, "trying"):
        return training(small_space().network(EVERY), task, recipe)


def _steps(work: Workload, ways: Sequence[str], steps: int) -> dict[str, dict[str, float]]:
    runs = {way: work.begin(way) for way in ways}
    return compare(runs, steps=steps, device=work.device, counts=False)


def small_space(width: int = WIDTH) -> Space:
    """Three cells of two inputs, the second of which halves the maps; images `[B, 3, H, W]` to 10 classes.

    The preprocessing of the last one halves them, too.
    """

    def build(choose: Chooser) -> nn.Module:
        def cell(kind: str, stride: int, before: Sequence[nn.Module]) -> Cell:
            def edge(src: int, dst: int) -> nn.Module:
                options = candidates(OPTIONS, width, width, stride if src < 2 else 1)
                return choose.op(f"{kind}/{src}->{dst}", options)

            return Cell(kind, 2, 2, edge, preprocess=before)

        def same() -> list[nn.Module]:
            return [relu_conv_bn(width, width) for _ in range(2)]

        halved = [FactorizedReduce(width, width), relu_conv_bn(width, width, 2)]

        stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
        cells = [cell("normal", 1, same()), cell("reduce", 2, same()), cell("normal", 1, halved)]
        return _Chain(stem, *cells, head)

    return Space("trying", build)


class _Chain(nn.Sequential):
    """Of which a cell reads what is before it twice."""

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(x, x) if isinstance(module, Cell) else module(x)
        return x


def main(device: str, outcome: str) -> None:
    """Writes what was found out; ends with `BUSY` where the GPU is not free, or has no memory left for it.

    outcome: the number of a descriptor.
    """
    try:
        found = find_out(torch.device(device))
    except RuntimeError as error:
        if not _is_busy(error):
            raise
        sys.stderr.write(f"{error}\n")
        sys.exit(BUSY)
    text = json.dumps(asdict(found), allow_nan=False)
    with os.fdopen(int(outcome), "w") as file:
        file.write(text)


def _is_busy(error: RuntimeError) -> bool:
    """Whether an error comes of others that use the GPU; not only PyTorch, CUDA and its libraries say so."""
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in BUSY_WORDS)


def awaited(device: str, outcome: str, descriptor: str) -> None:
    """The same, as long as somebody reads from the pipe: whoever was killed has no use for the outcome."""
    with Pulse(int(descriptor), ask_to_stop=lambda: None, grace_s=0):
        main(device, outcome)


if __name__ == "__main__":
    awaited(*sys.argv[1:])
