"""Regularisers: each equals its equation, and its gradient that of finite differences; expected costs."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from nas.errors import ConfigError
from nas.oneshot.expected_cost import ExpectedCost, expected_cost
from nas.oneshot.regularizers import BetaDecay, L2Anchor, ZeroOne
from nas.oneshot.supernet import Supernet
from nas.space.cost import cost
from nas.space.latency import LatencyTable
from nas.space.loading import load
from nas.space.ops import candidates
from nas.space.space import Space
from nas.types import Constraint


def rows():
    """The alphas of a decision of two options and of two of three."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    return torch.where(torch.arange(3) < torch.tensor([[2], [3], [3]]), drawn, -torch.inf).requires_grad_()


def value(regularizer, alphas, progress=0.5):
    return regularizer(alphas, alphas.softmax(-1), progress)


COSTS = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
ALL = [BetaDecay(), ZeroOne(), L2Anchor(), ExpectedCost(COSTS, 1.0, 2.0)]
each = pytest.mark.parametrize("regularizer", ALL, ids=lambda r: type(r).__name__)


def test_numbers_that_are_not_finite_are_refused():
    for make, number in ((BetaDecay, math.nan), (ZeroOne, math.inf), (L2Anchor, math.nan)):
        with pytest.raises(ConfigError, match=f"{make.__name__}: .* is {number}"):
            make(number)


@each
def test_gradients_are_those_of_finite_differences_and_options_out_of_the_race_have_none(regularizer):
    there = rows().isfinite()
    leaf = torch.where(there, rows().detach(), 0.0).requires_grad_()
    of = lambda leaf: value(regularizer, torch.where(there, leaf, -torch.inf))  # noqa: E731
    assert gradcheck(of, leaf, eps=1e-6, atol=1e-6)
    assert of(leaf).isfinite()
    (gradient,) = torch.autograd.grad(of(leaf), leaf)
    assert (gradient[~there] == 0).all() and (gradient[there] != 0).any()


def test_beta_decay_is_its_equation():
    a = rows()
    wanted = sum(math.log(sum(math.exp(x) for x in row)) for row in a.tolist()) / 3
    assert value(BetaDecay(25.0), a, 0.4).item() == pytest.approx(0.4 * 25 * wanted)
    assert value(BetaDecay(25.0), a, 0.0).item() == 0


def test_zero_one_is_its_equation():
    gates = rows().sigmoid()
    wanted = -10 * ((gates[rows().isfinite()] - 0.5) ** 2).mean()
    torch.testing.assert_close(ZeroOne(10.0)(rows(), gates, 0.5), wanted)


def test_the_anchor_of_drnas_is_weight_decay():
    leaf = torch.randn(2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(value(L2Anchor(1e-3), leaf), leaf)
    torch.testing.assert_close(gradient, 1e-3 * leaf.detach())


def test_the_expected_cost_is_the_mean_of_the_options():
    penalty = ExpectedCost(COSTS, 10.0, 5.0, weight=2.0)
    assert penalty.expected(torch.eye(3)[[1, 2, 0]]).item() == 10 + 1 + 2 + 3
    uniform = torch.tensor([[1 / 2, 1 / 2, 0], [1 / 3] * 3, [1 / 3] * 3])
    assert penalty.expected(uniform).item() == pytest.approx(10 + 0.5 + 1 + 4)
    assert penalty(uniform, uniform, 0.0).item() == pytest.approx(2.0 * (15.5 / 5 - 1))
    assert ExpectedCost(COSTS, 1.0, 1000.0)(uniform, uniform, 0.0).item() == 0  # cheap enough


# -- expected costs of a space ------------------------------------------------------------------------

SHAPE = (1, 16, 16)
SPACES = [load("nasbench201", width=4, cells=1, in_channels=1), load("toy", width=4)]


def one_hot(space, genotype):
    supernet = Supernet(space)
    supernet.set_alphas([100 * torch.from_numpy(row).float() for row in space.one_hot(genotype)])
    return supernet.mixture_weights()[0]


@pytest.mark.parametrize("space", SPACES, ids=lambda s: s.name)
def test_a_one_hot_mixture_costs_what_its_network_costs(space):
    rng = np.random.default_rng(0)
    for metric in ("params", "macs"):
        penalty = expected_cost(space, SHAPE, Constraint(metric, 1e6))
        for genotype in [space.sample(rng) for _ in range(3)]:
            wanted = getattr(cost(space, genotype, SHAPE), metric)
            assert penalty.expected(one_hot(space, genotype)).item() == pytest.approx(wanted, rel=1e-6)


def test_latencies_come_from_a_table_by_options():
    space = SPACES[1]
    entries = {f"{d.name}={o}": float(i) for d in space.decisions for i, o in enumerate(d.options)}
    penalty = expected_cost(
        space, SHAPE, Constraint("latency_ms", 2.0), table=LatencyTable("here", entries, base=1.5)
    )
    assert penalty.expected(one_hot(space, (2, 0, 1))).item() == pytest.approx(1.5 + 3)
    mixture = one_hot(space, (2, 0, 1))
    assert penalty(mixture, mixture, 0.0).item() == pytest.approx(4.5 / 2 - 1)


@pytest.mark.parametrize(
    ("bound", "table", "subject"),
    [
        (Constraint("params", 1.0, at_most=False), None, "params"),
        (Constraint("peak_bytes", 1.0), None, "peak_bytes"),
        (Constraint("latency_ms", 1.0), LatencyTable("here", {"x": 1.0}), "latency_ms"),
    ],
)
def test_what_does_not_add_up_is_refused(bound, table, subject):
    with pytest.raises(ConfigError, match=f"constraint {subject}"):
        expected_cost(SPACES[1], SHAPE, bound, table=table)


def test_where_connections_compete_a_mixture_costs_what_random_architectures_do():
    """Of six operations three are kept; all counted, a mixture would cost almost twice that."""

    def build(choose):
        options = candidates(["none", "nor_conv_1x1", "nor_conv_3x3"], 4, 4)
        return nn.Sequential(*(choose.op(f"op{i}", options) for i in range(6)), nn.Flatten())

    def strongest(decisions, scores):
        kept = np.argsort([row[1:].max() for row in scores])[3:]
        return tuple(1 + int(row[1:].argmax()) if i in kept else 0 for i, row in enumerate(scores))

    space, shape = Space("competing", build, strongest), (4, 6, 6)
    penalty = expected_cost(space, shape, Constraint("macs", 1e6))
    rng = np.random.default_rng(1)
    random = np.mean([cost(space, space.sample(rng), shape).macs for _ in range(100)])
    assert penalty.expected(torch.full((6, 3), 1 / 3)).item() == pytest.approx(random, rel=0.1)
