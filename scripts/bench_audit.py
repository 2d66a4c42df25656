"""Plants wrong labels, copies and leaks in a task, and measures what the audit finds of each.

A pair that looks like a copy but was not planted counts as wrong, although data have copies of their own.
"""

import argparse
import json
import time
from collections.abc import Set as AbstractSet
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

import nas
from nas.audit import Planted, audit_task, plant
from nas.data.task import Split


def rates(found: AbstractSet, real: AbstractSet) -> dict[str, float]:
    hits = len(found & real)
    return {"precision": hits / max(1, len(found)), "recall": hits / len(real), "found": len(found)}


def measure(planted: Planted, seed: int, backend: str) -> dict[str, object]:
    start = time.process_time()
    found = audit_task(planted.task, backend=backend, seed=seed)
    row = {"cpu_seconds": round(time.process_time() - start, 1), "noise": found.labels.noise}
    ranked = [suspect.origin for suspect in found.of_kind("mislabel")]
    hits = np.isin(ranked, list(planted.wrong))
    precision = hits.cumsum() / np.arange(1, len(hits) + 1)
    row["mislabel"] = rates(set(ranked), planted.wrong) | {
        "precision_at_planted": float(hits[: len(planted.wrong)].mean()),
        "average_precision": float(precision[hits].sum() / len(planted.wrong)),
    }
    groups = {"exact": set(), "near": set(), "leak": set()}
    for group in found.groups:
        kind = "leak" if len(group.splits) > 1 else "exact" if group.exact else "near"
        groups[kind] |= set(combinations(sorted(group.members), 2))
    return row | {kind: rates(pairs, getattr(planted, kind)) for kind, pairs in groups.items()}


def cut(split: Split, most: int) -> Split:
    return Split(split.x[:most], split.y[:most])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", nargs="?", default="fashion_mnist")
    for name, value in {"train": 5000, "held": 1000, "copies": 100, "seeds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--backend", default="own")
    parser.add_argument("--out", type=Path)
    args, rows = parser.parse_args(), []
    for seed in range(args.seeds):
        whole = nas.load_task(args.task, seed=seed, val_fraction=args.held / (args.train + args.held))
        parts = cut(whole.train, args.train), cut(whole.val, args.held), cut(whole.test, args.held)
        task = replace(whole, train=parts[0], val=parts[1], test=parts[2])
        planted = plant(task, mislabels=0.05, copies=args.copies, leaks=args.copies // 2, seed=seed)
        rows.append(measure(planted, seed, args.backend))
        print(seed, json.dumps(rows[-1]), flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(vars(args) | {"out": None, "seeds": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
