"""Compares the proxies with their published values on random NAS-Bench-201 cells, on every processor core.

Cells that a published table lacks, or calls failed (-1e8: no path from input to output), are not drawn.
"""

import argparse
import csv
import gzip
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

import nas
from nas.evaluate.calibration import spearman
from nas.evaluate.proxies import PROXIES, Batch, draw_batch

BENCHMARKS = Path(os.environ.get("NAS_BENCHMARKS", "benchmarks"))
OTHERS = {"logsynflow": "logsynflow", "zen": "zen"}
PUBLISHED = {name: f"cifar10|{OTHERS.get(name, f'naslib_{name}')}" for name in PROXIES}
COUNTED = {"params": "params", "macs": "flops_c10_M", "accuracy": "c10_test_200_nats"}
QUICK = ("params", "macs", "l2_norm", "grad_norm", "snip", "jacov", "synflow", "logsynflow", "nwot")
space = cache(partial(nas.load, "nasbench201", in_channels=3))


def read(folder: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """The operations of every cell, and what to compare each proxy with, in the benchmark's order."""
    table, scores = folder / "nasbench201.csv.gz", folder / "nasbench201_proxies.npz"
    with gzip.open(table, "rt") as file, np.load(scores) as archive:
        rows = list(csv.DictReader(file))
        columns = dict(zip(archive["columns"], archive["values"].T, strict=True))
    known = {name: columns[column] for name, column in PUBLISHED.items() if column in columns}
    known |= {name: np.array([float(row[column]) for row in rows]) for name, column in COUNTED.items()}
    return [row["ops"] for row in rows], known


def measure(batch: Batch, names: list[str], seed: int, ops: str) -> list[tuple[float, float]]:
    """The score and the seconds of each proxy on the cell with these six operations."""
    torch.manual_seed(seed)
    network = space().network(tuple(map(int, ops))).to(memory_format=torch.channels_last)  # twice as fast
    found = []
    for name in names:
        start = time.perf_counter()
        found.append((PROXIES[name](network, batch), time.perf_counter() - start))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--benchmarks", type=Path, default=BENCHMARKS)
    parser.add_argument("--proxies", nargs="+", choices=PROXIES, default=QUICK)
    parser.add_argument("--task", default="fashion_mnist", help="64 of its images, resized to 3x32x32")
    parser.add_argument("--cells", type=int, default=300)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    drawn, (ops, known) = draw_batch(nas.load_task(args.task)), read(args.benchmarks)
    batch = Batch(torch.nn.functional.interpolate(drawn.x.expand(-1, 3, -1, -1), (32, 32)), drawn.y)
    whole = np.all([np.isfinite(column) & (abs(column) < 1e8) for column in known.values()], axis=0)
    cells = np.random.default_rng(0).choice(np.flatnonzero(whole), args.cells, replace=False)
    with ProcessPoolExecutor(None, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        values = np.array([*pool.map(partial(measure, batch, args.proxies), cells, [ops[i] for i in cells])])
    table = {}
    for name, scores, seconds in zip(args.proxies, *values.transpose(2, 1, 0), strict=True):
        found = {k: spearman(scores, known[k][cells]) for k in (name, "accuracy") if k in known}
        table[name] = {"published": found.get(name), "accuracy": found["accuracy"], "seconds": seconds.mean()}
        print(name, *(f"{key} {value:.3f}" for key, value in table[name].items() if value is not None))
    if args.out:
        args.out.write_text(json.dumps({"task": args.task, "cells": args.cells} | table, indent=1))


if __name__ == "__main__":
    main()
