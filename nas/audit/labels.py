"""Confident learning: which labels are probably wrong, and how many (Northcutt, Jiang, Chuang 2021)."""

from __future__ import annotations

from collections.abc import Sequence
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
class LabelErrors:
    """How far labels can be trusted.

    noise, low, high: estimated share of wrong labels and its 95 % interval; what the predictions get wrong
      counts too, so the truth is rather below.
    confused: pairs of classes, given and suggested, with the estimated number of such images, worst first.
    judged: images that could be judged. reason: why others, or all, could not be; empty if all were.
    """

    noise: float = 0.0
    low: float = 0.0
    high: float = 0.0
    confused: tuple[tuple[str, str, int], ...] = ()
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
    suspects = []
    for i in prune(y, odds, joint):
        best, given = int(odds[i].argmax()), int(y[i])
        words = f"predicted {names[best]} with {odds[i, best]:.2f}, {names[given]} with {odds[i, given]:.2f}"
        score = float(odds[i, best] - odds[i, given])
        suspects.append(
            table.suspect(int(chosen[i]), "mislabel", reason=words, score=score, suggested=names[best])
        )
    noise = float(joint.sum() - np.trace(joint))
    low, high = wilson(noise, len(y))
    pairs = (
        (names[i], names[j], round(float(joint[i, j]) * len(y)))
        for i, j in np.ndindex(*joint.shape)
        if i != j
    )
    confused = sorted((pair for pair in pairs if pair[2]), key=lambda pair: -pair[2])[:_CONFUSED]
    return LabelErrors(noise, low, high, tuple(confused), len(y), reason if left else ""), suspects


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
    joint: Array = np.where(rows > 0, counts / np.maximum(rows, 1), np.eye(classes)) * given / len(y)
    return joint


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
