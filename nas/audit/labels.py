"""Confident learning: which labels are probably wrong, and how many (Northcutt, Jiang, Chuang 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from nas.audit.findings import Confusion, Group, Labels
from nas.audit.image_table import Pool
from nas.audit.predictions import FOLDS, out_of_fold
from nas.data.arrays import Array
from nas.data.arrays import Labels as Numbers
from nas.data.exclusions import Suspect
from nas.errors import ConfigError, unknown
from nas.evaluate.metrics import wilson

Backend = Literal["own", "cleanlab"]
BACKENDS: tuple[Backend, ...] = ("own", "cleanlab")
_CONFUSED = 20


def named_backend(name: str) -> Backend:
    """The backend of this name.

    Raises:
        ConfigError: when there is none.
    """
    for backend in BACKENDS:
        if backend == name:
            return backend
    raise ConfigError(unknown("backend", name, BACKENDS))


def mislabels(
    pool: Pool, features: Tensor, groups: Sequence[Group], *, seed: int, backend: Backend
) -> tuple[Labels, list[Suspect]]:
    """How far labels can be trusted, and the images that probably have a wrong one, the surest first.

    Classes of fewer than five different images are not judged: no network can learn them from the others.
    """
    copies = np.arange(len(pool))
    for group in groups:
        copies[list(group.members)] = group.members[0]
    fits = [len(np.unique(copies[pool.y == label])) >= FOLDS for label in range(pool.task.num_classes)]
    classes = np.flatnonzero(fits)
    left = [name for name, fit in zip(pool.task.classes, fits, strict=True) if not fit]
    reason = f"labels of classes with fewer than {FOLDS} images are not judged: {', '.join(left[:10])}"
    if len(classes) < 2:
        return Labels(reason=f"labels are not judged: fewer than two classes have {FOLDS} images"), []
    chosen = np.flatnonzero(np.isin(pool.y, classes))
    y = np.searchsorted(classes, pool.y[chosen])
    odds = out_of_fold(features[chosen], y, copies[chosen], seed)
    joint = confident_joint(y, odds)
    found = by_cleanlab(y, odds) if backend == "cleanlab" else prune(y, odds, joint)
    names = [pool.task.classes[label] for label in classes]
    suspects = [_suspect(pool, int(chosen[i]), odds[i], int(y[i]), names) for i in found]
    return _told(y, odds, joint, names, reason if left else ""), suspects


def confident_joint(y: Numbers, odds: Array) -> Array:
    """The joint distribution [C, C] of given and true labels, equations 1 to 3 of the paper.

    C_ij counts images of given class i whose probability of j reaches t_j, the mean probability of j among
    images given as j, the largest where several do; rows are scaled to the numbers of each given class.

    y: [N] given. odds: [N, C] out-of-fold probabilities.
    """
    classes = odds.shape[1]
    thresholds = np.array([odds[y == label, label].mean() for label in range(classes)])
    reached = odds >= thresholds
    sure = reached.any(1)
    best = np.where(reached, odds, -1).argmax(1)
    counts = np.zeros((classes, classes))
    np.add.at(counts, (y[sure], best[sure]), 1)
    rows = counts.sum(1, keepdims=True)
    given = np.bincount(y, minlength=classes)[:, None]
    joint = np.where(rows > 0, counts / np.maximum(rows, 1), np.eye(classes)) * given
    shared: Array = joint / joint.sum()
    return shared


def prune(y: Numbers, odds: Array, joint: Array) -> Numbers:
    """Images to look at, the surest first: "prune by noise rate", section 3.2 of the paper.

    Of each pair i, j of different classes, the N Q_ij images given as i with the largest margin of j's
    probability over i's; but only where the likeliest class is not the given one (as cleanlab does). They are
    ranked by the normalised margin, the given class's probability less the largest other.
    """
    wrong = np.zeros(len(y), bool)
    for given, true in zip(*np.nonzero(joint), strict=True):
        count = round(float(joint[given, true]) * len(y))
        if given != true and count:
            members = np.flatnonzero(y == given)
            margin = odds[members, given] - odds[members, true]
            wrong[members[np.argsort(margin, kind="stable")[:count]]] = True
    wrong &= odds.argmax(1) != y
    found = np.flatnonzero(wrong)
    ranked: Numbers = found[np.argsort(_margins(y, odds)[found], kind="stable")]
    return ranked


def by_cleanlab(y: Numbers, odds: Array) -> Numbers:
    """The same by cleanlab's `find_label_issues`."""
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise ConfigError(
            "backend cleanlab is not installed; install it with: pip install 'nas-engine[cleanlab]', or use "
            "backend own"
        ) from error
    found: Numbers = find_label_issues(
        y,
        odds,
        filter_by="prune_by_noise_rate",
        return_indices_ranked_by="normalized_margin",
        n_jobs=1,
    )
    return found


def _margins(y: Numbers, odds: Array) -> Array:
    rows = np.arange(len(y))
    others = odds.copy()
    others[rows, y] = -1
    margins: Array = odds[rows, y] - others.max(1)
    return margins


def _suspect(pool: Pool, number: int, odds: Array, given: int, names: Sequence[str]) -> Suspect:
    best = int(odds.argmax())
    reason = f"predicted {names[best]} with {odds[best]:.2f}, {names[given]} with {odds[given]:.2f}"
    return pool.suspect(
        number, "mislabel", reason=reason, score=float(odds[best] - odds[given]), suggested=names[best]
    )


def _told(y: Numbers, odds: Array, joint: Array, names: Sequence[str], reason: str) -> Labels:
    noise = float(joint.sum() - np.trace(joint))
    low, high = wilson(noise, len(y))
    rates = 1 - np.diag(joint) / np.maximum(joint.sum(1), 1e-12)
    pairs = [
        Confusion(names[i], names[j], round(float(joint[i, j]) * len(y)))
        for i, j in zip(*np.nonzero(joint), strict=True)
        if i != j
    ]
    pairs = sorted((pair for pair in pairs if pair.count), key=lambda pair: -pair.count)
    return Labels(
        noise=round(noise, 6),
        low=round(low, 6),
        high=round(high, 6),
        by_class={name: round(float(rate), 6) for name, rate in zip(names, rates, strict=True)},
        confused=tuple(pairs[:_CONFUSED]),
        accuracy=round(float((odds.argmax(1) == y).mean()), 6),
        judged=len(y),
        reason=reason,
    )
