"""Times a step of a differentiable search, alphas and weights, on each execution path against the plain one.

The reference runs one module per operation on NCHW maps, as the paper's code does. Modes: all operations are
mixed; one an edge is sampled; a quarter of the channels; the second order.
"""

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path

import torch
from timing import PATHS, compare, difference_in_float64, noise, searching

import nas
from nas.oneshot.methods import METHODS
from nas.results.run_record import environment

SIZES = {
    "quickstart": {"space": "darts", "width": 8, "cells": 5, "channels": 1, "side": 8, "batch": 64},
    "darts": {"space": "darts", "width": 16, "cells": 8, "channels": 3, "side": 32, "batch": 32},
    "nasbench201": {"space": "nasbench201", "width": 16, "cells": 5, "channels": 3, "side": 32, "batch": 64},
}
MODES = {"mixed": "darts", "sampled": "gdas", "partial": "pcdarts", "second": "darts2"}


def bench(size: dict, mode: str, args: argparse.Namespace) -> dict[str, object]:
    device, batch = torch.device(args.device), size["batch"]
    form = {"classes": 10, "in_channels": size["channels"], "width": size["width"], "cells": size["cells"]}
    task = noise(channels=size["channels"], side=size["side"], images=8 * batch, device=device)
    method = METHODS[MODES[mode]]()
    method = replace(method, weights=replace(method.weights, batch=batch, precision=args.precision))
    space = nas.load(size["space"], **form)
    asked = args.path or [name for name, path in PATHS.items() if device.type == "cuda" or not path.graph]
    made = {name: searching(space, task, method, name) for name in asked}
    difference = difference_in_float64(made[asked[0]][1], task)
    paths = compare({name: run for name, (run, _) in made.items()}, steps=args.steps, device=device)
    return {**size, "mode": mode, "precision": args.precision, "paths": paths} | {
        "loss_difference_float64": difference
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, choices in {"size": SIZES, "mode": MODES}.items():
        parser.add_argument(f"--{name}", action="append", choices=choices)
    parser.add_argument("--batch", action="append", type=int, help="the size's own unless given")
    parser.add_argument("--path", action="append", choices=PATHS, help="all that the device has unless given")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = {"machine": environment(torch.device(args.device))}
    for name, mode in itertools.product(args.size or SIZES, args.mode or ["mixed"]):
        for batch in args.batch or [SIZES[name]["batch"]]:
            found[f"{name}, {mode}, batch {batch}"] = row = bench(SIZES[name] | {"batch": batch}, mode, args)
            print(json.dumps(row, indent=1), flush=True)
            if args.out is not None:
                args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
