"""Plants wrong labels, copies and leaks in a task, and measures what the audit finds of each.

A pair that looks like a copy but was not planted counts as wrong, although data have copies of their own.
"""

import argparse
import json
import time
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import nas
from nas.audit import audit_task
from nas.data.task import Split, Task
from nas.seeding import rng

Pairs = frozenset[tuple[int, int]]
BRIGHTER, NOISE = 0.15, 0.02


@dataclass(frozen=True, eq=False)
class Planted:
    """A task and what is wrong with it.

    Images are numbered through all splits, and `Split.origin` says these numbers.

    wrong: images with a wrong label. exact, near: pairs of copies in the training split. leak: pairs of a
      training and a test image that are the same.
    """

    task: Task
    wrong: frozenset[int]
    exact: Pairs
    near: Pairs
    leak: Pairs


def plant(task: Task, *, mislabels: float, copies: int, leaks: int, seed: int) -> Planted:
    """Plants copies of both kinds and leaks in the training split, then wrong labels everywhere.

    mislabels: share of all images, in [0, 1), whose label becomes one of the others, each as likely.
    copies: exact ones, and as many near ones, see `near_copy`. leaks: test images in the training split.
    """
    draw = rng(seed, "plant")
    train, val, test = task.train, task.val, task.test
    chosen = draw.permutation(len(train))[: 2 * copies]
    leaked = draw.permutation(len(test))[:leaks]
    nears = [near_copy(train.x[i], draw) for i in chosen[copies:]]
    x = torch.cat([train.x, train.x[chosen[:copies]], *(image[None] for image in nears), test.x[leaked]])
    y = torch.cat([train.y, train.y[chosen], test.y[leaked], val.y, test.y])
    wrong = draw.permutation(len(y))[: round(mislabels * len(y))]
    other = torch.from_numpy(draw.integers(1, task.num_classes, len(wrong)))
    y[wrong] = (y[wrong] + other) % task.num_classes
    sizes = [len(x), len(val), len(test)]
    labels, numbers = torch.split(y, sizes), torch.split(torch.arange(len(y)), sizes)
    splits = [Split(*part) for part in zip((x, val.x, test.x), labels, numbers, strict=True)]
    new = len(train) + np.arange(2 * copies + leaks)
    pairs = list(zip(np.append(chosen, sizes[0] + sizes[1] + leaked).tolist(), new.tolist(), strict=True))
    return Planted(
        replace(task, train=splits[0], val=splits[1], test=splits[2], files=()),
        frozenset(wrong.tolist()),
        frozenset(pairs[:copies]),
        frozenset(pairs[copies : 2 * copies]),
        frozenset((copy, image) for image, copy in pairs[2 * copies :]),
    )


def near_copy(image: Tensor, draw: np.random.Generator) -> Tensor:
    """The image one pixel aside, up to 15 % brighter or darker, with noise of 2 % of the range of values.

    image: [C, H, W] uint8, or float of any range.
    """
    axis, step = int(draw.integers(1, 3)), int(draw.choice([-1, 1]))
    places = (torch.arange(image.shape[axis]) + step).clamp(0, image.shape[axis] - 1)
    moved = image.float().index_select(axis, places) * draw.uniform(1 - BRIGHTER, 1 + BRIGHTER)
    whole = image.dtype == torch.uint8
    scale = NOISE * (255.0 if whole else float(image.max() - image.min()))
    noisy = moved + torch.from_numpy(draw.normal(0, scale, image.shape)).float()
    return noisy.clamp(0, 255).round().to(image.dtype) if whole else noisy.to(image.dtype)


def rates(found: AbstractSet, real: AbstractSet) -> dict[str, float]:
    hits = len(found & real)
    return {"precision": hits / max(1, len(found)), "recall": hits / len(real), "found": len(found)}


def measure(planted: Planted, seed: int) -> dict[str, object]:
    start = time.process_time()
    found = audit_task(planted.task, seed=seed)
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
    parser.add_argument("--out", type=Path)
    args, rows = parser.parse_args(), []
    for seed in range(args.seeds):
        whole = nas.load_task(args.task, seed=seed, val_fraction=args.held / (args.train + args.held))
        parts = cut(whole.train, args.train), cut(whole.val, args.held), cut(whole.test, args.held)
        task = replace(whole, train=parts[0], val=parts[1], test=parts[2])
        planted = plant(task, mislabels=0.05, copies=args.copies, leaks=args.copies // 2, seed=seed)
        rows.append(measure(planted, seed))
        print(seed, json.dumps(rows[-1]), flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(vars(args) | {"out": None, "seeds": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
