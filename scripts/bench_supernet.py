"""Times a step of a differentiable search, weights and alphas, on each execution path against the plain one.

The reference runs one module per operation on NCHW maps, as the paper's code does.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

import nas
from nas.devices import describe
from nas.oneshot.fused.comparing import Step, compare, difference_in_float64, in_layout
from nas.oneshot.keeping import without_gradients
from nas.oneshot.supernet import Supernet

SIZES = {
    "quickstart": {"space": "darts", "width": 8, "cells": 5, "channels": 1, "side": 8, "batch": 64},
    "darts": {"space": "darts", "width": 16, "cells": 8, "channels": 3, "side": 32, "batch": 32},
    "nasbench201": {"space": "nasbench201", "width": 16, "cells": 5, "channels": 3, "side": 32, "batch": 64},
}


def search(supernet: Supernet, *, batch: int, channels: int, side: int) -> Step:
    """First-order DARTS (Liu et al. 2019) on noise with a trace of its label: weights, then alphas."""
    weights, alphas = supernet.weights(), supernet.architecture()
    sgd = torch.optim.SGD(weights, lr=0.025, momentum=0.9, weight_decay=3e-4)
    adam = torch.optim.Adam(alphas, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)

    def loss(number: int, *, split: int, last: bool) -> torch.Tensor:
        generator = torch.Generator().manual_seed(2 * (number % 4) + split)
        y = torch.randint(10, (batch,), generator=generator)
        x = torch.randn(batch, channels, side, side, generator=generator) + y.view(-1, 1, 1, 1) / 3
        x = in_layout(x.to(weights[0]), channels_last=last)
        return F.cross_entropy(supernet(x), y.to(x.device))

    def step(number: int, last: bool) -> float:  # noqa: FBT001 - a step's signature
        sgd.zero_grad()
        adam.zero_grad()
        with without_gradients(alphas):
            first = loss(number, split=0, last=last)
            first.backward()
        torch.nn.utils.clip_grad_norm_(weights, 5.0)
        sgd.step()
        with without_gradients(weights):
            loss(number, split=1, last=last).backward()
        adam.step()
        return first.item()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", action="append", choices=SIZES)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    found = {"machine": {"device": describe(device), "torch": torch.__version__}}
    for name in args.size or SIZES:
        torch.manual_seed(0)
        size = dict(SIZES[name])
        form = {"width": size.pop("width"), "cells": size.pop("cells"), "in_channels": size["channels"]}
        supernet = Supernet(nas.load(size.pop("space"), classes=10, **form)).to(device).train()
        begin, few = partial(search, **size), partial(search, **{**size, "batch": 4})
        found[name] = {**SIZES[name], "paths": compare(supernet, begin, steps=args.steps, device=device)}
        found[name]["loss_difference_float64"] = difference_in_float64(supernet, few, steps=4, device=device)
        print(json.dumps(found[name], indent=1), flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
