"""Primitives: shapes under stride and odd sides, parameter counts by hand, and what each computes."""

import itertools

import pytest
import torch
from torch import nn

from nas.errors import SpaceError
from nas.space.choosers import Zero
from nas.space.cost import count_params
from nas.space.ops import PRIMITIVES, FactorizedReduce, MixtureNorm, candidates

C = 6


@pytest.mark.parametrize("name", PRIMITIVES)
def test_shapes(name):
    for (c_in, c_out), stride, side in itertools.product([(1, 1), (4, 4), (4, 6), (6, 3)], (1, 2, 3), (7, 8)):
        y = PRIMITIVES[name](c_in, c_out, stride)(torch.randn(2, c_in, side, side + 3))
        assert y.shape == (2, c_out, -(-side // stride), -(-(side + 3) // stride)), (c_in, c_out, stride)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("nor_conv_1x1", C * C + 2 * C),
        ("nor_conv_3x3", 9 * C * C + 2 * C),
        ("nor_conv_7x7", 49 * C * C + 2 * C),
        ("sep_conv_3x3", 2 * (9 * C + C * C + 2 * C)),
        ("sep_conv_5x5", 2 * (25 * C + C * C + 2 * C)),
        ("dil_conv_3x3", 9 * C + C * C + 2 * C),
        ("dil_conv_5x5", 25 * C + C * C + 2 * C),
        ("conv_7x1_1x7", 14 * C * C + 2 * C),
    ],
)
def test_parameters_counted_by_hand(name, params):
    assert count_params(PRIMITIVES[name](C, C, 1)) == params
    assert count_params(PRIMITIVES[name](C, C, 2)) == params


@pytest.mark.parametrize(("name", "reach"), [("dil_conv_3x3", 2), ("dil_conv_5x5", 4), ("sep_conv_5x5", 4)])
def test_receptive_field(name, reach):
    op = PRIMITIVES[name](1, 1, 1).eval()
    for weight in op.parameters():
        nn.init.ones_(weight)
    x = torch.ones(1, 1, 21, 21, requires_grad=True)
    op(x)[0, 0, 10, 10].backward()
    rows = x.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert (rows.min(), rows.max()) == (10 - reach, 10 + reach)


def test_skip_is_the_identity_where_it_can_be():
    x = torch.randn(1, C, 4, 4)
    assert PRIMITIVES["skip_connect"](C, C, 1)(x) is x
    assert isinstance(PRIMITIVES["skip_connect"](C, C, 2), FactorizedReduce)


def test_zero_carries_neither_values_nor_gradients():
    x = torch.full((2, 3, 5, 5), torch.nan, dtype=torch.float64, requires_grad=True)
    y = Zero(4, stride=2)(x)
    assert y.shape == (2, 4, 3, 3) and y.dtype == torch.float64
    assert not y.any() and not y.requires_grad


def test_factorized_reduce_looks_at_even_and_odd_pixels():
    reduce = FactorizedReduce(1, 2).eval()
    x = torch.ones(1, 1, 6, 6, requires_grad=True)
    even, odd = reduce(x)[0].sum((1, 2))
    seen = torch.autograd.grad(even, x, retain_graph=True)[0][0, 0].nonzero()
    assert (seen % 2 == 0).all() and len(seen) == 9
    seen = torch.autograd.grad(odd, x)[0][0, 0].nonzero()
    assert (seen % 2 == 1).all() and len(seen) == 9


def test_mixture_norm_works_only_while_active():
    norm, x = MixtureNorm(C), 5 + 3 * torch.randn(8, C, 4, 4)
    assert norm(x) is x
    assert norm.num_batches_tracked == 0
    norm.active = True
    y = norm(x)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(C), atol=1e-5, rtol=0)
    torch.testing.assert_close(y, nn.BatchNorm2d(C)(x))
    assert not list(norm.parameters())


def test_an_unknown_primitive_is_refused_with_the_nearest():
    with pytest.raises(SpaceError, match="no primitive 'sep_conv3x3'; did you mean 'sep_conv_3x3'"):
        candidates(["sep_conv3x3"], 4, 4)
