"""How many images each class has in each split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from nas.audit.image_table import Pool
from nas.data.exclusions import SPLITS
from nas.text import counted

UNEQUAL = 3.0
"""Ratio of the largest to the smallest class from which the audit speaks of it."""


def balance(pool: Pool) -> dict[str, dict[str, int]]:
    """Numbers of images by split and class."""
    classes = pool.task.classes
    return {
        name: dict(
            zip(
                classes,
                np.bincount(pool.y[pool.split == part], minlength=len(classes)).tolist(),
                strict=True,
            )
        )
        for part, name in enumerate(SPLITS)
    }


def imbalance(counts: Mapping[str, Mapping[str, int]]) -> float:
    """Images of the largest class over those of the smallest that has any, over all splits; at least 1."""
    totals = [sum(part[name] for part in counts.values()) for name in counts[SPLITS[0]]]
    return max(totals) / max(1, min((total for total in totals if total), default=1))


def remarks(counts: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """What the user should know of the classes."""
    for name, part in counts.items():
        if missing := [label for label, count in part.items() if not count]:
            yield f"{name} has no image of {counted(len(missing), 'class')}: {', '.join(missing[:10])}"
    if sum(any(part[label] for part in counts.values()) for label in counts[SPLITS[0]]) < 2:
        yield "all images are of one class, so there is nothing to tell apart"
    if (ratio := imbalance(counts)) >= UNEQUAL:
        yield f"the largest class has {ratio:.1f} times the images of the smallest"
