"""Inputs of cells that kernels preprocess are what float64 makes of them, one module after the other.

Programs are run by Triton's interpreter where there is no GPU.
"""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from kernels_by_torch import tape_launches
from tape import Refusing

from nas.cell import Cell
from nas.oneshot.fused import inputs, trust
from nas.oneshot.fused.cells import run_by_kernels
from nas.oneshot.fused.kernels import launch
from nas.oneshot.fused.kernels.joining import one_of
from nas.oneshot.fused.kernels.maps import adjacent
from nas.oneshot.fused.stack import channels_last
from nas.ops import FactorizedReduce, Zero, relu_conv_bn

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16
"""The interpreter multiplies no matrices of bfloat16."""


def difference(exact, found):
    exact, found = exact.detach(), found.detach().double()
    return float((exact - found).norm() / exact.norm().clamp_min(1e-2))


def norms_of(module):
    return [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]


def twins(*preprocess, affine=True):
    """A cell that adds up its inputs, and the same in float64, run plainly."""
    cell = Cell("c", len(preprocess), 1, lambda *_: nn.Identity(), preprocess=preprocess).to(DEVICE)
    for norm in norms_of(cell):
        norm.affine = affine
        if affine:
            nn.init.uniform_(norm.weight, -1, 1)
            nn.init.uniform_(norm.bias, -1, 1)
        else:
            norm.weight = norm.bias = None
    exact = copy.deepcopy(cell).double()
    cell.execute = run_by_kernels
    return cell, exact


def maps(*shapes):
    return [channels_last(torch.randn(shape, device=DEVICE)) for shape in shapes]


def outcome(cell, inputs, *, needs=(True, True)):
    """The outcome, gradients of inputs and weights by name, and running statistics."""
    dtype = next(cell.parameters()).dtype
    given = [x.to(dtype).requires_grad_(need) for x, need in zip(inputs, needs, strict=True)]
    y = cell(*given)
    y.backward(torch.linspace(-2, 2, y.numel(), device=DEVICE, dtype=dtype).view(y.shape).sin())
    named = [*((f"input {i}", x) for i, x in enumerate(given)), *cell.named_parameters()]
    moved = {name: tensor.grad for name, tensor in named if tensor.grad is not None}
    return {"y": y, **moved, **dict(cell.named_buffers())}


def assert_alike(cell, exact, inputs, **settings):
    expected, found = outcome(exact, inputs, **settings), outcome(cell, inputs, **settings)
    assert expected.keys() == found.keys()
    for name, wanted in expected.items():
        assert difference(wanted.double(), found[name]) < 1e-5, name


@pytest.fixture
def launched(monkeypatch):
    """Names of the launches to come; nothing is tried before."""
    monkeypatch.setattr(trust, "_tried", lambda *_: True)
    return tape_launches(monkeypatch, Refusing())


SHRUNK = (lambda: FactorizedReduce(4, 5), lambda: relu_conv_bn(3, 5)), ((2, 4, 7, 5), (2, 3, 4, 3))
ALIKE = (lambda: relu_conv_bn(3, 4), lambda: relu_conv_bn(3, 4)), ((2, 3, 3, 4), (2, 3, 3, 4))
STRIDED = (lambda: relu_conv_bn(3, 4, 2, kernel=3), lambda: FactorizedReduce(3, 4)), 2 * ((2, 3, 4, 5),)


@pytest.mark.parametrize(
    ("case", "affine"),
    [(SHRUNK, True), (SHRUNK, False), (ALIKE, False), (STRIDED, True)],
    ids=["shrunk affine", "shrunk", "alike", "strided"],
)
def test_both_inputs_are_preprocessed_together(case, affine, launched):
    makers, shapes = case
    cell, exact = twins(*(make() for make in makers), affine=affine)
    assert_alike(cell, exact, maps(*shapes))
    assert launched.count("norm_forward") == launched.count("norm_gradient") == 1


def test_half_precision_is_as_near_as_half_precision_can_be(launched):
    makers, shapes = SHRUNK
    cell, exact = twins(*(make() for make in makers))
    plain, inputs = copy.deepcopy(cell), maps(*shapes)
    plain.execute = None
    expected = outcome(exact, inputs)
    with torch.autocast(DEVICE.type, dtype=HALF):
        theirs, found = outcome(plain, inputs), outcome(cell, inputs)
    assert found["y"].dtype == HALF
    assert found.keys() == expected.keys() == theirs.keys()
    for name in ("y", "input 0", "input 1", "preprocess.0.odd.weight", "preprocess.1.1.weight"):
        wanted = expected[name].double()
        assert difference(wanted, found[name]) < 2 * difference(wanted, theirs[name]), name


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize(
    "change",
    [
        lambda cell: cell.preprocess[0][1].register_forward_hook(lambda *_: None),
        lambda cell: cell.preprocess[0][1].register_full_backward_pre_hook(lambda *_: None),
        lambda cell: cell.preprocess[0][2].eval(),
        lambda cell: cell.preprocess[0].append(nn.ReLU()),
        lambda cell: cell.preprocess.__setitem__(0, Doubled()),
        lambda cell: setattr(cell.preprocess[0][2], "momentum", None),
        lambda cell: setattr(cell.preprocess[0][1], "padding_mode", "circular"),
    ],
    ids=["hooked", "before", "not training", "more layers", "unknown", "plain means", "other padding"],
)
def test_a_module_that_kernels_do_not_know_runs_by_itself(change, launched):
    cell, exact = twins(relu_conv_bn(4, 4), relu_conv_bn(4, 4))
    for own in (cell, exact):
        change(own)
    assert_alike(cell, exact, maps((2, 4, 3, 3), (2, 4, 3, 3)))
    assert launched.count("norm_forward") == launched.count("convolve_forward") == 1


def test_a_module_that_makes_a_map_too_large_for_kernels_runs_by_itself(monkeypatch, launched):
    monkeypatch.setattr(inputs, "LARGEST", 2 * 5 * 9)
    cell, exact = twins(relu_conv_bn(4, 5), relu_conv_bn(4, 5, 2))
    cell.incoming[0][0], exact.incoming[0][0] = (nn.MaxPool2d(3, 2, 1) for _ in "12")
    assert_alike(cell, exact, maps((2, 4, 3, 3), (2, 4, 3, 3)))
    assert launched.count("norm_forward") == launched.count("convolve_forward") == 1


@pytest.mark.parametrize("prepare", [lambda cell: cell.eval(), lambda cell: cell.double()])
def test_nothing_is_launched_in_evaluation_and_in_float64(prepare, launched):
    cell, exact = twins(relu_conv_bn(4, 4), FactorizedReduce(4, 4))
    x, y = prepare(cell), prepare(exact)
    inputs = maps((2, 4, 2, 2), (2, 4, 4, 4))
    assert_alike(x, y, inputs)
    assert not launched


@pytest.mark.parametrize(
    ("frozen", "needs", "launches"),
    [
        ([0, 1], (True, True), {"convolve_input_gradient": 2}),
        ([], (False, False), {"convolve_weight_gradient": 2}),
        (
            [0],
            (False, True),
            {"convolve_input_gradient": 1, "convolve_weight_gradient": 1, "norm_gradient": 1},
        ),
        ([0, 1], (False, True), {"convolve_input_gradient": 1, "norm_gradient": 1, "norm_forward": 2}),
    ],
    ids=["inputs", "weights", "one side", "one input"],
)
def test_only_wanted_gradients_are_computed(frozen, needs, launches, launched):
    cell, exact = twins(FactorizedReduce(3, 4), relu_conv_bn(3, 4))
    for own in (cell, exact):
        for at in frozen:
            own.preprocess[at].requires_grad_(requires_grad=False)
    inputs = maps((2, 3, 4, 4), (2, 3, 2, 2))
    assert_alike(cell, exact, inputs, needs=needs)
    gradients = {"convolve_input_gradient", "convolve_weight_gradient"}
    assert {name: launched.count(name) for name in launches} == launches
    assert not gradients & (set(launched) - set(launches))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("unread", [0, 1])
def test_an_input_that_no_edge_reads_has_no_gradient(unread, affine, launched):
    """As plainly, so that an optimizer leaves its weights where they are."""
    cell, exact = twins(FactorizedReduce(3, 4), relu_conv_bn(3, 4), affine=affine)
    for own in (cell, exact):
        own.incoming[0][unread] = Zero(4)
    assert_alike(cell, exact, maps((2, 3, 4, 4), (2, 3, 2, 2)))
    assert launched.count("convolve_weight_gradient") == launched.count("convolve_input_gradient") == 1


@pytest.mark.parametrize("different", ["one module", "momenta", "untracked"])
def test_running_statistics_follow_each_in_its_way(different, launched):
    first = relu_conv_bn(3, 4)
    second = first if different == "one module" else relu_conv_bn(3, 4)
    if different == "momenta":
        second[2].momentum = 0.5
    if different == "untracked":
        second[2].track_running_stats = False
    cell, exact = twins(first, second)
    assert_alike(cell, exact, maps(*ALIKE[1]))
    assert launched.count("follow") == (1 if different == "untracked" else 2)
    assert int(first[2].num_batches_tracked) == (2 if different == "one module" else 1)


def test_preparation_that_is_wrong_is_not_used(monkeypatch):
    known = launch.normalise
    monkeypatch.setattr(trust, "_TRIED", {})
    monkeypatch.setattr(launch, "normalise", lambda y, norm, **to: known(1.1 * y + 0.1, norm, **to))
    cell, exact = twins(relu_conv_bn(4, 4), relu_conv_bn(4, 4))
    with pytest.warns(UserWarning, match="Conv2d, BatchNorm2d on .* is not kernels what it is alone"):
        assert_alike(cell, exact, maps((2, 4, 3, 3), (2, 4, 3, 3)))


def test_maps_that_are_adjacent_are_one_without_a_copy():
    whole = channels_last(torch.randn(6, 4, 3, 2))
    parts = [x.requires_grad_() for x in whole.clone(memory_format=torch.channels_last).chunk(3)]
    one = one_of(parts)
    assert torch.equal(one, whole)
    assert one.data_ptr() == parts[0].data_ptr()
    found = torch.autograd.grad(one, parts, whole)
    assert torch.equal(torch.cat(found), whole)
    assert adjacent(parts[::2]) is adjacent(parts[::-1]) is None
    assert adjacent([*parts[:2], torch.randn(2, 4, 3, 2)]) is None
    apart = [x.clone() for x in parts]
    assert torch.equal(one_of(apart), whole)
