"""Times epochs of a whole search by gradients, as a job does it, and tells what all of its epochs take.

Images are noise, drawn and augmented on the device; an epoch ends with validation and a look at the alphas.
The first one is counted as it is, with all that is compiled in it. The reference is computed from its step:
one module per operation on NCHW maps, as the paper's code does it.
"""

import argparse
import json
import statistics
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

import nas
from nas.environment import environment
from nas.oneshot.differentiable import search
from nas.oneshot.fused import verdict
from nas.oneshot.methods import METHODS
from nas.speed.floor import copy_bandwidth
from nas.speed.workloads import measure, noise, searching
from nas.training.peak import peak_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="darts")
    parser.add_argument("--method", choices=METHODS, default="darts")
    for name, value in {
        "images": 25_000,
        "side": 32,
        "batch": 64,
        "epochs": 50,
        "timed": 3,
        "steps": 5,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--whole", action="store_true", help="run all epochs instead of those that are timed")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    task = noise(channels=3, side=args.side, images=args.images, device=device)
    space = nas.load(args.space, classes=10, in_channels=3)
    ours = "kernels" if verdict.lacking(device) is None else "batched"
    method, recipe = METHODS[args.method](), {"batch": args.batch, "precision": args.precision}
    method = replace(method, weights=replace(method.weights, **recipe, execution=ours))
    bandwidth = copy_bandwidth(device)
    timing = {"steps": args.steps, "bandwidth": bandwidth, "only": ["plain"]}
    plain = measure(searching(space, task, method), **timing)["plain"]
    epochs = args.epochs if args.whole else args.timed
    shortened = replace(method, weights=replace(method.weights, epochs=epochs))
    # Elsewhere than on a GPU, to follow memory would slow what is timed.
    with peak_memory(device) if device.type == "cuda" else nullcontext() as peak:
        seconds = [epoch.seconds for epoch in search(space, task, shortened, seed=0).epochs]
    later = statistics.median(seconds[1:] or seconds)
    steps = len(task.train) // args.batch
    row = {
        "ms": 1e3 * later / steps,
        "minutes": (seconds[0] + (sum(seconds[1:]) if args.whole else (args.epochs - 1) * later)) / 60,
        **({} if peak is None else {"peak_MiB": peak.bytes / 2**20}),
        "floor_share": plain["floor_ms"] * steps / (1e3 * later),
        "seconds": seconds,
    }
    plain["minutes"] = plain["ms"] * steps * args.epochs / 60_000
    row["ratio"] = plain["minutes"] / row["minutes"]
    how = f"{args.epochs} epochs" + ("" if args.whole else f", computed from {epochs}")
    machine = environment(device) | {"copied_GB_per_s": bandwidth / 1e9}
    found = {"machine": machine, how: {"paths": {"plain": plain, ours: row}, "precision": args.precision}}
    print(text := json.dumps(found, indent=1))
    if args.out is not None:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
