"""Out-of-fold predictions: what small networks say of images that they were not trained on."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.data.arrays import Array, Labels
from nas.seeding import derive, isolated, rng

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
