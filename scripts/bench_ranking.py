"""How well shared weights rank random NAS-Bench-201 cells as its table does, and trainings at their scale do.

All shared weights train as many paths in all. At a scale that two cores can do.
"""

import argparse
import itertools
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import nas
from nas.evaluate.calibration import spearman
from nas.oneshot.path_training import score, train_shared
from nas.oneshot.supernet import Supernet
from nas.seeding import rng
from nas.training.recipe import Recipe

VARIANTS = {"one-shot": ("uniform", 1), "fair": ("fair", 5)}
"""How paths are sampled, and how many a step trains; fewer epochs make up for it."""
ALONE = "alone"


def agreement(shared: np.ndarray, table: np.ndarray) -> dict[str, float]:
    """Spearman over all cells, and over the half best in the table; what a filter would let through."""
    best, order = table >= np.median(table), np.argsort(-shared, kind="stable")
    return {
        "spearman": spearman(shared, table),
        "top_half": spearman(shared[best], table[best]),
        "first": table[order[0]],
        "best_of_first_10": table[order[:10]].max(),
        "best_of_first_50": table[order[:50]].max(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task")
    parser.add_argument(
        "--variant", action="append", choices=(*VARIANTS, ALONE), help="shared weights unless given"
    )
    parser.add_argument(
        "--least", type=float, default=0.0, help="test accuracy in the table that each cell has"
    )
    numbers = {"seeds": 2, "images": 10_000, "side": 16, "width": 8, "epochs": 120, "cells": 300}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path, default=Path("results/bench-ranking"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    task, table = nas.load_task(args.task), nas.load_benchmark("nasbench201")
    task = replace(task.reduced(args.images).resized(args.side), flip=True)
    space = nas.load("nasbench201", width=args.width, cells=1, in_channels=3, classes=len(task.classes))
    for name in args.variant or VARIANTS:
        rows, (sampling, at_once) = [], VARIANTS.get(name, ("", 1))
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            drawn = (space.sample(rng(seed, "cell", i)) for i in itertools.count())
            known = ((cell, table.metrics(cell, 200)[table.report]) for cell in drawn)
            cells, truth = zip(
                *itertools.islice((k for k in known if k[1] >= args.least), args.cells), strict=True
            )
            recipe = Recipe(epochs=args.epochs // at_once, batch=128, lr=0.1, weight_decay=5e-4, clip=5.0)
            started = time.perf_counter()
            if name == ALONE:
                trained = nas.Trained(space, task, recipe)
                trials = [nas.Trial(i, cell, args.epochs) for i, cell in enumerate(cells)]
                scores = [trained(trial, rng(seed, "alone", trial.number))["val_acc"] for trial in trials]
            else:
                supernet = Supernet(space)
                train_shared(supernet, task, recipe, seed=seed, sampling=sampling)
                scores = [score(supernet, cell, task, seed=seed)[1] for cell in cells]
            row = agreement(np.array(scores), np.array(truth)) | {"best": max(truth)}
            rows.append(row | {"seconds": time.perf_counter() - started})
            (args.out / f"{name}.json").write_text(json.dumps(rows, indent=1))
            print(name, seed, *(f"{k} {v:.4f}" for k, v in rows[-1].items()), flush=True)


if __name__ == "__main__":
    main()
