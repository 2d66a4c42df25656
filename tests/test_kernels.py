"""Kernels, under Triton's interpreter where there is no GPU: outcomes and gradients are those of float64.

They are also compiled for sm_90, which needs no GPU.
"""

import copy
import itertools
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

TritonError = pytest.importorskip("triton").TritonError

from kernels_by_torch import tape_launches
from tape import Refusing

from nas.cell import Cell
from nas.oneshot.extraction import as_searched
from nas.oneshot.fused import cells, inputs, trust
from nas.oneshot.fused.cells import run_by_kernels
from nas.oneshot.fused.kernels import launch, mixing_launch, passage
from nas.oneshot.fused.kernels.maps import Affine, Norm, Normed, Source, Taps, Window
from nas.oneshot.fused.kernels.maps import Drawn as Some
from nas.oneshot.fused.kernels.passage import alike, apart
from nas.oneshot.fused.kernels.tiles import tickets_of
from nas.oneshot.fused.plan import chain_of
from nas.oneshot.fused.stack import channels_last
from nas.oneshot.fused.stages import form_of, stages_of
from nas.oneshot.mixed import Drawn, MixedOp
from nas.oneshot.recompute import recompute_cells
from nas.oneshot.relaxations import GumbelHard
from nas.oneshot.supernet import Supernet
from nas.ops import PRIMITIVES, FactorizedReduce, candidates, relu_conv_bn
from nas.space import Space

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16
"""The interpreter multiplies no matrices of bfloat16."""
KNOWN = {
    "sep_conv_3x3": 2,
    "sep_conv_5x5": 2,
    "dil_conv_3x3": 1,
    "dil_conv_5x5": 1,
    "nor_conv_1x1": 1,
    "nor_conv_3x3": 1,
}


def difference(exact, found):
    exact, found = exact.detach(), found.detach().double()
    return float((exact - found).norm() / exact.norm().clamp_min(1e-9))


def operations(name, channels, stride, *, count=2, affine=False):
    ops = [PRIMITIVES[name](channels, channels, stride).to(DEVICE).train() for _ in range(count)]
    for op in ops:
        if not affine:
            as_searched(op, [""])
        for norm in (layer for layer in op if isinstance(layer, nn.BatchNorm2d) and affine):
            nn.init.uniform_(norm.weight, -1, 1)
            nn.init.uniform_(norm.bias, -1, 1)
    return ops


def layers_of(ops):
    return list(zip(*([layer for layer, _ in chain_of(op)] for op in ops), strict=True))


def outcomes(run, ops, x, scale):
    """Outcome, and the gradients of the map, of the scale and of all weights."""
    x, scale = x.clone().requires_grad_(), scale.clone().requires_grad_()
    y = run(ops, x, scale)
    along = torch.linspace(-1, 1, y.numel(), device=DEVICE, dtype=y.dtype).view(y.shape).sin()
    weights = [p for op in ops for p in op.parameters()]
    return [y, *torch.autograd.grad(y, [x, scale, *weights], along)]


def worst(expected, found):
    return max(difference(a, b) for a, b in zip(expected, found, strict=True))


def plainly(ops, x, scale):
    return torch.stack([weight * op(x) for op, weight in zip(ops, scale, strict=True)])


def by_kernels(ops, x, scale):
    layers = layers_of(ops)
    form = form_of([row[0] for row in layers])
    return apart([alike(ops, layers, form)], x, scale)


MANY = [
    ("nor_conv_3x3", 1),
    ("nor_conv_3x3", 2),
    ("sep_conv_3x3", 1),
    ("sep_conv_3x3", 2),
    ("dil_conv_5x5", 1),
]
"""What is tried with many channels, too: a window of any size reads them the same way."""


@pytest.mark.parametrize(
    ("name", "stride", "channels", "sides"),
    [
        *((name, stride, 3, (5, 4)) for name, stride in itertools.product(KNOWN, (1, 2))),
        *((name, stride, 20, (4, 6)) for name, stride in MANY),
    ],
)
def test_a_chain_is_that_of_float64(name, stride, channels, sides):
    ops = operations(name, channels, stride)
    assert len(stages_of([row[0] for row in layers_of(ops)])) == KNOWN[name]
    exact = [copy.deepcopy(op).double() for op in ops]
    x, scale = torch.randn(2, channels, *sides, device=DEVICE), torch.randn(2, device=DEVICE)
    expected = outcomes(plainly, exact, x.double(), scale.double())
    own = worst(expected, outcomes(plainly, copy.deepcopy(ops), x, scale))
    assert worst(expected, outcomes(by_kernels, ops, channels_last(x), scale)) < max(1e-5, 3 * own)
    for a, b in zip(exact, ops, strict=True):
        for ours, theirs in zip(a.buffers(), b.buffers(), strict=True):
            assert difference(ours.double(), theirs) < 1e-5


@pytest.mark.parametrize(
    ("inputs", "outputs", "sides", "affine"), [(3, 5, (5, 4), True), (20, 37, (3, 5), False)]
)
def test_a_reduction_in_two_halves_is_that_of_float64(inputs, outputs, sides, affine):
    """Of odd sides, and of halves that are not of one size."""
    ops = [FactorizedReduce(inputs, outputs).to(DEVICE) for _ in range(2)]
    for op in ops:
        op.norm.affine = affine
        op.norm.weight, op.norm.bias = (nn.Parameter(torch.rand(outputs)) if affine else None for _ in "12")
    ops = [op.to(DEVICE) for op in ops]
    exact = [copy.deepcopy(op).double() for op in ops]
    x, scale = torch.randn(2, inputs, *sides, device=DEVICE), torch.randn(2, device=DEVICE)
    expected = outcomes(plainly, exact, x.double(), scale.double())
    assert worst(expected, outcomes(by_kernels, ops, channels_last(x), scale)) < 1e-5
    for a, b in zip(exact, ops, strict=True):
        for ours, theirs in zip(a.buffers(), b.buffers(), strict=True):
            assert difference(ours.double(), theirs) < 1e-5


def test_more_pixels_and_channels_than_a_tile_holds(monkeypatch):
    known = launch.convolve

    def convolve(source, taps, window, *, out, after):
        assert len(after.tickets) >= taps.groups * tickets_of(taps.outputs)
        known(source, taps, window, out=out, after=after)

    monkeypatch.setattr(launch, "convolve", convolve)
    ops = operations("dil_conv_3x3", 70, 1)
    exact = [copy.deepcopy(op).double() for op in ops]
    x, scale = torch.randn(2, 70, 5, 4, device=DEVICE), torch.randn(2, device=DEVICE)
    expected = outcomes(plainly, exact, x.double(), scale.double())
    assert worst(expected, outcomes(by_kernels, ops, channels_last(x), scale)) < 1e-5


def test_half_precision_is_as_near_as_half_precision_can_be():
    ops = operations("sep_conv_3x3", 16, 1)
    exact = [copy.deepcopy(op).double() for op in ops]
    x, scale = torch.randn(2, 16, 6, 6, device=DEVICE), torch.randn(2, device=DEVICE)
    expected = outcomes(plainly, exact, x.double(), scale.double())
    with torch.autocast(DEVICE.type, dtype=HALF):
        found = outcomes(by_kernels, ops, channels_last(x), scale)
        theirs = outcomes(plainly, copy.deepcopy(ops), x, scale)
    assert found[0].dtype == HALF
    assert {tensor.dtype for tensor in found[1:]} == {torch.float32}
    assert difference(expected[0], found[0]) < 1.5 * difference(expected[0], theirs[0])
    assert worst(expected, found) < 3 * worst(expected, theirs)


def test_only_wanted_gradients_are_computed():
    ops = operations("sep_conv_3x3", 3, 1)
    for op in ops:
        op.requires_grad_(requires_grad=False)
    scale = torch.ones(2, device=DEVICE, requires_grad=True)
    by_kernels(ops, channels_last(torch.randn(2, 3, 4, 4, device=DEVICE)), scale).square().sum().backward()
    assert scale.grad is not None


def test_each_batch_norm_has_its_own_eps():
    ops = operations("sep_conv_3x3", 4, 1)
    for op in ops:
        op[3].eps, op[7].eps = 0.3, 0.02
    exact = [copy.deepcopy(op).double() for op in ops]
    x, scale = torch.randn(2, 4, 4, 4, device=DEVICE), torch.randn(2, device=DEVICE)
    expected = outcomes(plainly, exact, x.double(), scale.double())
    assert worst(expected, outcomes(by_kernels, ops, channels_last(x), scale)) < 1e-5


def test_every_run_gives_the_same_bits():
    ops = operations("nor_conv_3x3", 5, 1)
    x, scale = channels_last(torch.randn(4, 5, 8, 8, device=DEVICE)), torch.randn(2, device=DEVICE)
    first, second = (outcomes(by_kernels, copy.deepcopy(ops), x, scale) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "layers",
    [
        [nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, affine=False)],
        [nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)],
        [nn.ReLU(), nn.Conv2d(4, 4, (1, 3), padding=(0, 1), bias=False), nn.BatchNorm2d(4, affine=False)],
        [nn.ReLU(), nn.Conv2d(4, 4, 1, bias=False)],
        [nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4, affine=False)],
        2 * [nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, affine=False)],
    ],
    ids=["bias", "unpadded", "oblong", "no norm", "no relu", "two dense"],
)
def test_other_chains_are_left_to_the_batched_path(layers):
    assert form_of(layers) is None


@pytest.mark.parametrize("drawn", [None, (2, 0)])
def test_sums_over_many_blocks_are_added_by_the_program_that_is_done_last(drawn):
    groups, pixels, channels = 3, 600, 70
    grad, y = torch.randn(2, groups, pixels, channels, device=DEVICE)
    exact, given = y.double().requires_grad_(), grad.double()
    deviation, mean = torch.std_mean(exact, 1, correction=0, keepdim=True)
    normal = (exact - mean) / deviation
    (expected,) = torch.autograd.grad(normal, exact, given)
    total = torch.stack([given.sum(1), (given * normal).sum(1)], dim=1)
    inv = (1 / deviation).float().squeeze(1).contiguous()
    norm = Norm(mean.float().squeeze(1).contiguous(), inv, inv, inv, inv)
    some = [*range(groups)] if drawn is None else sorted(drawn)
    if drawn is not None:
        order = torch.tensor([*drawn, 1], dtype=torch.int32, device=DEVICE)
        drawn = Some(order, torch.tensor([1, 1, 0], dtype=torch.int32, device=DEVICE), 3)
    tickets, found = torch.zeros(groups, dtype=torch.int32, device=DEVICE), []
    for _ in "12":
        out = torch.zeros_like(y)
        own = launch.norm_gradients(grad, y, norm, out=out, drawn=drawn, tickets=tickets)
        found.append([own[some], out[some]])
        assert not tickets.any()
    assert worst([total[some], expected[some]], found[0]) < 1e-5
    assert all(map(torch.equal, *found))


def backwards(monkeypatch, blocks):
    """Begins the programs of so many blocks with the last one, where that is not up to a GPU."""
    if DEVICE.type == "cpu":
        from triton.runtime.interpreter import interpreter_builder

        known = interpreter_builder.set_grid_idx
        monkeypatch.setattr(
            interpreter_builder, "set_grid_idx", lambda x, y, z: known(blocks - 1 - x, y, z), raising=False
        )


def assert_statistics(norm, maps, eps, weight=1.0, bias=0.0):
    exact = maps.double()
    var, mean = torch.var_mean(exact, 1, correction=0)
    inv = 1 / (var + eps).sqrt()
    expected = [mean, exact.var(1), inv, weight * inv, bias - weight * inv * mean]
    assert worst(expected, norm.tensors) < 1e-5


def test_statistics_of_convolutions_are_those_of_float64_whichever_program_is_last(monkeypatch):
    """Of means far from zero, of more blocks than are added at once and more tiles of channels than one."""
    groups, pixels, channels, some = 3, 530, 70, [0, 2]
    x, weight = 5 + torch.rand(pixels, 3, device=DEVICE), torch.rand(groups, channels, 3, device=DEVICE)
    factors, biases = torch.randn(2, groups, channels, device=DEVICE)
    where = [torch.tensor([t.data_ptr() for t in own], device=DEVICE) for own in (weight, factors, biases)]
    order, live, none = torch.tensor([[2, 0, 1], [1, 1, 0], [0] * 3], dtype=torch.int32, device=DEVICE)
    taps = Taps(where[0], weight, ((1, 1),), none, none, 3, channels)
    source, window = Source(x, drawn=Some(order, live, 3)), Window(1, (pixels, 1), (pixels, 1), 1)
    tickets, found = torch.zeros(2 * groups, dtype=torch.int32, device=DEVICE), []
    for _ in "12":
        out = torch.zeros(groups, pixels, channels, device=DEVICE)
        norm = Norm.empty(groups, channels, DEVICE, none)
        after = Normed(norm, 0.1, Affine(where[1], where[2], factors), tickets)
        launch.convolve(source, taps, window, out=out, after=after)
        assert not tickets.any()
        found.append(norm.tensors)
        backwards(monkeypatch, 17)
    own = Norm(*(tensor[some] for tensor in norm.tensors))
    assert_statistics(own, out[some], 0.1, factors[some].double(), biases[some].double())
    assert not any(tensor[1].any() for tensor in norm.tensors)
    assert all(map(torch.equal, *found))


def test_statistics_of_pools_are_those_of_float64_each_with_its_own_eps(monkeypatch):
    pixels, channels = 15 * 10, 70
    x, window = 5 + torch.rand(pixels, channels, device=DEVICE), Window(1, (15, 10), (15, 10), 1)
    eps = torch.tensor([0.1, -1, 0.3, 0.2], device=DEVICE)
    on = torch.tensor([1, 1, 1, 0], dtype=torch.int32, device=DEVICE)
    tickets, found = torch.zeros(4, dtype=torch.int32, device=DEVICE), []
    for _ in "12":
        norm, out = Norm.empty(4, channels, DEVICE, on), torch.zeros(4, pixels, channels, device=DEVICE)
        mixing_launch.pools(x, window, 2, out=out, norm=norm, eps=eps, tickets=tickets)
        assert not tickets.any()
        found.append(norm.tensors)
        backwards(monkeypatch, 10)
    assert_statistics(Norm(*(t[::2] for t in norm.tensors)), out[::2], eps[::2, None].double())
    assert not any(tensor[1::2].any() for tensor in norm.tensors)
    assert [bool(own.any()) for own in out] == [True, True, True, False]
    assert all(map(torch.equal, *found))


# -- families ---------------------------------------------------------------------------------------------

DARTS = ["dil_conv_5x5", "sep_conv_3x3", "dil_conv_3x3", "sep_conv_5x5", "sep_conv_3x3"]
DENSE = ["nor_conv_3x3", "nor_conv_1x1", "nor_conv_3x3"]


def jointly(ops, x, scale):
    """All of them by kernels, each kind a group of its own."""
    groups = [
        alike([op], [[layer] for layer in layers], form_of(layers), first=edge)
        for edge, op in enumerate(ops)
        for layers in [[layer for layer, _ in chain_of(op)]]
    ]
    return apart(groups, x, scale)


FAMILIES = {"darts": (DARTS, (2, 2)), "dense": (DENSE, (1, 0)), "both": (DENSE + DARTS[1:3], (3, 2))}
FORMS = {
    "plain": (1, False, False),
    "all": (2, True, True),
    "strided": (2, False, False),
    "affine": (1, True, True),
}
EACH = [*itertools.product(FAMILIES, ("plain", "all")), ("both", "strided"), ("dense", "affine")]


@pytest.mark.parametrize(("family", "form"), EACH)
def test_operations_of_all_kinds_in_one_launch_are_those_of_float64(family, form, monkeypatch):
    (names, launches), (stride, last, affine) = FAMILIES[family], FORMS[form]
    ops = [op for name in names for op in operations(name, 3, stride, count=1, affine=affine)]
    if last:
        ops = [op.to(memory_format=torch.channels_last) for op in ops]
    exact = [copy.deepcopy(op).double() for op in ops]
    x, scale = torch.randn(2, 3, 4, 5, device=DEVICE), torch.randn(len(ops), device=DEVICE)
    expected = outcomes(plainly, exact, x.double(), scale.double())
    own = worst(expected, outcomes(plainly, copy.deepcopy(ops), x, scale))
    launched = tape_launches(monkeypatch, Refusing())
    assert worst(expected, outcomes(jointly, ops, channels_last(x), scale)) < max(1e-5, 3 * own)
    for a, b in zip(exact, ops, strict=True):
        for ours, theirs in zip(a.buffers(), b.buffers(), strict=True):
            assert difference(ours.double(), theirs) < 1e-5
    assert (launched.count("convolve_forward"), launched.count("depthwise_forward")) == launches


def test_maps_between_stages_may_be_of_another_shape():
    def op(between):
        def depthwise(stride):
            own = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
            return [nn.ReLU(), own]

        channels, first = 4, nn.Conv2d(4, between, 1, bias=False)
        layers = [*depthwise(1), first, nn.BatchNorm2d(between, affine=False)]
        channels, second = between, nn.Conv2d(between, 4, 1, bias=False)
        return nn.Sequential(*layers, *depthwise(2), second, nn.BatchNorm2d(4)).to(DEVICE)

    ops = [op(6), op(4), *operations("sep_conv_3x3", 4, 2, count=1), op(6)]
    exact = [copy.deepcopy(op).double() for op in ops]
    x, scale = torch.randn(2, 4, 5, 6, device=DEVICE), torch.randn(len(ops), device=DEVICE)
    expected = outcomes(plainly, exact, x.double(), scale.double())
    assert worst(expected, outcomes(jointly, ops, channels_last(x), scale)) < 1e-5


@pytest.mark.parametrize("trained", ["0.1.weight", "0.3.weight", "1.2.weight", "1.7.bias"])
def test_gradients_of_frozen_weights_are_none_beside_those_of_others(trained):
    ops = nn.ModuleList(operations("sep_conv_3x3", 3, 1, affine=True))
    for name, parameter in ops.named_parameters():
        parameter.requires_grad = name == trained
    exact = copy.deepcopy(ops).double()
    x, scale = channels_last(torch.randn(2, 3, 4, 4, device=DEVICE)), torch.ones(2, device=DEVICE)
    plainly(exact, x.double(), scale.double()).sin().sum().backward()
    by_kernels(ops, x, scale).sin().sum().backward()
    assert {name for name, p in ops.named_parameters() if p.grad is not None} == {trained}
    assert difference(exact.get_parameter(trained).grad, ops.get_parameter(trained).grad) < 1e-5


def test_weights_that_have_been_moved_are_found():
    ops = operations("dil_conv_3x3", 4, 1)
    x, scale = channels_last(torch.randn(2, 4, 4, 4, device=DEVICE)), torch.ones(2, device=DEVICE)
    layers = layers_of(ops)
    group = alike(ops, layers, form_of([row[0] for row in layers]))
    before = apart([group], x, scale)
    for op in ops:
        for parameter in op.parameters():
            parameter.data = 2 * parameter.data + 0.1
    exact = [copy.deepcopy(op).double() for op in ops]
    assert difference(plainly(exact, x.double(), scale.double()), apart([group], x, scale)) < 1e-5
    assert difference(before.double(), apart([group], x, scale)) > 1e-2


def test_families_that_are_wrong_are_not_run_together(monkeypatch):
    monkeypatch.setattr(trust, "_TRIED", {})
    ops = [op for name in DENSE[:2] for op in operations(name, 4, 1, count=1)]
    assert trust.joint(ops, on=torch.zeros(1, device=DEVICE))
    monkeypatch.setattr(trust, "_TRIED", {})
    monkeypatch.setattr(passage, "apart", lambda *args: 1.01 * apart(*args))
    with pytest.warns(UserWarning, match="is not kernels what it is alone .* do not run kernels"):
        assert not trust.joint(ops, on=torch.zeros(1, device=DEVICE))


# -- whole cells ------------------------------------------------------------------------------------------


def small_space():
    def build(choose):
        options = candidates(["none", "skip_connect", "nor_conv_1x1", "avg_pool_3x3", "dil_conv_3x3"], 4, 4)
        cell = Cell("c", 1, 2, lambda i, j: choose.op(f"{i}->{j}", options))
        return nn.Sequential(nn.Conv2d(3, 4, 1), cell, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 5))

    return Space("small", build)


def outcome(supernet, x, y):
    torch.manual_seed(1)
    supernet.zero_grad()
    logits = supernet(x)
    F.cross_entropy(logits, y).backward()
    # What only the device knows not to be run has a gradient, of zeros.
    return [logits, *(p.grad for p in supernet.parameters() if p.grad is not None and p.grad.any())]


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("settings", [{}, {"relaxation": GumbelHard()}, {"parts": 2, "edge_norm": True}])
def test_a_cell_by_kernels_is_that_of_float64(settings, recomputed):
    plain = Supernet(small_space(), **settings).to(DEVICE)
    fast, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    for cell in fast.modules():
        if isinstance(cell, Cell):
            cell.execute = run_by_kernels
    recompute_cells(fast, enabled=recomputed)
    x, y = torch.randn(3, 3, 4, 4, device=DEVICE), torch.arange(3, device=DEVICE)
    # The draws of a relaxation differ between types, so both take the float32 ones.
    torch.manual_seed(1)
    mixture = plain.points()
    for supernet in (fast, exact):
        points = [p.detach().to(next(supernet.parameters()).dtype) for p in mixture]
        supernet.points = partial(list, points)
    expected, found = outcome(exact, x.double(), y), outcome(fast, x, y)
    assert len(expected) == len(found)
    assert worst(expected, found) < 1e-5


def test_the_kernels_are_run_and_only_while_training(monkeypatch):
    supernet, calls = Supernet(small_space()).to(DEVICE), []
    known = passage.leave
    monkeypatch.setattr(passage, "leave", lambda *args, **kw: calls.append(1) or known(*args, **kw))
    for cell in supernet.modules():
        if isinstance(cell, Cell):
            cell.execute = run_by_kernels
    x = torch.randn(3, 3, 4, 4, device=DEVICE)
    supernet(x)
    assert calls
    supernet.eval()
    calls.clear()
    supernet(x)
    assert not calls


def test_kernels_that_are_wrong_are_not_used(monkeypatch):
    monkeypatch.setattr(trust, "_TRIED", {})
    monkeypatch.setattr(passage, "apart", lambda *args: 1.01 * apart(*args))
    (op,) = operations("nor_conv_1x1", 4, 1, count=1)
    with pytest.warns(UserWarning, match="is not kernels what it is alone .* do not run kernels"):
        found = trust.known(op, kernels=True)
    assert found.chain is not None
    assert found.form is None


@pytest.mark.parametrize("right", [True, False])
def test_kernels_are_tried_on_maps_of_the_type_that_they_compute(right, monkeypatch):
    """For which they are compiled anew, so that what is right in float32 may be wrong there."""

    def half_wrong(groups, x, weights):
        return apart(groups, x, weights) * (1 if right or x.dtype == torch.float32 else 2)

    monkeypatch.setattr(trust, "_TRIED", {})
    monkeypatch.setattr(passage, "apart", half_wrong)
    (op,) = operations("sep_conv_3x3", 4, 1, count=1)
    x = torch.randn(1, 4, 2, 2, device=DEVICE, dtype=HALF)
    if right:
        assert trust.known(op, on=x, kernels=True).form is not None
    else:
        with pytest.warns(UserWarning, match="the output differs by"):
            assert trust.known(op, on=x, kernels=True).form is None
    assert [key[2] for key in trust._TRIED if key[0] == "kernels"] == [torch.float32, HALF]


def test_the_type_of_autocast_is_tried(monkeypatch):
    monkeypatch.setattr(trust, "_TRIED", {})
    (op,) = operations("nor_conv_1x1", 4, 1, count=1)
    with torch.autocast(DEVICE.type, HALF):
        assert trust.known(op, on=torch.randn(1, 4, 2, 2, device=DEVICE), kernels=True).form is not None
    assert [key[2] for key in trust._TRIED if key[0] == "kernels"] == [torch.float32, HALF]


class TooLarge(TritonError):
    """What Triton raises of a program that does not fit a GPU is no RuntimeError."""


@pytest.mark.parametrize(
    "error",
    [
        TooLarge("out of resource: shared memory, Required: 120000, Hardware limit: 101376"),
        PermissionError(13, "Permission denied"),
        AssertionError(),
        subprocess.CalledProcessError(1, ["gcc"]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_kernels_that_cannot_be_compiled_are_not_used(error, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(trust, "_TRIED", {})
    monkeypatch.setattr(passage, "apart", fail)
    (op,) = operations("nor_conv_1x1", 4, 1, count=1)
    with pytest.warns(UserWarning, match="do not run kernels"):
        assert trust.known(op, kernels=True).form is None


def test_a_lack_of_memory_says_nothing_of_kernels(monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trust, "_TRIED", {})
    monkeypatch.setattr(passage, "apart", fail)
    (op,) = operations("nor_conv_1x1", 4, 1, count=1)
    with pytest.raises(torch.OutOfMemoryError):
        trust.known(op, kernels=True)
    assert ("kernels",) not in {key[:1] for key in trust._TRIED}


def test_kernels_are_launched_on_the_device_of_the_maps(monkeypatch):
    """Triton asks for the present device, not where its arguments are."""
    at = ["cuda:0"]

    class On:
        def __init__(self, device):
            self.device = str(device)

        def __enter__(self):
            at.append(self.device)

        def __exit__(self, *_):
            at.pop()

    class Map:
        device = torch.device("cuda:1")

    monkeypatch.setattr(torch.cuda, "device", On)
    monkeypatch.setattr(cells, "run", lambda cell, states, *, kernels: (at[-1], kernels))
    assert run_by_kernels(None, [Map()]) == ("cuda:1", True)
    assert at == ["cuda:0"]


def test_maps_of_more_numbers_than_kernels_count_are_left_to_the_batched_path(monkeypatch):
    monkeypatch.setattr(cells, "LARGEST", 2 * 4 * 4 * 4)
    launched = tape_launches(monkeypatch, Refusing())
    supernet = Supernet(small_space()).train()
    for cell in (module for module in supernet.modules() if isinstance(module, Cell)):
        cell.execute = run_by_kernels
    supernet(torch.randn(2, 3, 4, 4)).sum().backward()
    assert not launched


@pytest.mark.parametrize("where", ["preprocessed", "made"])
def test_maps_that_become_too_large_are_left_to_the_batched_path(where, monkeypatch):
    """Of an input small enough: the preprocessed map, or that of a node."""
    for module in (cells, inputs):
        monkeypatch.setattr(module, "LARGEST", 2 * 4 * 3 * 3)
    width, channels = (2, 4) if where == "made" else (4, 4)
    options = candidates(["skip_connect", "nor_conv_1x1", "avg_pool_3x3"], width, channels)
    row = torch.tensor([0.0, 1.0, 0.0], device=DEVICE)
    mixture = {}
    cell = Cell("c", 1, 1, lambda *_: MixedOp("c", options, mixture), preprocess=[relu_conv_bn(2, width)])
    cell.to(DEVICE).execute = run_by_kernels
    known, run = cells._passage, []
    monkeypatch.setattr(
        cells, "_passage", lambda plan, *given: run.append(plan.layout) or known(plan, *given)
    )
    x = torch.randn(2, 2, 3, 3, device=DEVICE)
    mixture["c"] = 1
    expected = copy.deepcopy(cell).double().plain([x.double()])[0]
    mixture["c"] = Drawn(row, partial(int, row.argmax()))
    assert difference(expected, cell(x)) < 1e-5
    assert run == [None]


# -- cells of two inputs ----------------------------------------------------------------------------------

LEAVING = ["max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3", "nor_conv_3x3"]


def two_inputs(stride):
    """A cell of two nodes, whose inputs both nodes read."""

    def edge(src, dst):
        options = candidates(LEAVING, 3, 3, stride if src < 2 else 1)
        return MixedOp(f"{src}->{dst}", options, mixture)

    mixture = {}
    return Cell("c", 2, 2, edge, concat=True).to(DEVICE)


def gradients_of(cell, mixed, first, second):
    """Of both maps, of weights and of the mixture, after the outcome."""
    dtype = next(cell.parameters()).dtype
    given = [tensor.detach().to(dtype).requires_grad_() for tensor in (mixed, first, second)]
    for row, (_, _, op) in zip(given[0], cell.edges(), strict=True):
        live = int(row.ne(0).sum())
        op._mixture[op.decision] = row if live > 1 else Drawn(row, partial(int, row.argmax()))
    y = cell(*given[1:])
    along = torch.linspace(-2, 2, y.numel(), device=DEVICE, dtype=dtype).view(y.shape).sin()
    moved = [p for p in cell.parameters() if p.requires_grad]
    found = torch.autograd.grad(y, [*given, *moved], along, allow_unused=True)
    # What only the device knows not to be run has a gradient, of zeros.
    return [y, *(g for g in found if g is not None and g.any())], list(cell.buffers())


@pytest.mark.parametrize(
    ("stride", "drawn"),
    [(1, None), (2, None), (2, (3, 4, 0, 2, 5)), (1, (3, 1, 4, 1, 2))],
    ids=["mixed", "strided", "drawn", "one side"],
)
def test_what_leaves_both_inputs_is_one_launch(stride, drawn, monkeypatch):
    """drawn: of each edge; in the last case nothing of the second input but pools."""
    plain, mixed = two_inputs(stride), 0.5 + torch.rand(5, len(LEAVING), device=DEVICE)
    if drawn is not None:
        mixed = F.one_hot(torch.tensor(drawn, device=DEVICE), len(LEAVING)).float()
    fast, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    fast.execute = run_by_kernels
    maps = [channels_last(torch.randn(2, 3, 4, 5, device=DEVICE)) for _ in "12"]
    gradients_of(copy.deepcopy(fast), mixed, *maps)  # what is run is tried first
    launched = tape_launches(monkeypatch, Refusing())
    (expected, theirs), (found, ours) = (gradients_of(cell, mixed, *maps) for cell in (exact, fast))
    assert len(expected) == len(found) > 3
    assert worst(expected, found) < 1e-5
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=1e-4, atol=1e-6)
    # Both inputs, and the node between.
    assert launched.count("pool_forward") == launched.count("leaving_gradient") == 2
    assert launched.count("depthwise_input_gradient") == 4


def test_options_that_are_drawn_beside_mixtures_are_asked_for():
    """For as many programs as edges are begun where one option of each is drawn."""
    plain, mixed = two_inputs(1), 0.5 + torch.rand(5, len(LEAVING), device=DEVICE)
    mixed[0] = F.one_hot(torch.tensor(3, device=DEVICE), len(LEAVING))
    fast, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    fast.execute = run_by_kernels
    maps = [channels_last(torch.randn(2, 3, 4, 5, device=DEVICE)) for _ in "12"]
    (expected, _), (found, _) = (gradients_of(cell, mixed, *maps) for cell in (exact, fast))
    assert worst(expected, found) < 1e-5


# -- compilation ------------------------------------------------------------------------------------------

COMPILE = """
import re
import subprocess
import tempfile

from triton import compile, knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from nas.oneshot.fused.kernels.programs import dense, depthwise, nodes, norms, pools

MODULES = (dense, depthwise, nodes, norms, pools)
WINDOW = {"HI": 32, "WI": 32, "HO": 16, "WO": 16, "STRIDE": 2}
DEPTHWISE = {"C": 20, **WINDOW, "KINDS": ((3, 1), (3, 2), (5, 1)), "PRE": 2, "BP": 32, "BC": 32}
DENSE = {"CI": 20, "CO": 40, **WINDOW, "KINDS": ((1, 1), (3, 1)), "PRE": 1, "BP": 32, "BI": 32, "BO": 64}
DENSE |= {"HALF": 0}
HALVES = {"KINDS": ((1, 1),), "HALF": 20}
WIDE = {"CI": 144, "CO": 144, "BI": 64}
SHARED = {"SHARED": 2, "TOGETHER": 6}
TILE = {"C": 20, "BP": 32, "BC": 32}
NODES = {"ROW": 1, **TILE}
SUMS = {"BLOCKS": 40, "BB": 32}
MOST_SPILLED = 64
PROGRAMS = {
    "depthwise_forward": DEPTHWISE,
    "depthwise_input_gradient": {**SHARED, **DEPTHWISE},
    "depthwise_weight_gradient": {"MOST": 25, "LOOP": 8, **DEPTHWISE},
    "convolve_forward": {"LAST": True, "AFFINE": True, **SUMS, **DENSE},
    "convolve_input_gradient": {"LAST": False, **SHARED, **DENSE},
    "convolve_input_gradient wide": {"LAST": False, **SHARED, **DENSE, **WIDE},
    "convolve_weight_gradient": {"LAST": True, "MOST": 9, "LOOP": 8, **DENSE},
    "convolve_forward halves": {"LAST": False, "AFFINE": True, **SUMS, **DENSE, **HALVES},
    "convolve_input_gradient halves": {"LAST": False, **SHARED, **DENSE, **HALVES},
    "convolve_weight_gradient halves": {"LAST": False, "MOST": 2, "LOOP": 8, **DENSE, **HALVES},
    "sums": {"LOOP": 8, **SUMS, **TILE},
    "norm_forward": {"FOLLOW": True, **TILE},
    "norm_gradient": TILE,
    "follow": {"BC": 32},
    "node_forward": {"KEPT": 9, "MASKED": True, "REST": True, **TILE},
    "node_sums": {"ROW": 1, "LOOP": 8, **SUMS, **TILE},
    "branch_gradient": {"ROW": 2, **TILE},
    "pool_forward": {"MAXIMA": 1, "NORMED": True, **SUMS, **WINDOW, **TILE},
    "pool_gradient": {"ROW": 1, "MOST": 4, **TILE},
    "leaving_gradient": {"MAXIMA": 2, "POOLS": 4, "SAME": 4, "MAPS": 2, "OTHER": True, **WINDOW, **NODES},
}
INTEGERS = ("C", "apart", "maps", "x_group", "P", "PI", "size", "kept", "first", "row_size")
TABLES = ("table", "places", "members", "bounds", "on", "busy", "chosen", "order", "live", "kind", "tickets")
TYPES = dict.fromkeys(TABLES, "*i32") | {"index": "*i8", "addresses": "*i64"}
for kind, on in (("*bf16", True), ("*fp32", False)):
    for variant, constants in PROGRAMS.items():
        name, *_ = variant.split()
        program = next(getattr(module, name) for module in MODULES if hasattr(module, name))
        constants = constants | {"ON": on} if "ON" in program.arg_names else constants
        types = {n: "i32" if n in INTEGERS else TYPES.get(n, "*fp32") for n in program.arg_names}
        if name == "convolve_forward":
            types |= {"weights": "*i64", "biases": "*i64", "eps": "fp32"}
        types |= {n: "*i64" for n in ("where", "tracked") if n in types}
        types |= {"momentum": "fp32"} if "momentum" in types else {}
        types |= {n: kind for n in ("x", "grad", "out", "y", "raw", "rest", "other", "pools") if n in types}
        types |= {n: (kind, kind) for n in ("states", "chains") if n in types}
        types |= dict.fromkeys(constants, "constexpr")
        values = {(program.arg_names.index(n),): v for n, v in constants.items()}
        # As the memory of PyTorch is.
        aligned = [n for n in types if variant.endswith("wide") and types[n][0] == "*"]
        hints = {(program.arg_names.index(n),): [["tt.divisibility", 16]] for n in aligned}
        made = compile(ASTSource(program, types, values, hints), target=GPUTarget("cuda", 90, 32))
        if "tickets" in types:  # what the last program reads has been stored before the others' tickets
            before, _, after = made.asm["ptx"].partition("atom.global.gpu.release")
            between, _, after = after.partition("atom.global.gpu.acquire")
            assert before.rindex("bar.sync") > before.rindex("st.global"), name
            assert after.index("bar.sync") < after.index("ld.global.cg"), name
            assert "ld.global.cg" not in before + between, name
        with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
            file.write(made.asm["ptx"])
            file.flush()
            call = [knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", file.name, "-o", "/dev/null"]
            told = subprocess.run(call, capture_output=True, text=True, check=True).stderr
        (spilled,) = re.findall(r"(\\d+) bytes spill stores", told)
        assert int(spilled) <= MOST_SPILLED, (variant, told)
print(len(PROGRAMS))
"""


def test_all_programs_compile_for_a_gpu_that_is_not_there_and_fit_its_registers():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "20"
