"""A step of a search: gradients against finite differences, what moves what, resumption to the bit."""

import dataclasses

import pytest
import torch
from one_stage import one_stage
from smooth import RECIPE, make_task, smooth
from trainings import double

from nas.errors import ConfigError
from nas.oneshot.alpha_optimizer import Adam, ExponentiatedGradient
from nas.oneshot.darts_step import alpha_gradient
from nas.oneshot.methods import Method
from nas.oneshot.oles import Freezing
from nas.oneshot.progressive import SingleStage
from nas.oneshot.regularizers import BetaDecay, L2Anchor
from nas.oneshot.relaxations import (
    AdversarialPerturbation,
    Dirichlet,
    GumbelHard,
    RandomPerturbation,
)
from nas.oneshot.search import Search
from nas.space.loading import load
from nas.training.memory_estimate import peak_memory


def make(*, order=1, task=None, recipe=RECIPE, space=None, steps=0, **parts):
    method = Method("test", weights=recipe, order=order, **parts)
    return advanced(Search(space or one_stage(classes=3), task or make_task(), method, seed=3), steps)


def advanced(search, steps):
    for _ in range(steps):
        search.advance()
    return search


def gradient(search):
    return alpha_gradient(search, search.loop.begin(), search.validation.at(search.loop.step))


def training_loss(search):
    return search.training_loss(search.loop.begin())


def validation_loss(search):
    return search.validation_loss(search.validation.at(search.loop.step))


def three_stages():
    """Where feature maps outweigh the weights."""
    return load("nasbench201", width=4, cells=1, in_channels=1, classes=3)


def alphas(search):
    return [alpha.detach().clone() for alpha in search.supernet.architecture()]


def weights(search):
    return [value.clone() for value in search.supernet.network.state_dict().values()]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# -- gradients against finite differences ---------------------------------------------------------------


def exact(monkeypatch, *, order, steps):
    """A search that computes in float64 throughout, after a few steps, so that momentum is not zero."""
    search = make(order=order, space=smooth())
    double(search, monkeypatch)
    return advanced(search, steps)


def unrolled_loss(search):
    """L_val(w - ξ (momentum · buffer + ∇w L_train(w, α) + decay · w), α), straight from the definition."""
    names, parameters = list(search.loop.parameters), list(search.loop.parameters.values())
    saved = [p.detach().clone() for p in parameters]
    found = torch.autograd.grad(training_loss(search), parameters)
    recipe, rate = search.method.weights, search.loop.lr
    buffers = [search.loop.state()["momentum"].get(name, 0) for name in names]
    with torch.no_grad():
        for p, g, buffer in zip(parameters, found, buffers, strict=True):
            p.sub_(rate * (recipe.momentum * buffer + g + recipe.weight_decay * p))
        value = validation_loss(search).item()
        for p, old in zip(parameters, saved, strict=True):
            p.copy_(old)
    return value


def numerical(search, entries, loss, *, h):
    found = []
    for row, column in entries:
        sides = []
        for shift in (h, -2 * h):
            with torch.no_grad():
                search.supernet.alphas[row, column] += shift
            sides.append(loss(search))
        with torch.no_grad():
            search.supernet.alphas[row, column] += h
        found.append((sides[0] - sides[1]) / (2 * h))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("steps", [0, 3])
def test_the_second_order_is_the_derivative_of_the_unrolled_loss(monkeypatch, steps):
    search = exact(monkeypatch, order=2, steps=steps)
    entries = [(0, 0), (1, 2), (3, 3), (5, 4), (2, 1), (4, 0)]
    rows, columns = zip(*entries, strict=True)
    wanted = numerical(search, entries, unrolled_loss, h=1e-4)
    second = gradient(search)[0][rows, columns]
    search.method = dataclasses.replace(search.method, order=1)
    first = gradient(search)[0][rows, columns]
    torch.testing.assert_close(second, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().min().item())
    assert ((first - wanted).abs() > 1e-2 * wanted.abs()).sum() >= 4


def test_the_first_order_is_the_gradient_of_the_validation_loss(monkeypatch):
    search = exact(monkeypatch, order=1, steps=2)
    wanted = numerical(search, [(0, 1), (4, 3)], lambda s: validation_loss(s).item(), h=1e-5)
    torch.testing.assert_close(gradient(search)[0][(0, 4), (1, 3)], wanted, rtol=1e-5, atol=1e-9)


def test_the_second_order_leaves_weights_and_statistics_as_they_were(monkeypatch):
    search = make(order=2, steps=2)
    before, momentum = weights(search), [m.clone() for m in search.loop.state()["momentum"].values()]
    own = [p.grad.clone() for p in search.supernet.weights()]
    gradient(search)
    assert equal(weights(search), before)
    assert equal(search.loop.state()["momentum"].values(), momentum)
    assert equal([p.grad for p in search.supernet.weights()], own)

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(search, "validation_loss", fail)
    with pytest.raises(KeyboardInterrupt):
        gradient(search)
    assert equal(weights(search), before)


def test_the_passes_of_which_a_difference_is_taken_are_in_float32_whatever_the_recipe_says():
    """It is smaller than what bfloat16 rounds off."""
    search, halves = make(order=2, recipe=dataclasses.replace(RECIPE, precision="bfloat16")), []
    search.supernet.network.register_forward_pre_hook(
        lambda *_: halves.append(torch.is_autocast_enabled("cpu"))
    )
    second = torch.cat([g.flatten() for g in gradient(search)])
    assert halves == [True, True, False, False]
    wanted, first = (torch.cat([g.flatten() for g in gradient(make(order=o))]) for o in (2, 1))
    assert (second - wanted).norm() < 0.5 * (first - wanted).norm()


# -- what moves what ----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2])
def test_a_step_moves_the_alphas_first_and_then_the_weights_under_the_new_ones(order):
    search, twin = make(order=order), make(order=order)
    start, found = alphas(twin), gradient(twin)
    adam = torch.optim.Adam(twin.supernet.architecture(), lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    for alpha, g in zip(twin.supernet.architecture(), found, strict=True):
        alpha.grad = g
    adam.step()
    twin.moves_alphas = False
    twin.advance()
    search.advance()
    assert equal(alphas(search), alphas(twin)) and not equal(alphas(search), start)
    assert equal(weights(search), weights(twin))


PARTS = {
    "second-hard-clipped": {"relaxation": GumbelHard(), "order": 2, "update": Adam(clip=0.1)},
    "second-exponentiated-edges": {"update": ExponentiatedGradient(0.5), "edge_norm": True, "order": 2},
    "random-beta-frozen": {
        "perturbation": RandomPerturbation(),
        "regularizers": (BetaDecay(),),
        "freezing": Freezing(steps=1, threshold=0.9),
    },
    "partial-dirichlet-recomputed": {
        "relaxation": Dirichlet(),
        "staging": SingleStage(2),
        "edge_norm": True,
        "perturbation": AdversarialPerturbation(steps=2),
        "regularizers": (L2Anchor(),),
        "checkpointing": True,
    },
}
"""Combinations that no method has by its name."""


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_every_part_moves_all_and_is_resumed_to_the_bit(parts):
    whole = make(**parts)
    start, before = alphas(whole), weights(whole)
    advanced(whole, 4)
    assert not any(torch.equal(a, b) for a, b in zip(alphas(whole), start, strict=True))
    assert not equal(weights(whole), before)
    second = make(**parts)
    second.go_to(make(steps=2, **parts).moment())
    advanced(second, 2)
    assert equal(alphas(second), alphas(whole)) and equal(weights(second), weights(whole))


def test_a_regulariser_adds_its_own_gradient():
    plain, decayed = make(), make(regularizers=(BetaDecay(30.0),))
    plain.loop.step = decayed.loop.step = 4
    decayed.supernet.progress.fill_(0.25)
    theirs, ours = gradient(plain)[0], gradient(decayed)[0]
    rows = decayed.supernet.alphas.detach().softmax(-1)
    torch.testing.assert_close(ours - theirs, 30.0 * 0.25 * rows / len(rows), atol=1e-5, rtol=1e-3)


def test_an_exponentiated_gradient_is_that_of_the_mixture():
    """∂L/∂θ with each weight on its own: the chain rule through the softmax gives the alphas' gradient."""
    plain = make()
    by_alpha, by_weight = gradient(plain)[0], gradient(make(update=ExponentiatedGradient(0.1)))[0]
    theta = plain.supernet.alphas.detach().softmax(-1)
    found = theta * (by_weight - (theta * by_weight).sum(-1, keepdim=True))
    torch.testing.assert_close(found, by_alpha)


def test_recomputing_cells_changes_nothing_but_the_memory():
    recipe = dataclasses.replace(RECIPE, batch=32)
    plain, again = (
        make(recipe=recipe, space=three_stages(), checkpointing=c, steps=3) for c in (False, True)
    )
    torch.testing.assert_close(weights(again), weights(plain))
    torch.testing.assert_close(alphas(again), alphas(plain))
    peaks = []
    for search in (plain, again):
        with peak_memory(torch.device("cpu")) as peak:
            search.advance()
        peaks.append(peak.bytes)
    assert peaks[1] < 0.7 * peaks[0]


@pytest.mark.parametrize(
    ("parts", "subject"),
    [
        ({"order": 3}, "order is 3"),
        ({"weights": dataclasses.replace(RECIPE, ema=0.9)}, "ema of the weights is 0.9"),
        ({"weights": dataclasses.replace(RECIPE, auxiliary=0.4)}, "auxiliary of the weights is 0.4"),
        ({"warmup": 1.0}, "warmup is 1.0"),
        ({"relaxation": GumbelHard(), "perturbation": RandomPerturbation()}, "perturbed"),
        ({"relaxation": Dirichlet(), "update": ExponentiatedGradient()}, "Softmax, not Dirichlet"),
        ({"order": 0, "regularizers": (BetaDecay(),)}, "regularizers"),
        ({"order": 2, "freezing": Freezing()}, "freezing .* order 1"),
        ({"relaxation": GumbelHard(), "freezing": Freezing()}, "freezing .* runs all"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(parts, subject):
    with pytest.raises(ConfigError, match=subject):
        Method("test", **parts)


def test_the_defaults_are_darts_as_published():
    method = Method()
    recipe = method.weights
    assert (recipe.epochs, recipe.batch, recipe.lr, recipe.lr_min) == (50, 64, 0.025, 0.001)
    assert (recipe.momentum, recipe.nesterov, recipe.weight_decay, recipe.clip) == (0.9, False, 3e-4, 5.0)
    assert (method.update.lr, method.update.betas, method.update.weight_decay) == (3e-4, (0.5, 0.999), 1e-3)
    assert (method.order, method.warmup, method.guards) == (1, 0.0, None)
