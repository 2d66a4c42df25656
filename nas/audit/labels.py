"""Confident learning: which labels are probably wrong, and how many (Northcutt, Jiang, Chuang 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nas.audit.duplicates import Group
from nas.audit.images import ImageTable
from nas.data.arrays import Array, Labels
from nas.data.exclusions import Suspect
from nas.evaluate.significance import wilson
from nas.seeding import derive

FOLDS = 5
_CONFUSED = 20


@dataclass(frozen=True, slots=True)
class Confusion:
    """Images of one class that probably are of another; count is an estimate."""

    given: str
    suggested: str
    count: int


@dataclass(frozen=True, slots=True)
class LabelErrors:
    """How far labels can be trusted.

    noise, low, high: estimated share of wrong labels and its 95 % interval; what the predictions get wrong
      counts too, so the truth is rather below. by_class: the share in each class.
    confused: the pairs of classes with most wrong labels, worst first.
    accuracy: of the cross-validated predictions against the given labels.
    judged: images that could be judged. reason: why others, or all, could not be; empty if all were.
    """

    noise: float = 0.0
    low: float = 0.0
    high: float = 0.0
    by_class: Mapping[str, float] | None = None
    confused: tuple[Confusion, ...] = ()
    accuracy: float = 0.0
    judged: int = 0
    reason: str = ""


def mislabels(
    table: ImageTable, features: Array, groups: Sequence[Group], *, seed: int
) -> tuple[LabelErrors, list[Suspect]]:
    """How far labels can be trusted, and the images that probably have a wrong one, the surest first.

    Classes of fewer than five different images are not judged: nothing can learn them from the others.

    features: [N, D] of the table's images. groups: of copies, which are never on both sides of a division.
    """
    copies = np.arange(len(table))
    for group in groups:
        copies[list(group.members)] = group.members[0]
    fits = [len(np.unique(copies[table.y == label])) >= FOLDS for label in range(table.task.num_classes)]
    classes = np.flatnonzero(fits)
    left = [name for name, fit in zip(table.task.classes, fits, strict=True) if not fit]
    reason = f"labels of classes with fewer than {FOLDS} images are not judged: {', '.join(left[:10])}"
    if len(classes) < 2:
        return LabelErrors(reason=f"labels are not judged: fewer than two classes have {FOLDS} images"), []
    chosen = np.flatnonzero(np.isin(table.y, classes))
    y = np.searchsorted(classes, table.y[chosen])
    odds = out_of_fold(features[chosen], y, copies[chosen], seed)
    joint = confident_joint(y, odds)
    names = [table.task.classes[label] for label in classes]
    suspects = [_suspect(table, int(chosen[i]), odds[i], int(y[i]), names) for i in prune(y, odds, joint)]
    return _summed_up(y, odds, joint, names, reason if left else ""), suspects


def out_of_fold(features: Array, y: Labels, copies: Labels, seed: int) -> Array:
    """Probabilities [N, C] for each image by logistic regressions that saw neither it nor a copy of it.

    features: [N, D]. y: [N] in 0..C-1. copies: [N] number of each image's group of copies.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=derive(seed, "folds") % 2**32)
    model = LogisticRegression(max_iter=1000, tol=1e-3)
    odds: Array = cross_val_predict(model, features, y, groups=copies, cv=folds, method="predict_proba")
    return odds


def confident_joint(y: Labels, odds: Array) -> Array:
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


def prune(y: Labels, odds: Array, joint: Array) -> Labels:
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
    found = np.flatnonzero(wrong & (odds.argmax(1) != y))
    margins = odds[found, y[found]] - odds[found].max(1)
    ranked: Labels = found[np.argsort(margins, kind="stable")]
    return ranked


def _suspect(table: ImageTable, number: int, odds: Array, given: int, names: Sequence[str]) -> Suspect:
    best = int(odds.argmax())
    reason = f"predicted {names[best]} with {odds[best]:.2f}, {names[given]} with {odds[given]:.2f}"
    return table.suspect(
        number, "mislabel", reason=reason, score=float(odds[best] - odds[given]), suggested=names[best]
    )


def _summed_up(y: Labels, odds: Array, joint: Array, names: Sequence[str], reason: str) -> LabelErrors:
    noise = float(joint.sum() - np.trace(joint))
    low, high = wilson(noise, len(y))
    rates = 1 - np.diag(joint) / np.maximum(joint.sum(1), 1e-12)
    pairs = [
        Confusion(names[i], names[j], round(float(joint[i, j]) * len(y)))
        for i, j in zip(*np.nonzero(joint), strict=True)
        if i != j
    ]
    pairs = sorted((pair for pair in pairs if pair.count), key=lambda pair: -pair.count)
    return LabelErrors(
        noise=round(noise, 6),
        low=round(low, 6),
        high=round(high, 6),
        by_class={name: round(float(rate), 6) for name, rate in zip(names, rates, strict=True)},
        confused=tuple(pairs[:_CONFUSED]),
        accuracy=round(float((odds.argmax(1) == y).mean()), 6),
        judged=len(y),
        reason=reason,
    )
