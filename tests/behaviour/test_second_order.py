"""What alphas follow: the validation loss as it is, or as it will be after one step of the weights.

The choices of a search of one step are compared with the signs of a finite difference of that loss, in a
network whose first weights are known: mixtures of options that differ in what they are worth now and in what
one step of training makes of them.
"""

import numpy as np
import pytest
import surface
import torch
import torch.nn.functional as F
from torch import nn

import nas

GAINS = np.random.default_rng(26).permutation(np.linspace(-0.2, 1.0, 20))
"""By decision: the fixed factor of its first option. The second's is trained and begins at 0."""
RATE = 5.0
"""Learning rate of the weights. With these gains, half or twice the second term would choose otherwise."""
SEARCH = {
    **{"batch": 500, "lr": RATE, "lr_min": 0.0, "weight_decay": 0.0, "warmup_epochs": 0.0},
    **{"label_smoothing": 0.0, "clip": 0.0, "crop": False, "flip": False, "nesterov": False},
}
"""One step of plain descent on all images."""


def directions():
    """By decision, what a unit of its feature adds to the logits, `[D, 3]`."""
    return torch.from_numpy(np.random.default_rng(1).normal(size=(len(GAINS), 3))).double()


def feature(x, place):
    """What the decision at `place` looks at: three pixels of normalised images, `[B]`."""
    return x.flatten(1)[:, 3 * place : 3 * place + 3].mean(-1)


class Fixed(nn.Module):
    """A feature times a constant."""

    def __init__(self, place):
        super().__init__()
        self.place = place

    def factor(self):
        return float(GAINS[self.place])

    def forward(self, x):
        seen = self.factor() * feature(x, self.place)
        return seen[:, None] * directions()[self.place].to(x)


class Learned(Fixed):
    """A feature times a weight that begins at 0."""

    def __init__(self, place):
        super().__init__(place)
        self.weight = nn.Parameter(torch.zeros(()))

    def factor(self):
        return self.weight


class Sum(nn.Module):
    """All operations on the same images, added up, and a bias."""

    def __init__(self, ops):
        super().__init__()
        self.ops, self.bias = nn.ModuleList(ops), nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return sum(op(x) for op in self.ops) + self.bias


def space():
    def build(choose):
        ops = []
        for place in range(len(GAINS)):
            options = {"fixed": lambda p=place: Fixed(p), "learned": lambda p=place: Learned(p)}
            ops.append(choose.op(f"place{place}", options))
        return Sum(ops)

    return nas.Space("features", build)


def answer(x, alphas, weights, bias):
    """The mixture's logits, written out: alphas `[D, 2]`, weights `[D]`, bias `[3]`."""
    shares = alphas.softmax(-1)
    features = torch.stack([feature(x, place) for place in range(len(GAINS))], dim=1)
    factors = shares[:, 0] * torch.from_numpy(GAINS) + shares[:, 1] * weights
    return (features * factors) @ directions() + bias


def validation_loss(task, alphas, *, steps):
    """After so many steps of the weights, 0 or 1, under these alphas."""
    (x, y), (x_val, y_val) = ((task.normalise(part.x).double(), part.y) for part in (task.train, task.val))
    weights, bias = torch.zeros(len(GAINS)).double(), torch.zeros(3).double()
    if steps:
        weights.requires_grad_(), bias.requires_grad_()
        loss = F.cross_entropy(answer(x, alphas, weights, bias), y)
        down = torch.autograd.grad(loss, (weights, bias))
        weights, bias = (p.detach() - RATE * g for p, g in zip((weights, bias), down, strict=True))
    return F.cross_entropy(answer(x_val, alphas, weights, bias), y_val).item()


def slopes(task, *, steps, h=1e-4):
    """How the loss moves with the first alpha of each decision, by finite differences at equal alphas."""
    found = []
    for place in range(len(GAINS)):
        sides = []
        for shift in (h, -h):
            alphas = torch.zeros(len(GAINS), 2).double()
            alphas[place, 0] = shift
            sides.append(validation_loss(task, alphas, steps=steps))
        found.append((sides[0] - sides[1]) / (2 * h))
    return np.array(found)


def one_step(folder, method, task, *, rate=RATE):
    """The architecture that a search of a single step chooses."""
    settings = {
        "search": SEARCH | {"lr": rate},
        "alphas": {"lr": 0.3, "weight_decay": 0.0},
        "alpha_lr_scale": 1.0,
        "guard": False,
    }
    return surface.search(folder, method, space=space(), on=task, epochs=1, **settings).genotype


@pytest.mark.parametrize(("method", "steps"), [("darts", 0), ("darts2", 1)])
def test_alphas_follow_the_loss_that_their_order_says(tmp_path, method, steps):
    """An option is chosen where the loss falls with its alpha: by Adam's first step all move alike."""
    task = surface.blobs()
    wanted, other = slopes(task, steps=steps), slopes(task, steps=1 - steps)
    clear = np.abs(wanted) > 0.02 * np.abs(wanted).max()
    # The two orders must not choose alike, else this would show nothing.
    assert ((wanted > 0) != (other > 0))[clear].sum() >= 4 and clear.sum() >= len(GAINS) - 3
    chosen = np.array(one_step(tmp_path, method, task))
    assert list(chosen[clear]) == list((wanted > 0).astype(int)[clear])


def test_where_the_weights_stand_still_both_orders_choose_alike(tmp_path):
    """The learning rate of the weights is what the second order looks ahead by (Liu et al. 2019, §2.3)."""
    found, task = [], surface.blobs()
    for method in ("darts", "darts2"):
        found.append(one_step(tmp_path / method, method, task, rate=1e-9))
    assert found[0] == found[1] == tuple(int(slope > 0) for slope in slopes(task, steps=0))
