"""Regularisers: each equals its equation, and its gradient that of finite differences."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from nas.errors import ConfigError
from nas.oneshot.regularizers import BetaDecay, ExpectedCost, PullBack, ZeroOne


def rows():
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3), (1, 5))
    return [torch.randn(*s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]


def value(regularizer, alphas, progress=0.5, relax=None):
    relax = relax or (lambda a: a.softmax(-1))
    return regularizer(alphas, [relax(a) for a in alphas], progress)


COSTS = [torch.arange(6.0).view(2, 3), torch.arange(5.0).view(1, 5)]
ALL = [BetaDecay(), ZeroOne(), PullBack(), ExpectedCost(COSTS, 1.0, 2.0)]


@pytest.mark.parametrize(
    ("make", "name"),
    [(BetaDecay, "end"), (ZeroOne, "weight"), (PullBack, "scale")],
)
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(make, name, number):
    with pytest.raises(ConfigError, match=f"{make.__name__}: {name} is {number}, but must be finite"):
        make(number)


@pytest.mark.parametrize("regularizer", ALL, ids=lambda r: type(r).__name__)
def test_gradients_are_those_of_finite_differences(regularizer):
    assert gradcheck(lambda a, b: value(regularizer, [a, b]), tuple(rows()), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("regularizer", ALL, ids=lambda r: type(r).__name__)
def test_absent_options_neither_count_nor_break(regularizer):
    leaf = rows()
    gone = [torch.where(torch.arange(a.shape[1]) == 1, -torch.inf, a) for a in leaf]
    got = value(regularizer, gone)
    assert got.isfinite()
    gradients = torch.autograd.grad(got, leaf)
    assert all(g.isfinite().all() and (g[:, 1] == 0).all() for g in gradients)


def test_beta_decay_is_its_equation():
    a, b = rows()
    wanted = sum(math.log(sum(math.exp(x) for x in row)) for r in (a, b) for row in r.tolist()) / 3
    assert value(BetaDecay(25.0), [a, b], 0.4).item() == pytest.approx(0.4 * 25 * wanted)
    assert value(BetaDecay(25.0), [a, b], 0.0).item() == 0


def test_beta_decay_pulls_by_the_softmax():
    """d/dα of log Σ exp α is softmax(α): the strongest option is held back most."""
    a, b = rows()
    (gradient,) = torch.autograd.grad(value(BetaDecay(3.0), [a, b], 1.0), a)
    torch.testing.assert_close(gradient, a.softmax(-1).detach())


def test_zero_one_is_its_equation():
    a, b = rows()
    gates = torch.cat([a.flatten(), b.flatten()]).sigmoid()
    got = value(ZeroOne(10.0), [a, b], relax=torch.sigmoid)
    torch.testing.assert_close(got, -10 * ((gates - 0.5) ** 2).mean())


def test_the_pull_back_has_the_gradient_of_weight_decay():
    a, b = rows()
    gradients = torch.autograd.grad(value(PullBack(1e-3), [a, b]), [a, b])
    torch.testing.assert_close(gradients, (1e-3 * a.detach(), 1e-3 * b.detach()))


def test_the_expected_cost_is_the_mean_of_the_options():
    penalty = ExpectedCost(COSTS, 10.0, 5.0, weight=2.0)
    one_hot = [torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]])]
    assert penalty.expected(one_hot).item() == 10 + 2 + 3 + 4
    uniform = [torch.full((2, 3), 1 / 3), torch.full((1, 5), 1 / 5)]
    assert penalty.expected(uniform).item() == pytest.approx(10 + 1 + 4 + 2)
    assert penalty([], uniform, 0.0).item() == pytest.approx(2.0 * (17 / 5 - 1))


def test_what_is_cheap_enough_is_not_punished():
    weights = [torch.softmax(torch.randn(2, 3, requires_grad=True), -1), torch.full((1, 5), 1 / 5)]
    assert ExpectedCost(COSTS, 1.0, 1000.0)([], weights, 0.0).item() == 0


def test_costs_are_brought_to_a_device_once():
    """A step that is captured as a CUDA graph must not copy from the host."""
    penalty = ExpectedCost(COSTS, 1.0, 2.0)
    weights = [torch.ones(shape, device="meta") for shape in ((2, 3), (1, 5))]
    copies = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, call, types, args=(), kwargs=None):
            copies.append(call in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default))
            return call(*args, **(kwargs or {}))

    found = []
    for _ in range(2):
        copies.clear()
        with Watched():
            penalty.expected(weights)
        found.append(sum(copies))
    assert found == [2, 0]
