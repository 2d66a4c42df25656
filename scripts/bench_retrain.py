"""Times the training of stand-alone networks on each execution path against the plain one.

The reference runs one module per operation on NCHW maps, as the papers' code does.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import nas
from nas.devices import describe
from nas.oneshot.fused.comparing import Step, compare, in_layout

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


def training(network: nn.Module, *, side: int, batch: int) -> Step:
    """SGD on one batch of noise with a trace of its label."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    like = next(network.parameters())
    generator, y = torch.Generator().manual_seed(0), torch.arange(batch) % 10
    x = torch.randn(batch, 3, side, side, generator=generator) + y.view(-1, 1, 1, 1) / 3

    def step(_: int, last: bool) -> float:  # noqa: FBT001 - a step's signature
        optimizer.zero_grad()
        loss = F.cross_entropy(network(in_layout(x.to(like), channels_last=last)), y.to(like.device))
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device, found = torch.device(args.device), {}
    found["machine"] = {"device": describe(device), "torch": torch.__version__}
    for name, (kind, text, settings, side, batch) in NETWORKS.items():
        torch.manual_seed(0)
        space = nas.load(kind, classes=10, in_channels=3, **settings)
        network = space.network(space.notation.read(text)).to(device).train()
        begin = partial(training, side=side, batch=batch)
        rows = compare(network, begin, steps=args.steps, device=device)
        found[name] = {path: {**row, "images_per_s": 1e3 * batch / row["ms"]} for path, row in rows.items()}
        print(json.dumps({name: found[name]}, indent=1), flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
