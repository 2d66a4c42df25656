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
from nas.study import Study

PRECISIONS = ("float32", "bfloat16")


def searched(method: str, precision: str, seed: int, args: argparse.Namespace) -> dict[str, object]:
    """One search: strengths `[epochs, E, O]`, losses `[epochs]`, the cell and its accuracy in the table."""
    settings = {
        "preset": "nasbench201",
        "seed": seed,
        "search_images": args.images,
        "space_settings": {"width": args.width, "cells": 1},
        "baselines": False,
        "retrain": {"epochs": 1},
        "epochs": args.epochs,
        "top_k": 1,
        "search": {"precision": precision},
        **({} if method == "is-darts" else {"alpha_speed": args.speed}),
    }
    out = args.out / f"{method}-{precision}-{seed}"
    found = nas.search("nasbench201", args.data, method, out=out, settings=settings)
    with np.load(out / "alphas.npz") as archive:
        strengths = archive["strengths"]
    table, trials = nas.load_benchmark("nasbench201"), Study.read(out, "search", found.space)
    return {
        "strengths": strengths,
        "loss": np.array([trial.metrics["train_loss"] for trial in trials]),
        "table": table.metrics(found.genotype, 200)[table.report],
        "cell": found.space.notation.write(found.genotype),
        "seconds": found.metrics["search_seconds"],
    }


def agreement(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, float]:
    """Correlation of all strengths half way and at the end, and the largest difference of losses."""
    moments = (len(a["loss"]) // 2, -1)
    half, end = (np.corrcoef(a["strengths"][i].flat, b["strengths"][i].flat)[0, 1] for i in moments)
    return {"half_way": half, "end": end, "loss": float(np.abs(a["loss"] - b["loss"]).max())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task")
    parser.add_argument("--method", action="append", required=True)
    for name, value in {"seeds": 3, "images": 10_000, "side": 16, "width": 8, "epochs": 30}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--speed", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=Path("results/bench-precision"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.data = nas.load_task(args.task).resized(args.side)
    for method in args.method:
        runs = {}
        for seed, precision in itertools.product(range(args.seeds), PRECISIONS):
            run = runs[precision, seed] = searched(method, precision, seed, args)
            print(method, precision, seed, run["cell"], run["table"], round(run["seconds"]), flush=True)
        seeds = range(args.seeds)
        pairs = {f"precision, seed {s}": (runs["float32", s], runs["bfloat16", s]) for s in seeds}
        pairs |= {
            f"seeds {s} and {t}": (runs["float32", s], runs["float32", t])
            for s, t in itertools.combinations(seeds, 2)
        }
        compared = {name: agreement(*pair) for name, pair in pairs.items()}
        plain = [
            {"precision": p, "seed": s} | {k: run[k] for k in ("cell", "table", "seconds")}
            for (p, s), run in runs.items()
        ]
        record = {"runs": plain, "compared": compared}
        (args.out / f"{method}.json").write_text(json.dumps(record, indent=1))
        for name, row in compared.items():
            print(method, name, *(f"{k} {v:.4f}" for k, v in row.items()), flush=True)


if __name__ == "__main__":
    main()
