"""Times a step of a differentiable search, alphas and weights, on each execution path against the plain one.

The reference runs one module per operation on NCHW maps, as the paper's code does. Modes: all operations are
mixed; one an edge is sampled; a quarter of the channels; the second order, also against the first.
"""

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path

import torch

import nas
from nas.environment import environment
from nas.oneshot.methods import METHODS
from nas.speed.comparing import PATHS, difference_in_float64
from nas.speed.floor import copy_bandwidth
from nas.speed.workloads import Workload, measure, noise, searching

SIZES = {
    "quickstart": {"space": "darts", "width": 8, "cells": 5, "channels": 1, "side": 8, "batch": 64},
    "darts": {"space": "darts", "width": 16, "cells": 8, "channels": 3, "side": 32, "batch": 32},
    "nasbench201": {"space": "nasbench201", "width": 16, "cells": 5, "channels": 3, "side": 32, "batch": 64},
}
MODES = {"mixed": "darts", "sampled": "gdas", "partial": "pcdarts", "second": "darts2"}


def bench(size: dict, mode: str, args: argparse.Namespace, bandwidth: float) -> dict[str, object]:
    channels, batch = size["channels"], size["batch"]
    form = {name: size[name] for name in ("width", "cells") if name in size}
    space = nas.load(size["space"], classes=10, in_channels=channels, **form)
    task = noise(channels=channels, side=size["side"], images=8 * batch, device=torch.device(args.device))

    def work(name: str) -> Workload:
        method = METHODS[name]()
        recipe = replace(method.weights, batch=batch, precision=args.precision)
        return searching(space, task, replace(method, weights=recipe))

    how = {"steps": args.steps, "bandwidth": bandwidth, "only": args.path}
    timed, few = work(MODES[mode]), (task.normalise(task.train.x[:4]), task.train.y[:4])
    rows = measure(timed, **how)
    if mode == "second":
        first = measure(work("darts"), **how)
        for path, row in rows.items():
            row |= {"first_order_ms": first[path]["ms"], "times_first": row["ms"] / first[path]["ms"]}
    exact = difference_in_float64(timed.network, *few, steps=4)
    settings = {**size, "mode": mode, "precision": args.precision}
    return settings | {"paths": rows, "loss_difference_float64": exact}


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
    device = torch.device(args.device)
    bandwidth = copy_bandwidth(device)
    found = {"machine": environment(device) | {"copied_GB_per_s": bandwidth / 1e9}}
    for name, mode in itertools.product(args.size or SIZES, args.mode or ["mixed"]):
        for batch in args.batch or [SIZES[name]["batch"]]:
            row = bench(SIZES[name] | {"batch": batch}, mode, args, bandwidth)
            found[f"{name}, {mode}, batch {batch}"] = row
            print(json.dumps(row, indent=1), flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
