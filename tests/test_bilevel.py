"""The bilevel search: gradients against finite differences, which data moves what, resumption to the bit."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from nas.cell import Cell
from nas.errors import ConfigError
from nas.oneshot.bilevel import PUBLISHED, Bilevel, BilevelLoop
from nas.oneshot.supernet import Supernet
from nas.ops import Zero
from nas.registry import load
from nas.seeding import isolated
from nas.space import Space
from nas.task import task_from_arrays

RECIPE = dataclasses.replace(PUBLISHED, epochs=4, batch=16, lr=0.1)


def make_task(*, val_labels=0):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (64, 8, 8), dtype=np.uint8)
    task = task_from_arrays(x, np.arange(64) % 3, x[:12], np.arange(12) % 3, flip=False)
    val = dataclasses.replace(task.val, y=(task.val.y + val_labels) % 3)
    return dataclasses.replace(task, val=val)


def smooth():
    """A cell of operations that are differentiable everywhere, so that finite differences mean something."""

    def conv(kernel):
        layers = [nn.Tanh(), nn.Conv2d(4, 4, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(4)]
        return nn.Sequential(*layers)

    options = {
        "none": lambda: Zero(4),
        "skip": nn.Identity,
        "one": lambda: conv(1),
        "three": lambda: conv(3),
        "pool": lambda: nn.AvgPool2d(3, 1, 1),
    }

    def build(choose):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            Cell("cell", 1, 3, lambda i, j: choose.op(f"{i}->{j}", options)),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 3),
        )

    return Space("smooth", build)


def make(*, order=1, task=None, recipe=RECIPE, space=None):
    with isolated(0, "test"):
        supernet = Supernet(space or load("nasbench201", width=4, cells=1, in_channels=1, classes=3))
    return BilevelLoop(supernet, task or make_task(), Bilevel(recipe, order), seed=3)


def alphas(loop):
    return [alpha.detach().clone() for alpha in loop.alphas]


def weights(loop):
    return {name: value.clone() for name, value in loop.supernet.network.state_dict().items()}


def equal(a, b):
    pairs = zip(a.values(), b.values(), strict=True) if isinstance(a, dict) else zip(a, b, strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


# -- the second order against finite differences --------------------------------------------------------


class Doubles:
    """Batches whose images are float64."""

    def __init__(self, batches):
        self.batches = batches

    def at(self, step):
        x, y, generator = self.batches.at(step)
        return x.double(), y, generator


def exact(monkeypatch, *, order, steps):
    """A loop that computes in float64 throughout, after a few steps, so that momentum is not zero."""
    loop = make(order=order, space=smooth())
    loop.supernet.double()
    loop.loop._batches, loop._validation = Doubles(loop.loop._batches), Doubles(loop._validation)
    # The losses are taken of `logits.float()`, which would round what is differentiated here.
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    for _ in range(steps):
        loop.advance()
    return loop


def unrolled_loss(loop):
    """L_val(w - ξ (momentum · buffer + ∇w L_train(w, α) + decay · w), α), straight from the definition."""
    recipe, rate = loop.settings.weights, loop.loop.next_lr
    parameters = list(loop.loop.parameters.values())
    saved = [p.detach().clone() for p in parameters]
    gradient = torch.autograd.grad(loop.loop.loss(), parameters)
    buffers = [loop.loop._optimizer.state[p].get("momentum_buffer", 0) for p in parameters]
    with torch.no_grad():
        for p, g, buffer in zip(parameters, gradient, buffers, strict=True):
            p.sub_(rate * (recipe.momentum * buffer + g + recipe.weight_decay * p))
        value = loop.validation_loss().item()
        for p, old in zip(parameters, saved, strict=True):
            p.copy_(old)
    return value


def numerical(loop, entries, *, h=1e-4):
    found = []
    for row, column in entries:
        sides = []
        for shift in (h, -2 * h):
            with torch.no_grad():
                loop.alphas[0][row, column] += shift
            sides.append(unrolled_loss(loop))
        with torch.no_grad():
            loop.alphas[0][row, column] += h
        found.append((sides[0] - sides[1]) / (2 * h))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("steps", [0, 3])
def test_the_second_order_is_the_derivative_of_the_unrolled_loss(monkeypatch, steps):
    loop = exact(monkeypatch, order=2, steps=steps)
    entries = [(0, 0), (1, 2), (3, 3), (5, 4), (2, 1), (4, 0)]
    rows, columns = zip(*entries, strict=True)
    wanted = numerical(loop, entries)
    second = loop.alpha_gradient()[0][rows, columns]
    loop.settings = dataclasses.replace(loop.settings, order=1)
    first = loop.alpha_gradient()[0][rows, columns]
    torch.testing.assert_close(second, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().min().item())
    assert ((first - wanted).abs() > 1e-2 * wanted.abs()).sum() >= 4


def test_the_first_order_is_the_gradient_of_the_validation_loss(monkeypatch):
    loop = exact(monkeypatch, order=1, steps=2)
    gradient = loop.alpha_gradient()[0]
    for row, column in ((0, 1), (4, 3)):
        sides = []
        for shift in (1e-5, -2e-5):
            with torch.no_grad():
                loop.alphas[0][row, column] += shift
            sides.append(loop.validation_loss().item())
        with torch.no_grad():
            loop.alphas[0][row, column] += 1e-5
        assert gradient[row, column].item() == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-5)


def test_the_second_order_leaves_weights_and_statistics_as_they_were():
    loop = make(order=2)
    for _ in range(2):
        loop.advance()
    before, momentum = weights(loop), loop.loop.state()["momentum"]
    momentum = {name: slot.clone() for name, slot in momentum.items()}
    gradients = [p.grad.clone() for p in loop.supernet.weights()]
    loop.alpha_gradient()
    assert equal(weights(loop), before)
    assert equal(loop.loop.state()["momentum"], momentum)
    assert equal([p.grad for p in loop.supernet.weights()], gradients)


def test_a_failure_in_the_second_order_leaves_the_weights_too(monkeypatch):
    loop = make(order=2)
    loop.advance()
    before = weights(loop)

    def fail():
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "validation_loss", fail)
    with pytest.raises(KeyboardInterrupt):
        loop.alpha_gradient()
    assert equal(weights(loop), before)


@pytest.mark.parametrize("order", [1, 2])
def test_the_gradient_does_not_depend_on_how_often_it_is_asked(order):
    loop = make(order=order)
    loop.advance()
    assert equal(loop.alpha_gradient(), loop.alpha_gradient())


# -- what moves what ----------------------------------------------------------------------------------


def test_alphas_follow_the_validation_split_and_weights_the_training_split():
    one, other = make(), make(task=make_task(val_labels=1))
    assert one.loop.loss() == other.loop.loss()
    assert not equal(one.alpha_gradient(), other.alpha_gradient())


@pytest.mark.parametrize("order", [1, 2])
def test_a_step_moves_the_alphas_first_and_then_the_weights_under_the_new_ones(order):
    loop, twin = make(order=order), make(order=order)
    start, gradient = alphas(twin), twin.alpha_gradient()
    adam = torch.optim.Adam(twin.alphas, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    for alpha, g in zip(twin.alphas, gradient, strict=True):
        alpha.grad = g
    adam.step()
    adam.zero_grad()
    twin.loop.advance()
    loop.advance()
    assert equal(alphas(loop), alphas(twin)) and not equal(alphas(loop), start)
    assert equal(weights(loop), weights(twin))


def test_what_the_pass_of_the_weights_leaves_on_the_alphas_is_not_used():
    loop, twin = make(), make()
    loop.advance()
    twin.advance()
    for alpha in twin.alphas:
        alpha.grad = torch.full_like(alpha, 7.0)
    loop.advance()
    twin.advance()
    assert equal(alphas(twin), alphas(loop))


@pytest.mark.parametrize("order", [1, 2])
def test_saved_and_restored_is_uninterrupted(order):
    whole = make(order=order)
    for _ in range(5):
        whole.advance()
    first, second = make(order=order), make(order=order)
    for _ in range(3):
        first.advance()
    second.restore(3, first.state())
    for _ in range(2):
        second.advance()
    assert equal(alphas(second), alphas(whole))
    assert equal(weights(second), weights(whole))


def test_alphas_without_influence_have_no_gradient():
    def build(choose):
        return nn.Sequential(
            Cell(
                "cell",
                1,
                2,
                lambda i, j: choose.op("x", {"none": lambda: Zero(1)}) if j == 2 else nn.Identity(),
            ),
            nn.Flatten(),
            nn.Linear(64, 3),
        )

    loop = make(space=Space("nothing", build))
    assert [gradient.tolist() for gradient in loop.alpha_gradient()] == [[[0.0]]]


# -- settings -----------------------------------------------------------------------------------------


def test_the_published_settings():
    settings = Bilevel()
    recipe = settings.weights
    assert (recipe.epochs, recipe.batch, recipe.lr, recipe.lr_min) == (50, 64, 0.025, 0.001)
    assert (recipe.momentum, recipe.nesterov, recipe.weight_decay, recipe.clip) == (0.9, False, 3e-4, 5.0)
    assert (settings.alpha_lr, settings.alpha_betas, settings.alpha_weight_decay) == (
        3e-4,
        (0.5, 0.999),
        1e-3,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": 3}, "order is 3, but must be 1 or 2"),
        ({"alpha_lr": 0.0}, "alpha_lr is 0.0"),
        ({"alpha_lr": float("inf")}, "alpha_lr is inf"),
        ({"alpha_lr": float("nan")}, "alpha_lr is nan"),
        ({"alpha_weight_decay": -1.0}, "alpha_weight_decay -1.0; wanted finite numbers"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        Bilevel(**change)
