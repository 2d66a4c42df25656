"""Confident learning: which labels are probably wrong, and how many (Northcutt, Jiang, Chuang 2021)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.audit.findings import Confusion, Group, LabelErrors
from nas.audit.image_features import Pool, nearest
from nas.data.arrays import Array, Labels
from nas.data.exclusions import SPLITS, Suspect
from nas.errors import ConfigError, unknown
from nas.evaluate.significance import wilson
from nas.seeding import derive, isolated, rng
from nas.text import counted

FOLDS, REPEATS = 5, 2
_WIDTH, _DROPOUT, _SMOOTHING = 256, 0.5, 0.1
_EPOCHS, _BATCH, _LR, _DECAY = 15, 128, 3e-3, 1e-2
_FEWEST_STEPS = 100


def out_of_fold(features: Tensor, y: Labels, copies: Labels, seed: int) -> Array:
    """Probabilities [N, C] for each image by networks that saw neither it nor a copy of it.

    Two divisions into five folds are averaged. The network is a perceptron of two hidden layers of 256 with
    dropout 0.5 and label smoothing 0.1, which keep it from learning wrong labels by heart.

    features: [N, D]. y: [N] in 0..C-1, of each class at least five groups. copies: [N] number of each image's
      group of copies.
    """
    total = np.zeros((len(y), int(y.max()) + 1))
    features = features / features.std().clamp_min(1e-6)  # one scale: minor axes must stay minor
    for repeat in range(REPEATS):
        fold = deal(y, copies, rng(seed, "folds", repeat))
        for part in range(FOLDS):
            inside = torch.from_numpy(np.flatnonzero(fold == part))
            outside = torch.from_numpy(np.flatnonzero(fold != part))
            with isolated(seed, "audit", repeat, part):
                network = _fitted(features[outside], torch.from_numpy(y)[outside], total.shape[1])
            with torch.no_grad():
                total[inside] += network.eval()(features[inside]).softmax(1).double().numpy()
    return total / REPEATS


def deal(y: Labels, copies: Labels, draw: np.random.Generator) -> Labels:
    """The fold of each image, [N] in 0..FOLDS-1: groups of copies whole, dealt out class by class."""
    groups, first, index = np.unique(copies, return_index=True, return_inverse=True)
    order = draw.permutation(len(groups))
    order = order[np.argsort(y[first][order], kind="stable")]
    fold = np.empty(len(groups), np.int64)
    fold[order] = np.arange(len(groups)) % FOLDS
    dealt: Labels = fold[index]
    return dealt


def _fitted(x: Tensor, y: Tensor, classes: int) -> nn.Module:
    """A network trained with AdamW and one cycle of the learning rate."""
    network = nn.Sequential(
        nn.Linear(x.shape[1], _WIDTH),
        nn.ReLU(),
        nn.Dropout(_DROPOUT),
        nn.Linear(_WIDTH, _WIDTH),
        nn.ReLU(),
        nn.Dropout(_DROPOUT),
        nn.Linear(_WIDTH, classes),
    )
    batch = min(_BATCH, len(x))
    steps = len(x) // batch
    epochs = max(_EPOCHS, math.ceil(_FEWEST_STEPS / steps))
    optimizer = torch.optim.AdamW(network.parameters(), _LR, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, total_steps=epochs * steps)
    draw = torch.Generator().manual_seed(derive(torch.initial_seed(), "order"))
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=draw)[: steps * batch].view(steps, batch):
            loss = F.cross_entropy(network(x[chosen]), y[chosen], label_smoothing=_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return network


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
) -> tuple[LabelErrors, list[Suspect]]:
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
        return LabelErrors(reason=f"labels are not judged: fewer than two classes have {FOLDS} images"), []
    chosen = np.flatnonzero(np.isin(pool.y, classes))
    y = np.searchsorted(classes, pool.y[chosen])
    odds = out_of_fold(features[chosen], y, copies[chosen], seed)
    joint = confident_joint(y, odds)
    found = by_cleanlab(y, odds) if backend == "cleanlab" else prune(y, odds, joint)
    names = [pool.task.classes[label] for label in classes]
    suspects = [_suspect(pool, int(chosen[i]), odds[i], int(y[i]), names) for i in found]
    return _told(y, odds, joint, names, reason if left else ""), suspects


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
    wrong &= odds.argmax(1) != y
    found = np.flatnonzero(wrong)
    ranked: Labels = found[np.argsort(_margins(y, odds)[found], kind="stable")]
    return ranked


def by_cleanlab(y: Labels, odds: Array) -> Labels:
    """The same by cleanlab's `find_label_issues`."""
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise ConfigError(
            "backend cleanlab is not installed; install it with: pip install 'nas-engine[cleanlab]', or use "
            "backend own"
        ) from error
    found: Labels = find_label_issues(
        y,
        odds,
        filter_by="prune_by_noise_rate",
        return_indices_ranked_by="normalized_margin",
        n_jobs=1,
    )
    return found


def _margins(y: Labels, odds: Array) -> Array:
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


def _told(y: Labels, odds: Array, joint: Array, names: Sequence[str], reason: str) -> LabelErrors:
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


NEIGHBOURS, CUT = 10, 4.0
_FEWEST = 20


def outliers(pool: Pool, features: Tensor) -> list[Suspect]:
    """Images far from their 10 nearest neighbours, and those of one value only, the most suspect first.

    The distance is the mean over the neighbours in feature space (Angiulli and Pizzuti, Fast outlier
    detection in high dimensional spaces, 2002, with the mean for their sum). An image is suspect when the
    logarithm of its distance lies more than `CUT` robust deviations above the median, the deviation being
    1.4826 times the median distance from the median of the upper half: the lower half holds copies and
    crowded classes, which say nothing of how far regular images may be.

    features: [N, D] of the pool's images. Fewer than 20 images are not judged.
    """
    blank = [
        pool.suspect(number, "outlier", reason="every pixel has the same value", score=99.0)
        for number in np.flatnonzero(pool.is_blank).tolist()
    ]
    if len(pool) < _FEWEST:
        return blank
    scores = robust_scores(nearest(features, NEIGHBOURS)[0].mean(1).numpy())
    far = [number for number in np.flatnonzero((scores > CUT) & ~pool.is_blank).tolist()]
    far.sort(key=lambda number: -scores[number])
    return blank + [
        pool.suspect(number, "outlier", reason="far from all other images", score=scores[number])
        for number in far
    ]


def robust_scores(distances: Array) -> Array:
    """How many robust deviations each logarithm of a distance lies above the median, [N]."""
    logs = np.log(np.maximum(distances, 1e-9))
    middle = np.median(logs)
    spread = 1.4826 * np.median(logs[logs >= middle] - middle)
    scores: Array = (logs - middle) / max(spread, 1e-9)
    return scores
