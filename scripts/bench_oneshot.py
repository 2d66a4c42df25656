"""Searches NAS-Bench-201 by gradients and on shared weights, and looks the found cells up in the table.

At a scale that two cores can do: few images, small ones, a narrow and shallow supernet. A search by gradients
ends with its first choice, unless --top asks for more; one on shared weights trains its best ten again for a
few epochs. There is the first choice alone, and what was chosen after that. A seed whose row --out holds
already is not searched again.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import nas
from nas.results.run_record import read_run
from nas.study.study import Study

NARROW = {"pcdarts": {"parts": 2}, "gaea": {"parts": 1}, "drnas": {"first_parts": 2, "last_parts": 1}}
"""A quarter of eight channels is too few."""


def settings(method: str, args: argparse.Namespace, seed: int) -> dict[str, object]:
    common = {
        "preset": "nasbench201",
        "seed": seed,
        "search_images": args.images,
        "augment": "crop+flip",
        "space_settings": {"width": args.width, "cells": 1},
        "baselines": False,
        "retrain": {"epochs": 1},
        "epochs": args.epochs,
    }
    top = args.top or (10 if method == "spos" else 1)
    again = {"repeats": 1, "top_k_epochs": args.again, "trial": {"batch": 64, "lr": 0.05}} if top > 1 else {}
    common |= {"top_k": top} | again
    if method == "spos":
        batch = {"batch": 128, "lr": 0.1, "lr_min": 0.0}
        return common | {"epochs": 4 * args.epochs, "trials": 400, "supernet": batch}
    own = {"epochs": 4 * args.epochs} if method == "gdas" else {}
    own |= {"alpha_lr_scale": args.speed} if method != "is-darts" else {}
    return common | {"method_settings": NARROW.get(method, {}), "guard": not args.no_guard} | own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task")
    parser.add_argument("--method", action="append", required=True)
    parser.add_argument("--seed", action="append", type=int, help="0 and 1 unless given")
    for name, value in {"images": 10_000, "side": 16, "width": 8, "epochs": 30, "top": 0, "again": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--speed", type=float, default=8.0)
    parser.add_argument("--no-guard", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results/bench-oneshot"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    task, table = nas.load_task(args.task).resized(args.side), nas.load_benchmark("nasbench201")
    for method in args.method:
        name = f"{method}{'-no-guard' if args.no_guard else ''}"
        kept = args.out / f"{name}.json"
        rows = json.loads(kept.read_text()) if kept.exists() else []
        for seed in args.seed or (0, 1):
            if any(row["seed"] == seed for row in rows):
                continue
            out = args.out / f"{name}-{seed}"
            found = nas.search("nasbench201", task, method, out=out, settings=settings(method, args, seed))
            again = Study.read(out, "rerank", found.space)
            first = again[0].genotype if again else found.genotype
            accuracies = [table.metrics(g, 200)[table.report] for g in (first, found.genotype)]
            row = {"seed": seed, "first": accuracies[0], "again": accuracies[1]}
            row["cell"] = found.space.notation.write(found.genotype)
            row["seconds"] = found.metrics["search_seconds"]
            rows.append(row | {"commit": read_run(out)["environment"]["commit"]})
            kept.write_text(json.dumps(rows, indent=1))
            print(name, row, flush=True)
        means = {key: np.mean([row[key] for row in rows]) for key in ("first", "again")}
        print(name, *(f"{key} {value:.4f}" for key, value in means.items()), flush=True)


if __name__ == "__main__":
    main()
