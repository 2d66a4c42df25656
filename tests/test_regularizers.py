"""Regularisers: each equals its equation, and its gradient that of finite differences; expected costs."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torch.distributions import Dirichlet, kl_divergence

from nas.errors import ConfigError
from nas.oneshot.expected_cost import ExpectedCost, expected_cost
from nas.oneshot.regularizers import BetaDecay, Entropy, KLAnchor, L2Anchor, ZeroOne
from nas.oneshot.supernet import Supernet
from nas.space.cost import cost
from nas.space.latency import LatencyTable
from nas.space.loading import load
from nas.types import Constraint


def rows():
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3), (1, 5))
    return [torch.randn(*s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]


def value(regularizer, alphas, progress=0.5, relax=None):
    relax = relax or (lambda a: a.softmax(-1))
    return regularizer(alphas, [relax(a) for a in alphas], progress)


COSTS = [torch.arange(6.0).view(2, 3), torch.arange(5.0).view(1, 5)]
ALL = [BetaDecay(), ZeroOne(), L2Anchor(), KLAnchor(), Entropy(), ExpectedCost(COSTS, 1.0, 2.0)]
each = pytest.mark.parametrize("regularizer", ALL, ids=lambda r: type(r).__name__)


@pytest.mark.parametrize("make", [BetaDecay, ZeroOne, L2Anchor, KLAnchor, Entropy])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(make, number):
    with pytest.raises(ConfigError, match=f"{make.__name__}: .* is {number}"):
        make(number)


@each
def test_gradients_are_those_of_finite_differences(regularizer):
    assert gradcheck(lambda a, b: value(regularizer, [a, b]), tuple(rows()), eps=1e-6, atol=1e-6)


@each
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


def test_zero_one_is_its_equation():
    a, b = rows()
    gates = torch.cat([a.flatten(), b.flatten()]).sigmoid()
    got = value(ZeroOne(10.0), [a, b], relax=torch.sigmoid)
    torch.testing.assert_close(got, -10 * ((gates - 0.5) ** 2).mean())


def test_the_anchors_of_drnas_are_weight_decay_and_the_divergence_from_the_uniform_distribution():
    a, b = rows()
    gradients = torch.autograd.grad(value(L2Anchor(1e-3), [a, b]), [a, b])
    torch.testing.assert_close(gradients, (1e-3 * a.detach(), 1e-3 * b.detach()))
    pairs = [(Dirichlet(torch.nn.functional.elu(r) + 1), Dirichlet(torch.ones_like(r))) for r in (a, b)]
    wanted = sum(kl_divergence(*pair).sum() for pair in pairs)
    torch.testing.assert_close(value(KLAnchor(0.5), [a, b]), 0.5 * wanted)


def test_entropy_is_its_equation():
    uniform = [torch.full((2, 3), 1 / 3), torch.full((1, 5), 1 / 5)]
    wanted = 0.1 * 0.5 * (2 * math.log(3) + math.log(5)) / 3
    assert Entropy()([], uniform, 0.5).item() == pytest.approx(wanted)


def test_the_expected_cost_is_the_mean_of_the_options():
    penalty = ExpectedCost(COSTS, 10.0, 5.0, weight=2.0)
    one_hot = [torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]])]
    assert penalty.expected(one_hot).item() == 10 + 2 + 3 + 4
    uniform = [torch.full((2, 3), 1 / 3), torch.full((1, 5), 1 / 5)]
    assert penalty.expected(uniform).item() == pytest.approx(10 + 1 + 4 + 2)
    assert penalty([], uniform, 0.0).item() == pytest.approx(2.0 * (17 / 5 - 1))
    assert ExpectedCost(COSTS, 1.0, 1000.0)([], uniform, 0.0).item() == 0  # cheap enough


# -- expected costs of a space ------------------------------------------------------------------------

SHAPE = (1, 16, 16)
SPACES = [load("nasbench201", width=4, cells=1, in_channels=1), load("toy", width=4)]


def one_hot(space, genotype):
    supernet = Supernet(space)
    supernet.set_alphas([100 * torch.from_numpy(row).float() for row in space.one_hot(genotype)])
    return supernet.mixture_weights()


@pytest.mark.parametrize("metric", ["params", "macs"])
@pytest.mark.parametrize("space", SPACES, ids=lambda s: s.name)
def test_a_one_hot_mixture_costs_what_its_network_costs(space, metric):
    penalty = expected_cost(space, SHAPE, Constraint(metric, 1e6))
    rng = np.random.default_rng(0)
    for _ in range(5):
        genotype = space.sample(rng)
        wanted = getattr(cost(space, genotype, SHAPE), metric)
        assert penalty.expected(one_hot(space, genotype)).item() == pytest.approx(wanted, rel=1e-6)


def test_latencies_come_from_a_table_by_options():
    space = SPACES[1]
    entries = {f"{d.name}={o}": float(i) for d in space.decisions for i, o in enumerate(d.options)}
    penalty = expected_cost(
        space, SHAPE, Constraint("latency_ms", 2.0), table=LatencyTable("here", entries, base=1.5)
    )
    assert penalty.expected(one_hot(space, (2, 0, 1))).item() == pytest.approx(1.5 + 3)
    assert penalty([], one_hot(space, (2, 0, 1)), 0.0).item() == pytest.approx(4.5 / 2 - 1)


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
    """Of the 14 edges of a DARTS cell eight are kept; all counted, a mixture would cost almost twice that."""
    space = load("darts", width=4, cells=3, in_channels=1)
    penalty = expected_cost(space, SHAPE, Constraint("macs", 1e6))
    rng = np.random.default_rng(1)
    random = np.mean([cost(space, space.sample(rng), SHAPE).macs for _ in range(30)])
    uniform = [torch.full_like(rows, 1 / rows.shape[1]) for rows in Supernet(space).alphas]
    assert penalty.expected(uniform).item() == pytest.approx(random, rel=0.1)
