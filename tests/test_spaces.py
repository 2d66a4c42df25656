"""The bundled spaces: sizes, published parameter counts and names, literals, and output shapes."""

import numpy as np
import pytest
import torch

from nas.errors import SpaceError
from nas.space.cost import cost, count_params
from nas.space.loading import bundled, load
from nas.spaces import darts, nasbench201

PC_DARTS = (
    "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 0), ('dil_conv_3x3', 1), "
    "('sep_conv_5x5', 0), ('sep_conv_3x3', 1), ('avg_pool_3x3', 0), ('dil_conv_3x3', 1)], "
    "reduce=[('sep_conv_5x5', 1), ('max_pool_3x3', 0), ('sep_conv_5x5', 1), ('sep_conv_5x5', 2), "
    "('sep_conv_3x3', 0), ('sep_conv_3x3', 3), ('sep_conv_3x3', 1), ('sep_conv_3x3', 2)])"
)
P_DARTS = (
    "Genotype(normal=[('skip_connect', 0), ('dil_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('sep_conv_3x3', 3), ('sep_conv_3x3', 0), ('dil_conv_5x5', 4)], "
    "reduce=[('avg_pool_3x3', 0), ('sep_conv_5x5', 1), ('sep_conv_3x3', 0), ('dil_conv_5x5', 2), "
    "('max_pool_3x3', 0), ('dil_conv_3x3', 1), ('dil_conv_3x3', 1), ('dil_conv_5x5', 3)])"
)
DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], "
    "normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), "
    "('max_pool_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), "
    "('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)
BEST201 = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"


@pytest.mark.parametrize("name", bundled())
def test_every_bundled_space_builds_small_trains_and_follows_its_settings(name):
    space = load(name, width=6, classes=7, in_channels=2)
    rng = np.random.default_rng(0)
    network = space.network(space.sample(rng))
    logits = network(torch.randn(2, 2, 16, 16))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in network.parameters())
    wider = load(name, width=12, classes=7, in_channels=2)
    assert [d.name for d in wider.decisions] == [d.name for d in space.decisions]


# -- NAS-Bench-201 ------------------------------------------------------------------------------------


def test_nasbench201_parameters_follow_the_published_formula():
    space, rng = load("nasbench201"), np.random.default_rng(0)
    for small, large in [(0, 0), (6, 0), (0, 6), (2, 3)]:
        others = rng.choice([0, 1, 4], 6 - small - large)
        genotype = tuple(rng.permutation([2] * small + [3] * large + [*others]).tolist())
        wanted = 73_306 + 28_000 * small + 243_040 * large
        assert count_params(space.network(genotype, meta=True)) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("|none~0|+|none~0|none~1|", "wanted the form"),
        ("|none~0|+|none~1|none~0|+|none~0|none~1|none~2|", "wanted the form"),
        (BEST201.replace("skip_connect", "nor_conv_5x5"), "did you mean 'nor_conv_"),
    ],
)
def test_other_nasbench201_strings_are_refused(text, message):
    with pytest.raises(SpaceError, match=message):
        nasbench201.from_string(text)


# -- DARTS --------------------------------------------------------------------------------------------


def test_the_full_size_is_the_published_one():
    space = load("darts")
    assert space.full_size == {"width": 36, "cells": 20, "auxiliary": True}
    full, genotype = load("darts", **space.full_size), darts.from_literal(DARTS_V2)
    assert count_params(full.network(genotype, meta=True)) == 3_825_768


@pytest.mark.parametrize(
    ("literal", "params", "macs"),
    [
        (DARTS_V2, 3_349_342, 528e6),
        (PC_DARTS, 3_634_678, 558e6),
        (P_DARTS, 3_433_798, 532e6),
    ],
)
def test_published_cells_have_the_published_sizes(literal, params, macs):
    """At full size without the auxiliary head; published multiply-adds count averages of pools, too."""
    space = load("darts", width=36, cells=20)
    counted = cost(space, darts.from_literal(literal), (3, 32, 32))
    assert counted.params == params
    assert counted.macs == pytest.approx(macs, rel=0.005)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("normal=", "usual="), "wanted Genotype"),
        (("('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ", ""), "normal has 4 edges, wanted two for each of 4"),
        (("'dil_conv_3x3'", "'dil_conv_7x7'"), "no DARTS operation 'dil_conv_7x7'; did you mean 'dil_conv_"),
        (("('dil_conv_3x3', 2)", "('dil_conv_3x3', 5)"), "normal: node 5 takes input 5"),
        (
            ("('dil_conv_3x3', 2)", "('dil_conv_3x3', 0)"),
            "normal: node 5 takes input 0, wanted two different",
        ),
        (("reduce_concat=[2, 3, 4, 5]", "reduce_concat=[3, 4, 5]"), "reduce_concat is .3, 4, 5., but cells"),
    ],
)
def test_other_literals_are_refused(change, message):
    assert change[0] in DARTS_V2
    with pytest.raises(SpaceError, match=message):
        darts.from_literal(DARTS_V2.replace(*change))


def test_official_output_shapes_of_a_small_darts_network():
    space = load("darts", width=4, cells=8, classes=10)
    network = space.network(darts.from_literal(DARTS_V2))
    shapes = []
    for cell in network.cells:
        cell.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert shapes == [(16, 32, 32)] * 2 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3
    assert [i for i, cell in enumerate(network.cells) if cell.kind == "reduce"] == [2, 5]


def test_the_auxiliary_output_comes_in_training_only():
    space = load("darts", width=4, cells=3, auxiliary=True)
    network = space.network(darts.from_literal(DARTS_V2))
    x = torch.randn(2, 3, 32, 32)
    logits, auxiliary = network.train()(x)
    assert logits.shape == auxiliary.shape == (2, 10) and not torch.equal(logits, auxiliary)
    assert network.eval()(x).shape == (2, 10)
