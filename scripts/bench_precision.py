"""Searches NAS-Bench-201 by gradients in float32 and in bfloat16, with equal seeds, and compares them.

Strengths of the options after each epoch, losses, and the found cells' accuracy in the table: of the two
arithmetics under one seed, and of two seeds in float32, which is how much chance alone moves a search. At the
scale of bench_oneshot.py.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import torch

import nas
from nas.study.study import Study

PRECISIONS = ("float32", "bfloat16")


def searched(method: str, precision: str, seed: int, args: argparse.Namespace) -> dict[str, object]:
    """One search: strengths `[epochs, E, O]`, the last loss, the cell and its accuracy in the table."""
    settings = {
        **{"preset": "nasbench201", "seed": seed, "search_images": args.images, "epochs": args.epochs},
        **{"baselines": False, "retrain": {"epochs": 1}, "top_k": 1, "augment": "crop+flip"},
        "search": {"precision": precision},
        "space_settings": {"width": args.width, "cells": 1},
        **({} if method == "is-darts" else {"alpha_lr_scale": 8.0}),
    }
    out = args.out / f"{method}-{precision}-{seed}"
    found = nas.search("nasbench201", args.data, method, out=out, settings=settings)
    return {
        "strengths": np.load(out / "alphas.npz")["strengths"],
        "loss": Study.read(out, "search", found.space)[-1].metrics["train_loss"],
        "table": args.table.metrics(found.genotype, 200)[args.table.report],
        "cell": found.space.notation.write(found.genotype),
        "seconds": found.metrics["search_seconds"],
    }


def agreement(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, float]:
    """Correlation of all strengths, and difference of the training losses, after the last epoch."""
    end = np.corrcoef(a["strengths"][-1].flat, b["strengths"][-1].flat)[0, 1]
    return {"strengths": float(end), "loss": abs(a["loss"] - b["loss"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task")
    parser.add_argument("--method", action="append", required=True)
    for name, value in {"seeds": 3, "images": 10_000, "side": 16, "width": 8, "epochs": 30}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path, default=Path("results/bench-precision"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.data, args.table = nas.load_task(args.task).resized(args.side), nas.load_benchmark("nasbench201")
    for method in args.method:
        runs = {}
        for seed, precision in itertools.product(range(args.seeds), PRECISIONS):
            run = runs[precision, seed] = searched(method, precision, seed, args)
            print(method, precision, seed, run["cell"], run["table"], round(run["seconds"]), flush=True)
        compared = {
            f"{'precision' if p != q else 'seed'}, {s} and {t}": agreement(runs[p, s], runs[q, t])
            for (p, s), (q, t) in itertools.combinations(runs, 2)
            if (s == t) != (p == q == "float32")
        }
        plain = [
            {"precision": p, "seed": s} | {k: run[k] for k in ("cell", "table", "seconds")}
            for (p, s), run in runs.items()
        ]
        record = json.dumps({"runs": plain, "compared": compared}, indent=1)
        (args.out / f"{method}.json").write_text(record)
        print(record, flush=True)


if __name__ == "__main__":
    main()
