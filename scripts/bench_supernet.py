"""Times a step of a differentiable search, weights and alphas, on each execution path against the plain one.

The reference runs one module per operation on NCHW maps, as the paper's code does. All paths start from the
same weights and see the same images, in turns, in one process. Losses are compared in the precision of the
timing and, on 4 images a batch for 4 steps, in float64, where rounding has no time to grow.
"""

import argparse
import copy
import json
import platform
import re
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.profiler import profile

import nas
from nas.devices import describe
from nas.oneshot.fused.execution import execute_cells
from nas.oneshot.supernet import Supernet
from nas.peak import peak_memory

PATHS = {
    "plain": ("plain", False),
    "plain, channels last": ("plain", True),
    "batched": ("batched", True),
    "kernels": ("kernels", True),
}
"""Execution, and whether the images come with channels last."""
SIZES = {
    "quickstart": {"space": "darts", "width": 8, "cells": 5, "channels": 1, "side": 8, "batch": 64},
    "darts": {"space": "darts", "width": 16, "cells": 8, "channels": 3, "side": 32, "batch": 32},
    "nasbench201": {"space": "nasbench201", "width": 16, "cells": 5, "channels": 3, "side": 32, "batch": 64},
}
COMPUTING = re.compile(
    r"^aten::(mkldnn_conv|conv.*backward|native_batch|max_pool.*indices|avg_pool|mul|add|relu|threshold|cat)"
)
"""Names of the calls that are counted: those that read and write maps."""


class Search:
    """First-order DARTS (Liu et al. 2019) on images of noise: a weight step, then an alpha step."""

    def __init__(self, supernet: Supernet, path: str, size: dict[str, int], device: torch.device) -> None:
        execution, self.last = PATHS[path]
        self.supernet, self.size, self.device = supernet, size, device
        execute_cells(supernet, execution, device)
        self.weights, self.alphas = supernet.weights(), supernet.architecture()
        self.sgd = torch.optim.SGD(self.weights, lr=0.025, momentum=0.9, weight_decay=3e-4)
        self.adam = torch.optim.Adam(self.alphas, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)

    def images(self, step: int, split: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One of four batches to train (0) or validate (1) on: noise with a trace of its label."""
        generator = torch.Generator().manual_seed(2 * (step % 4) + split)
        shape = (self.size["batch"], self.size["channels"], self.size["side"], self.size["side"])
        y = torch.randint(10, shape[:1], generator=generator)
        x = torch.randn(shape, generator=generator) + y.view(-1, 1, 1, 1) / 3
        layout = torch.channels_last if self.last else torch.contiguous_format
        return x.to(self.weights[0]).contiguous(memory_format=layout), y.to(self.device)

    def step(self, number: int) -> float:
        """Moves the weights and then the alphas; the training loss before."""
        losses = []
        for split, moving, frozen, optimizer in (
            (0, self.weights, self.alphas, self.sgd),
            (1, self.alphas, self.weights, self.adam),
        ):
            for parameter in frozen:
                parameter.requires_grad = False
            optimizer.zero_grad()
            x, y = self.images(number, split)
            loss = F.cross_entropy(self.supernet(x), y)
            loss.backward()
            for parameter in frozen:
                parameter.requires_grad = True
            if moving is self.weights:
                torch.nn.utils.clip_grad_norm_(moving, 5.0)
            optimizer.step()
            losses.append(loss.item())
        return losses[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", action="append", choices=SIZES, help="all unless given")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    machine = {"device": describe(device), "torch": torch.__version__, "python": platform.python_version()}
    print(machine, flush=True)
    found = {}
    for name in args.size or SIZES:
        found[name] = measure(SIZES[name], args.steps, device)
    if args.out is not None:
        args.out.write_text(json.dumps({"machine": machine, "steps": args.steps, "sizes": found}, indent=1))


def measure(size: dict[str, int], steps: int, device: torch.device) -> dict[str, object]:
    """Milliseconds of a step on each path, and how far its losses are from the reference's."""
    torch.manual_seed(0)
    settings = {"width": size["width"], "cells": size["cells"], "in_channels": size["channels"]}
    first = Supernet(nas.load(size["space"], classes=10, **settings)).to(device).train()
    exact, few = copy.deepcopy(first).double(), {**size, "batch": 4}
    paths = [path for path in PATHS if path != "kernels" or device.type == "cuda"]
    curves = {}
    for path in ("plain", "batched"):
        search = Search(copy.deepcopy(exact), path, few, device)
        curves[path] = [search.step(number) for number in range(4)]
    searches = {path: Search(copy.deepcopy(first), path, size, device) for path in paths}
    seconds = {path: [] for path in paths}
    losses = {path: [search.step(0)] for path, search in searches.items()}
    for number in range(1, 1 + steps):
        for path, search in searches.items():
            started = time.perf_counter()
            losses[path].append(search.step(number))
            seconds[path].append(time.perf_counter() - started)
    rows = {}
    for path, search in searches.items():
        with profile() as profiler:
            search.step(0)
        with peak_memory(device) as peak:
            search.step(0)
        ms = 1e3 * statistics.median(seconds[path])
        rows[path] = {
            "ms": ms,
            "ratio": statistics.median(seconds["plain"]) * 1e3 / ms,
            "peak_MiB": peak.bytes / 2**20,
            "calls": sum(event.count for event in profiler.key_averages() if COMPUTING.search(event.key)),
            "loss_first": losses[path][0],
            "loss_last": losses[path][-1],
            "loss_difference": farthest(losses["plain"], losses[path]),
        }
        numbers = (f"{name} {value:.5g}" for name, value in rows[path].items())
        print(f"{size['space']}, width {size['width']}, {path}:", *numbers, flush=True)
    difference = farthest(curves["plain"], curves["batched"])
    print(f"{size['space']}, width {size['width']}: losses in float64 differ by {difference:.2g}", flush=True)
    return {"size": size, "paths": rows, "loss_difference_float64": difference}


def farthest(one: list[float], other: list[float]) -> float:
    """The largest difference of two curves."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


if __name__ == "__main__":
    main()
