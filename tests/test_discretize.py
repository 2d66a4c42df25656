"""Identities in cells: counted by kind, and capped the way P-DARTS does."""

import numpy as np
import pytest
from torch import nn

from nas.oneshot.discretize import (
    barred,
    capped,
    identities,
    keeps_cap,
    members,
    skip_shares,
    without_zeros,
)
from nas.space.loading import load
from nas.space.ops import candidates
from nas.space.space import Space

NB201 = load("nasbench201", width=4, cells=1)
DARTS = load("darts", width=4, cells=3)


def test_members_are_the_edges_of_each_kind_and_the_decisions_outside_cells():
    assert members(NB201) == {"cell": [0, 1, 2, 3, 4, 5]}
    assert {kind: len(found) for kind, found in members(DARTS).items()} == {"normal": 14, "reduce": 14}

    def build(choose):
        options = candidates(["skip_connect", "nor_conv_3x3"], 3, 3)
        return nn.Sequential(*[choose.op(name, options) for name in "ab"])

    space = Space("chain", build)
    assert members(space) == {"": [0, 1]} and skip_shares(space, (0, 1)) == {"": 0.5}


def test_the_weakest_identities_give_way_to_the_strongest_operation():
    rows = [
        [0.0, 0.9, 0.05, 0.03, 0.02],
        [0.0, 0.8, 0.05, 0.1, 0.05],
        [0.35, 0.4, 0.05, 0.1, 0.1],  # the weakest: not to `none`, but to the best operation proper
        [0.0, 0.1, 0.7, 0.1, 0.1],
        [0.1, 0.6, 0.0, 0.0, 0.3],
        [0.2, 0.2, 0.2, 0.3, 0.1],
    ]
    assert capped(NB201, [np.array(row) for row in rows], 2) == (1, 1, 3, 2, 4, 3)


@pytest.mark.parametrize(("cap", "left"), [(0, 0), (1, 1), (2, 2), (6, 5)])
def test_a_collapsed_cell_keeps_as_many_as_it_may_and_never_nothing_else(cap, left):
    rng = np.random.default_rng(cap)
    collapsed = [np.array([0.05, 0.6, 0.1, 0.15, 0.1]) + 0.01 * rng.random(5) for _ in range(6)]
    found = capped(NB201, collapsed, cap)
    assert len(identities(NB201, found)["cell"]) == left
    assert keeps_cap(NB201, found, cap) and not keeps_cap(NB201, (1,) * 6, cap)


def test_a_judge_decides_what_takes_the_place_of_identities():
    """The alphas' second choice is a pool; measured, a convolution is best."""
    collapsed = [np.array([0.05, 0.6, 0.1, 0.1, 0.15]) for _ in range(6)]
    asked = []

    def judge(decision, options):
        asked.append((decision, options))
        return [option == 3 for option in options]

    assert capped(NB201, collapsed, 2).count(4) == 4
    assert capped(NB201, collapsed, 2, judge).count(3) == 4
    assert len({decision for decision, _ in asked}) == 4
    assert {tuple(options) for _, options in asked} == {(2, 3, 4)}  # never `none`, never the identity


def test_without_zeros_something_is_on_every_connection():
    rows = [np.array([0.6, 0.1, 0.1, 0.1, 0.1]), np.array([1.0, 0.0, 0.0, 0.0, 0.0])]
    assert [row.argmax() for row in without_zeros(NB201, [*rows, *rows, *rows])] == [1, 0] * 3


def test_identities_are_barred_once_a_kind_of_cell_has_enough():
    every, skip, conv = (0, 1, 2, 3, 4), (1,), (3,)
    assert barred(NB201, [skip, every, every, every, every, every], 1, cap=2) == ()
    assert barred(NB201, [skip, skip, every, every, every, every], 2, cap=2) == (1,)
    assert barred(NB201, [skip, skip, (0, 3), every, every, every], 2, cap=2) == ()
    assert barred(NB201, [skip, skip, skip, skip, skip, every], 5, cap=9) == (1,)
    assert barred(NB201, [conv] * 5 + [every], 5, cap=1) == ()
    assert barred(NB201, [every] * 6, 0, cap=0) == (1,)
