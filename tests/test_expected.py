"""Expected costs: a one-hot mixture costs exactly what its network costs."""

import numpy as np
import pytest
import torch

from nas.errors import ConfigError
from nas.oneshot.regularizers import expected_cost
from nas.oneshot.supernet import Supernet
from nas.space.cost import cost
from nas.space.latency import LatencyTable
from nas.space.loading import load
from nas.types import Constraint

SHAPE = (1, 16, 16)
SPACES = [load("nasbench201", width=4, cells=1, in_channels=1), load("toy", width=4)]


def one_hot(space, genotype):
    rows = [torch.from_numpy(row).float() for row in space.one_hot(genotype)]
    return Supernet(space).grouped(rows)


@pytest.mark.parametrize("metric", ["params", "macs"])
@pytest.mark.parametrize("space", SPACES, ids=lambda s: s.name)
def test_a_one_hot_mixture_costs_what_its_network_costs(space, metric):
    penalty = expected_cost(space, SHAPE, Constraint(metric, 1e6))
    rng = np.random.default_rng(0)
    for _ in range(5):
        genotype = space.sample(rng)
        wanted = getattr(cost(space, genotype, SHAPE), metric)
        assert penalty.expected(one_hot(space, genotype)).item() == pytest.approx(wanted, rel=1e-6)


def test_a_mixture_costs_the_mean():
    space = SPACES[1]
    penalty = expected_cost(space, SHAPE, Constraint("macs", 1e6))
    every = [cost(space, g, SHAPE).macs for g in space.enumerate()]
    uniform = [torch.full((3, 3), 1 / 3)]
    assert penalty.expected(uniform).item() == pytest.approx(np.mean(every), rel=1e-6)


def test_latencies_come_from_a_table_by_options():
    space = SPACES[1]
    entries = {f"{d.name}={o}": float(i) for d in space.decisions for i, o in enumerate(d.options)}
    penalty = expected_cost(
        space, SHAPE, Constraint("latency_ms", 2.0), table=LatencyTable("here", entries, base=1.5)
    )
    assert penalty.expected(one_hot(space, (2, 0, 1))).item() == pytest.approx(1.5 + 3)
    assert penalty([], one_hot(space, (2, 0, 1)), 0.0).item() == pytest.approx(4.5 / 2 - 1)


@pytest.mark.parametrize(
    ("bound", "table", "message"),
    [
        (Constraint("params", 1.0, at_most=False), None, "only keep costs below a bound"),
        (Constraint("peak_bytes", 1.0), None, "cannot be told from the parts"),
        (Constraint("latency_ms", 1.0), LatencyTable("here", {"x": 1.0}), "needs one by options"),
    ],
)
def test_what_does_not_add_up_is_refused(bound, table, message):
    with pytest.raises(ConfigError, match=message):
        expected_cost(SPACES[1], SHAPE, bound, table=table)


def test_where_connections_compete_a_mixture_costs_what_random_architectures_do():
    """Of the 14 edges of a DARTS cell eight are kept; all counted, a mixture would cost almost twice that."""
    space = load("darts", width=4, cells=3, in_channels=1)
    penalty = expected_cost(space, SHAPE, Constraint("macs", 1e6))
    rng = np.random.default_rng(1)
    random = np.mean([cost(space, space.sample(rng), SHAPE).macs for _ in range(30)])
    uniform = [torch.full_like(rows, 1 / rows.shape[1]) for rows in Supernet(space).alphas]
    assert penalty.expected(uniform).item() == pytest.approx(random, rel=0.1)
