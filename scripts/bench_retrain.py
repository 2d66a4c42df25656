"""Times the training of stand-alone networks on each execution path against the plain one.

The reference runs one module per operation on NCHW maps, as the papers' code does.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from timing import PATHS, compare, noise, training

import nas
from nas.results.run_record import environment
from nas.seeding import isolated
from nas.training.recipe import preset

DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), "
    "('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)])"
)
"""The cells that DARTS published (Liu et al. 2019, second order)."""
CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|"
DARTS, NB201 = ("darts", DARTS_V2, "standard"), ("nasbench201", CELL, "nasbench201")
NETWORKS = {
    "DARTS_V2, 16 channels, 8 cells": (*DARTS, {"width": 16, "cells": 8}, 32, 32),
    "DARTS_V2, 16 channels, 5 cells, digits": (*DARTS, {"width": 16, "cells": 5}, 8, 64),
    "NAS-Bench-201, 16 channels, 2 cells a stage": (*NB201, {"width": 16, "cells": 2}, 32, 64),
    "DARTS_V2, 36 channels, 20 cells": (*DARTS, {"width": 36, "cells": 20, "auxiliary": True}, 32, 96),
}
"""Space, architecture, recipe, settings, side of the images, batch; the last one is for a GPU."""


def bench(name: str, batch: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    kind, text, recipe, settings, side, _ = NETWORKS[name]
    device = torch.device(args.device)
    task = noise(channels=3, side=side, images=8 * batch, device=device)
    space = nas.load(kind, classes=10, in_channels=3, **settings)
    with isolated(0, "init"):
        network = space.network(space.notation.read(text)).to(device).train()
    # Without what only some of the epochs have, or only a network with a second head.
    head = 0.4 if settings.get("auxiliary") else 0.0
    own = {"auxiliary": head, "drop_path": 0.0, "cutout": preset(recipe).cutout * side // 32}
    asked = replace(preset(recipe), batch=batch, precision=args.precision, **own)
    paths = args.path or [name for name, path in PATHS.items() if device.type == "cuda" or not path.graph]
    return compare({p: training(network, task, asked, p) for p in paths}, steps=args.steps, device=device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", action="append", choices=NETWORKS)
    parser.add_argument("--batch", action="append", type=int, help="the network's own unless given")
    parser.add_argument("--path", action="append", choices=PATHS, help="all that the device has unless given")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = {"machine": environment(torch.device(args.device))}
    for name in args.network or [*NETWORKS][:3]:
        for batch in args.batch or [NETWORKS[name][-1]]:
            rows = bench(name, batch, args)
            row = found[f"{name}, batch {batch}"] = {"precision": args.precision, "paths": rows}
            print(json.dumps({name: row}, indent=1), flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
