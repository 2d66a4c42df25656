"""The most accurate network below a latency: a table of this machine is measured, and the search keeps to it.

python examples/latency_constrained.py [FOLDER]
"""

import os
import sys
from pathlib import Path

import numpy as np

import nas
from nas.space.latency import measure_table

TINY = "NAS_EXAMPLE_TINY" in os.environ  # as the tests run it
SIZE = {"width": 4, "cells": 1}
"""Of the networks, searched and final."""


def main(out: str = "results/example-latency") -> nas.Result:
    task = nas.load_task("digits")
    space = nas.load("nasbench201", in_channels=1, **SIZE)
    table = measure_table(space, task.image_shape, task.train.x.device, samples=8 if TINY else 60, blocks=1)
    path = Path(f"{out}-table.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():  # a resumed search keeps to the table that it began with
        table.write(path)
    table = nas.LatencyTable.read(path)

    draw = np.random.default_rng(0)
    usual = float(np.median([table.predict(space, space.sample(draw)) for _ in range(200)]))
    bound = round(0.7 * usual, 3)
    print(f"a random network takes {usual:.3f} ms an image here; the bound is {bound} ms")
    if table.error is not None:
        print(f"the table errs by {table.error:.0%} on networks that it was not fitted to")

    settings = {
        "trials": 2 if TINY else 16,
        "epochs": 1 if TINY else 2,
        "constraint": f"latency_ms<={bound}",
        "latency_table": str(path),
        "space_settings": SIZE,
        "final_settings": SIZE,
        "top_k": 2 if TINY else 3,
        "repeats": 1,
        "baselines": False,
        "retrain": {"epochs": 1 if TINY else 20},
    }
    if TINY:
        settings["search_images"] = 200
    result = nas.search("nasbench201", "digits", "evolution", out=out, settings=settings)
    predicted = table.predict(space, result.genotype)
    print("found", result.space.choices(result.genotype))
    print(f"test accuracy {result.metrics['test_acc']:.3f}")
    print(
        f"latency {predicted:.3f} ms by the table, {result.metrics['latency_ms']:.3f} ms measured at the end"
    )
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
