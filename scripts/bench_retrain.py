"""Times the training of stand-alone networks on each execution path against the plain one.

The reference runs one module per operation on NCHW maps, as the papers' code does. All paths train copies of
one network on the same images, in turns, in one process.
"""

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import nas
from nas.devices import describe
from nas.oneshot.fused.execution import execute_cells

PATHS = {"plain": ("plain", False), "plain, channels last": ("plain", True), "batched": ("batched", True)}
DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), "
    "('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)])"
)
"""The cells that DARTS published (Liu et al. 2019, second order)."""
CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|"
NETWORKS = {
    "DARTS_V2, 16 channels, 8 cells": ("darts", DARTS_V2, {"width": 16, "cells": 8}, 32, 32),
    "DARTS_V2, 16 channels, 5 cells, digits": ("darts", DARTS_V2, {"width": 16, "cells": 5}, 8, 64),
    "NAS-Bench-201, 16 channels, 2 cells a stage": ("nasbench201", CELL, {"width": 16, "cells": 2}, 32, 64),
}
"""Space, architecture, settings, side of the images, batch."""


def measure(name: str, steps: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Images a second of one step of SGD on each path, and how far its losses are from the reference's."""
    torch.manual_seed(0)
    kind, text, settings, side, batch = NETWORKS[name]
    space = nas.load(kind, classes=10, in_channels=3, **settings)
    first = space.network(space.notation.read(text)).to(device).train()
    x, y = torch.randn(batch, 3, side, side, device=device), torch.arange(batch, device=device) % 10
    x += y.view(-1, 1, 1, 1) / 3
    networks = {path: copy.deepcopy(first) for path in PATHS}
    optimizers = {p: torch.optim.SGD(n.parameters(), lr=0.02, momentum=0.9) for p, n in networks.items()}
    seconds, losses = {path: [] for path in PATHS}, {path: [] for path in PATHS}
    for _ in range(steps + 1):
        for path, (execution, last) in PATHS.items():
            execute_cells(networks[path], execution, device)
            images = x.contiguous(memory_format=torch.channels_last) if last else x
            started = time.perf_counter()
            optimizers[path].zero_grad()
            loss = F.cross_entropy(networks[path](images), y)
            loss.backward()
            optimizers[path].step()
            losses[path].append(loss.item())
            seconds[path].append(time.perf_counter() - started)
    rows = {}
    for path in PATHS:
        rate = batch / statistics.median(seconds[path][1:])
        rows[path] = {
            "images_per_s": rate,
            "ratio": rate * statistics.median(seconds["plain"][1:]) / batch,
            "loss_difference": max(abs(a - b) for a, b in zip(losses["plain"], losses[path], strict=True)),
        }
        print(f"{name}, {path}:", *(f"{k} {v:.4g}" for k, v in rows[path].items()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    machine = {"device": describe(device), "torch": torch.__version__}
    print(machine, flush=True)
    found = {name: measure(name, args.steps, device) for name in NETWORKS}
    if args.out is not None:
        args.out.write_text(
            json.dumps({"machine": machine, "steps": args.steps, "networks": found}, indent=1)
        )


if __name__ == "__main__":
    main()
