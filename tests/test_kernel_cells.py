"""Cells by kernels: pools, identities and the sums in nodes give what float64 gives, one operation at a time.

Convolutions, of which `test_kernels` tells, are those of PyTorch here where whole cells are run: Triton's
interpreter takes long for them.
"""

import copy
import itertools
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("triton")

from kernels_by_torch import PROGRAMS, stand_in, tape_launches
from one_stage import one_stage
from tape import Refusing

from nas.cell import Cell
from nas.oneshot.fused import trust
from nas.oneshot.fused.cells import run_by_kernels
from nas.oneshot.fused.kernels import launch, mixing_launch, passage
from nas.oneshot.fused.kernels.parameters import eps_of_pools
from nas.oneshot.fused.laying_out import lay_out
from nas.oneshot.fused.plan import chain_of
from nas.oneshot.fused.stack import channels_last
from nas.oneshot.fused.stages import Pool, Same, form_of
from nas.oneshot.mixed import MixedOp
from nas.oneshot.recompute import recompute_cells
from nas.oneshot.relaxations import GumbelHard
from nas.oneshot.supernet import Supernet
from nas.ops import PRIMITIVES, Candidate, MixtureNorm, candidates, relu_conv_bn
from nas.registry import load
from nas.seeding import rng
from nas.space import Space

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16
TRIED = {}
"""What was tried with the convolutions of this module."""


def difference(exact, found, floor=1e-9):
    exact, found = exact.detach().double(), found.detach().double()
    return float((exact - found).norm() / exact.norm().clamp_min(floor))


@pytest.fixture
def _library(monkeypatch):
    if DEVICE.type == "cpu":  # a GPU runs its own, and quickly
        stand_in(monkeypatch)
    monkeypatch.setattr(trust, "_TRIED", TRIED)


library = pytest.mark.usefixtures("_library")

# -- pools and identities ---------------------------------------------------------------------------------


def pool(name, stride, channels, *, normed):
    made = PRIMITIVES[f"{name}_pool_3x3"](channels, channels, stride)
    norm = MixtureNorm(channels)
    norm.active = normed
    return nn.Sequential(made, norm).to(DEVICE)


def apart(ops, x, weights):
    layers = list(zip(*([layer for layer, _ in chain_of(op)] for op in ops), strict=True))
    group = passage.alike(ops, layers, form_of([row[0] for row in layers]))
    return passage.apart([group], x, weights)


def plainly(ops, x, weights):
    return torch.stack([weight * op(x) for op, weight in zip(ops, weights, strict=True)])


def outcomes(run, ops, x, weights):
    x, weights = x.clone().requires_grad_(), weights.clone().requires_grad_()
    y = run(ops, x, weights)
    along = torch.linspace(-3, 3, y.numel(), device=DEVICE, dtype=y.dtype).view(y.shape).sin()
    return [y, *torch.autograd.grad(y, [x, weights], along)]


@pytest.mark.parametrize(("channels", "sides"), [(3, (5, 4)), (70, (4, 5)), (4, (1, 2))])
@pytest.mark.parametrize("normed", [True, False], ids=["normed", "bare"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", ["max", "avg"])
def test_pools_are_those_of_float64(name, stride, normed, channels, sides):
    ops = [pool(name, stride, channels, normed=normed) for _ in range(3)]
    exact = [copy.deepcopy(op).double() for op in ops]
    x, weights = torch.randn(4, channels, *sides, device=DEVICE), torch.randn(3, device=DEVICE)
    expected = outcomes(plainly, exact, x.double(), weights.double())
    found = outcomes(apart, ops, channels_last(x), weights)
    assert max(map(difference, expected, found)) < 1e-5
    for a, b in zip(exact, ops, strict=True):
        for ours, theirs in zip(a.buffers(), b.buffers(), strict=True):
            assert difference(ours, theirs, 1e-2) < 1e-5


def alone(ops):
    """Each in a group of its own."""
    chains = [[layer for layer, _ in chain_of(op)] for op in ops]
    return [
        passage.alike([op], [[layer] for layer in layers], form_of(layers), first=edge)
        for edge, (op, layers) in enumerate(zip(ops, chains, strict=True))
    ]


def test_each_pool_has_a_norm_of_its_own_or_none():
    ops = [pool(name, 1, 3, normed=name != "avg") for name in ("max", "avg", "max")]
    ops.append(pool("avg", 1, 3, normed=True))
    for op, eps in zip(ops, (0.3, 0.2, 0.02, 0.1), strict=True):
        op[1].eps = eps
    exact = [copy.deepcopy(op).double() for op in ops]
    x, weights = torch.randn(2, 3, 5, 4, device=DEVICE), torch.randn(4, device=DEVICE)
    expected = outcomes(plainly, exact, x.double(), weights.double())
    found = outcomes(
        lambda ops, x, scale: passage.apart(alone(ops), x, scale), ops, channels_last(x), weights
    )
    assert max(map(difference, expected, found)) < 1e-5


def test_a_changed_eps_of_a_pool_is_found():
    ops = [pool("avg", 1, 3, normed=True), pool("avg", 1, 3, normed=False)]
    edges = [(0, 1, None), (0, 2, None)]
    level = lay_out([alone(ops), [], []], edges, [(3, 4, 5)], DEVICE).levels[0]
    before = eps_of_pools(level, DEVICE)
    assert before.tolist() == pytest.approx([1e-5, -1])
    assert eps_of_pools(level, DEVICE) is before
    ops[0][1].eps = 0.5
    assert eps_of_pools(level, DEVICE).tolist() == [0.5, -1]
    bare = lay_out([alone(ops[1:]), []], edges[:1], [(3, 4, 5)], DEVICE).levels[0]
    assert eps_of_pools(bare, DEVICE) is None


@pytest.mark.filterwarnings("ignore:invalid value")  # the interpreter's, of infinite maps
@pytest.mark.parametrize("stride", [1, 2])
def test_the_first_of_equal_maxima_gets_the_gradient(stride):
    ops = [pool("max", stride, 4, normed=False)]
    x = torch.randint(3, (2, 4, 7, 6), device=DEVICE).float()
    x[0, 0, 2:4, 3] = torch.nan
    x[1, :, :3] = -torch.inf
    x, one = channels_last(x), torch.ones(1, device=DEVICE)
    for a, b in zip(outcomes(plainly, ops, x, one)[:2], outcomes(apart, ops, x, one)[:2], strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


def test_identities_are_passed_on():
    x, weights = channels_last(torch.randn(2, 3, 5, 4, device=DEVICE)), torch.randn(2, device=DEVICE)
    ops = [nn.Identity(), nn.Identity()]
    for a, b in zip(outcomes(plainly, ops, x, weights), outcomes(apart, ops, x, weights), strict=True):
        torch.testing.assert_close(a, b)


def test_what_the_kernels_know():
    largest, average = PRIMITIVES["max_pool_3x3"](4, 4, 2), PRIMITIVES["avg_pool_3x3"](4, 4, 1)
    norm, inner = MixtureNorm(4), nn.BatchNorm2d(4, affine=False)
    assert form_of([largest]) == form_of([largest, norm]) == Pool(largest=True, stride=2, norm=None)
    norm.active = True
    assert form_of([largest, norm]) == Pool(largest=True, stride=2, norm=1)
    assert form_of([nn.Identity(), average, inner]) == Pool(largest=False, stride=1, norm=2)
    assert form_of([nn.Identity()]) == Same()


@pytest.mark.parametrize(
    "layers",
    [
        [nn.MaxPool2d(3, 1)],
        [nn.MaxPool2d(3, 3, 1)],
        [nn.MaxPool2d(2, 2, 1)],
        [nn.MaxPool2d(3, 1, 2, dilation=2)],
        [nn.MaxPool2d(3, 2, 1, ceil_mode=True)],
        [nn.AvgPool2d(3, 1, 1)],
        [nn.AvgPool2d(3, 1, 1, count_include_pad=False, divisor_override=2)],
        [nn.MaxPool2d(3, 1, 1), nn.BatchNorm2d(4)],
        [nn.MaxPool2d(3, 1, 1), nn.ReLU()],
        [nn.BatchNorm2d(4, affine=False)],
    ],
)
def test_other_pools_are_left_to_the_batched_path(layers):
    assert form_of(layers) is None


@pytest.mark.parametrize(
    ("make", "apart"),
    [
        (lambda: channels_last(torch.randn(2, 12, 3, 5))[:, 4:8], 12),
        (lambda: channels_last(torch.randn(2, 4, 3, 5)), 4),
        (lambda: channels_last(torch.randn(2, 12, 1, 5))[:, :4], 12),
        (lambda: channels_last(torch.randn(3, 12, 1, 1))[:, :4], 12),
        (lambda: torch.randn(2, 4, 3, 5), 4),
        (lambda: torch.randn(2, 4, 1, 1).expand(2, 4, 3, 5), 4),
        (lambda: channels_last(torch.randn(2, 4, 6, 5))[:, :, ::2], 4),
    ],
)
def test_a_part_of_a_map_is_read_where_it_is(make, apart):
    x = make()
    own, found = mixing_launch.rows_of(x)
    assert found == apart
    flat = torch.as_strided(
        own,
        (2 if len(x) == 2 else 3, x[0, 0].numel(), 4),
        (x[0, 0].numel() * apart, apart, 1),
        own.storage_offset(),
    )
    assert torch.equal(flat, x.flatten(2).mT)


# -- whole cells ------------------------------------------------------------------------------------------


def options_of_darts(channels, stride):
    """As in DARTS, with norms after pools."""
    names = ["none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3"]
    options = candidates(names, channels, channels, stride)
    for name in ("max_pool_3x3", "avg_pool_3x3"):
        make = options[name].make
        options[name] = replace(
            options[name],
            make=lambda c_in, c_out, s, make=make: nn.Sequential(make(c_in, c_out, s), MixtureNorm(c_out)),
        )
    return options


class Scaled(nn.Module):
    """An operation of a user, without a rule."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.scale * x.tanh()


def small_darts(*, users=False):
    """A normal cell of two inputs and two nodes, and a reduction cell of one."""

    def cell(choose, kind, c_in, stride):
        def edge(src, dst):
            options = options_of_darts(8, stride if src < 2 else 1)
            if users and stride == 1:
                options["scaled"] = Candidate(lambda *_: Scaled(), 8, 8)
            return choose.op(f"{kind}/{src}->{dst}", options)

        before = [relu_conv_bn(c_in, 8), relu_conv_bn(c_in, 8)]
        return Cell(kind, 2, 3 - stride, edge, concat=True, preprocess=before)

    class Network(nn.Module):
        def __init__(self, choose):
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 1)
            self.normal, self.reduce = cell(choose, "normal", 6, 1), cell(choose, "reduce", 16, 2)
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            x = self.stem(x)
            x = self.normal(x, x)
            return self.head(self.reduce(x, x).mean((2, 3)))

    return Space("small-darts", Network)


SPACES = {"darts": small_darts(), "nasbench201": one_stage(classes=5, in_channels=3)}
USERS = small_darts(users=True)
DARTS = load("darts", width=4, cells=3, classes=5)
NB201 = load("nasbench201", width=4, cells=1, classes=5)


def cells_of(network):
    return [module for module in network.modules() if isinstance(module, Cell)]


def drop_paths(supernet):
    for cell in cells_of(supernet):
        cell.drop_path = 0.5


def keep_half(supernet):
    decisions = supernet.space.decisions
    supernet.keep([tuple(range(len(d.options)))[i % 2 :: 2] for i, d in enumerate(decisions)])


def only(wanted):
    def freeze(supernet):
        for parameter in supernet.parameters():
            parameter.requires_grad = False
        for parameter in getattr(supernet, wanted)():
            parameter.requires_grad = True

    return freeze


def triple(space, prepare=lambda supernet: None, **settings):
    """A supernet in float64, in float32, and by kernels, all with the same draws."""
    plain = Supernet(space, **settings).to(DEVICE)
    with torch.no_grad():
        for parameter in plain.architecture():
            parameter.copy_(torch.randn_like(parameter))
    prepare(plain)
    fast, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    for cell in cells_of(fast):
        cell.execute = run_by_kernels
    mixture = [point.detach() for point in plain.points()]
    for supernet in (exact, plain, fast):
        kind, moving = next(supernet.parameters()).dtype, supernet.alphas[0].requires_grad
        supernet.mixed_by = [point.to(kind).requires_grad_(moving) for point in mixture]
        supernet.points = partial(list, supernet.mixed_by)
    return exact, plain, fast


def outcome(supernet, x, y):
    """Logits, gradients of images, weights and mixtures, and what the statistics run to."""
    x = x.to(next(supernet.parameters()).dtype).requires_grad_()
    torch.manual_seed(1)
    logits = supernet(x)
    F.cross_entropy(logits, y).backward()
    moved = {name: parameter.grad for name, parameter in supernet.named_parameters()}
    mixed = {f"mixture {i}": point.grad for i, point in enumerate(supernet.mixed_by)}
    return {"logits": logits, "images": x.grad, **moved, **mixed, **dict(supernet.named_buffers())}


def worst(expected, found):
    assert expected.keys() == found.keys()
    wrong = {}
    for name, exact in expected.items():
        # What only the device knows not to be run has a gradient, of zeros.
        if exact is None:
            assert found[name] is None or not found[name].any(), name
        else:
            # Means that are nothing but rounding are judged by the deviations.
            floor = 0.1 * exact.numel() ** 0.5 if name.endswith("running_mean") else 1e-6
            wrong[name] = difference(exact, found[name], floor)
    return max(wrong.values())


def images(side=6):
    return torch.randn(3, 3, side, side, device=DEVICE), torch.arange(3, device=DEVICE)


def assert_exact(supernets, x, y):
    expected, plain, found = (outcome(supernet, x, y) for supernet in supernets)
    assert worst(expected, found) < max(1e-5, 3 * worst(expected, plain))


CASES = {
    "mixed": ({}, None),
    "sampled": ({"relaxation": GumbelHard()}, None),
    "dropped paths": ({}, drop_paths),
    "alphas alone": ({}, only("architecture")),
    "weights alone": ({}, only("weights")),
    "shrunk": ({}, keep_half),
}


@library
@pytest.mark.parametrize(
    ("space", "case"),
    [
        *(("darts", case) for case in CASES),
        *(("nasbench201", case) for case in ("mixed", "dropped paths", "sampled")),
    ],
)
def test_a_supernet_by_kernels_is_that_of_float64(space, case):
    settings, prepare = CASES[case]
    supernets = triple(SPACES[space], prepare or (lambda supernet: None), **settings)
    if case == "sampled":
        never_ask(supernets[-1])
    assert_exact(supernets, *images())


def never_ask(supernet):
    """Fails where Python asks the device what was drawn."""
    mixture = supernet.mixture

    def drawn():
        return {
            name: replace(share, ask=lambda: pytest.fail("asked what was drawn"))
            for name, share in mixture().items()
        }

    supernet.mixture = drawn


@library
def test_so_is_one_of_partial_channels_on_odd_sides():
    assert_exact(triple(SPACES["darts"], parts=4, edge_norm=True), *images(7))


@library
@pytest.mark.parametrize("prepare", [lambda supernet: supernet.drop_skips(1.0), drop_paths])
def test_so_is_one_with_operations_that_the_kernels_do_not_know(prepare):
    assert_exact(triple(USERS, prepare), *images())


@library
def test_so_is_one_that_is_computed_again():
    supernets = triple(SPACES["darts"])
    recompute_cells(supernets[-1], enabled=True)
    assert_exact(supernets, *images())


@library
def test_half_precision_is_as_near_as_half_precision_can_be():
    (exact, plain, fast), (x, y) = triple(SPACES["darts"]), images()
    expected = outcome(exact, x, y)
    with torch.autocast(DEVICE.type, dtype=HALF):
        theirs, found = outcome(plain, x, y), outcome(fast, x, y)
    for name in ("logits", "images", "mixture 0", "network.stem.weight"):
        assert difference(expected[name], found[name]) < 2 * difference(expected[name], theirs[name])


# -- stand-alone networks ---------------------------------------------------------------------------------


@library
@pytest.mark.parametrize(("space", "dropped"), [(DARTS, 0.0), (NB201, 0.5)], ids=["darts", "nasbench201"])
def test_a_stand_alone_network_by_kernels_is_that_of_float64(space, dropped, monkeypatch):
    plain = space.network(space.sample(rng(3))).to(DEVICE)
    for norm in plain.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
    fast, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    x, y = images(8)
    for cell in (*cells_of(plain), *cells_of(fast), *cells_of(exact)):
        cell.drop_path = dropped
    for cell in cells_of(fast):
        cell.execute = run_by_kernels
    launched = tape_launches(monkeypatch, Refusing())
    expected, own, found = (trained(network, x, y) for network in (exact, plain, fast))
    assert worst(expected, found) < max(1e-5, 3 * worst(expected, own))
    assert "node_forward" in launched


def trained(network, x, y):
    """Logits, gradients, and what the statistics run to, after a step of training."""
    torch.manual_seed(1)
    logits = network.train()(x.to(next(network.parameters()).dtype))
    logits = logits[0] if isinstance(logits, tuple) else logits
    F.cross_entropy(logits, y).backward()
    moved = {name: parameter.grad for name, parameter in network.named_parameters()}
    return {"logits": logits, **moved, **dict(network.named_buffers())}


# -- cells by themselves ----------------------------------------------------------------------------------


def twins(edge, *, nodes=2):
    """A cell of one input that is run plainly, and a copy by kernels."""
    plain = Cell("c", 1, nodes, edge).to(DEVICE)
    fast = copy.deepcopy(plain)
    fast.execute = run_by_kernels
    return plain, fast


def bare_norms(module):
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.affine, norm.weight, norm.bias = False, None, None
    return module


def maps(cell, x):
    return (cell.execute or Cell.plain)(cell, [x])


@library
def test_every_run_gives_the_same_bits():
    _, fast = twins(lambda i, j: pool("max" if i else "avg", 1, 4, normed=True))
    x = channels_last(torch.randn(4, 4, 12, 12, device=DEVICE)).requires_grad_()
    first, second = ([y, *torch.autograd.grad(y.sin().sum(), x)] for y in (maps(fast, x)[-1] for _ in "12"))
    assert all(map(torch.equal, first, second))


@library
def test_nodes_that_no_gradient_reaches_and_graphs_that_are_kept():
    plain, fast = twins(lambda i, j: bare_norms(PRIMITIVES["nor_conv_1x1"](4, 4, 1)))
    x = channels_last(torch.randn(3, 4, 4, 4, device=DEVICE)).requires_grad_()
    along = torch.linspace(-2, 2, x.numel(), device=DEVICE).view(x.shape).sin()
    found = []
    for cell in (plain, fast):
        first, second = maps(cell, x)
        both = torch.autograd.grad((second * along).sum(), [x, *cell.parameters()], retain_graph=True)
        alone = torch.autograd.grad((first * along).sum(), [x, *cell.parameters()], allow_unused=True)
        found.append([*both, *(g for g in alone if g is not None and g.any())])
    assert len(found[0]) == len(found[1]) == 6
    assert max(map(difference, *found)) < 1e-5


@library
@pytest.mark.parametrize("bare", [False, True])
def test_weights_into_nodes_that_no_gradient_reaches_get_zeros(bare):
    def edge(src, dst):
        return MixedOp(f"{src}->{dst}", candidates(["nor_conv_1x1", "skip_connect"], 4, 4), {})

    plain, fast = twins((lambda *at: bare_norms(edge(*at))) if bare else edge)
    x, found = channels_last(torch.randn(3, 4, 4, 4, device=DEVICE)), []
    values = torch.rand(3, 2, device=DEVICE)
    for cell in (plain, fast):
        rows = values.clone().requires_grad_()
        for row, (_, _, op) in zip(rows, cell.edges(), strict=True):
            op._mixture[op.decision] = row
        first, second = maps(cell, x)
        both = torch.autograd.grad(second.sin().sum(), rows, retain_graph=True)
        found.append([*both, *torch.autograd.grad(first.sin().sum(), rows)])
    assert found[0][1][0].all()
    assert not found[1][1][1:].any()
    assert max(map(difference, *found)) < 1e-5


@library
def test_nodes_of_different_sizes():
    def edge(src, dst):
        if (src, dst) == (0, 1):
            return nn.Identity()
        return bare_norms(PRIMITIVES["max_pool_3x3" if src else "nor_conv_3x3"](4, 4, 2))

    plain, fast = twins(edge)
    x = channels_last(torch.randn(3, 4, 6, 6, device=DEVICE))
    for a, b in zip(maps(plain, x), maps(fast, x), strict=True):
        assert difference(a, b) < 1e-5


@library
def test_a_node_that_only_a_users_operation_leads_to():
    def edge(src, dst):
        return Scaled() if (src, dst) == (0, 1) else bare_norms(PRIMITIVES["nor_conv_1x1"](4, 4, 1))

    plain, fast = twins(edge)
    x = channels_last(torch.randn(3, 4, 4, 4, device=DEVICE)).requires_grad_()
    found = [
        [y, *torch.autograd.grad(y.sin().sum(), x)] for y in (maps(cell, x)[-1] for cell in (plain, fast))
    ]
    assert max(map(difference, *found)) < 1e-5


@library
def test_a_module_that_stands_on_several_edges_follows_each_time(monkeypatch):
    known = launch.follow

    def follow(where, *args, **kwargs):
        assert len(where[:, 0].unique()) == len(where)  # on CUDA all of them move at once
        known(where, *args, **kwargs)

    monkeypatch.setattr(launch, "follow", follow)
    shared = bare_norms(PRIMITIVES["nor_conv_1x1"](4, 4, 1))
    plain, fast = twins(lambda i, j: shared if i == 0 else nn.Identity())
    x = channels_last(torch.randn(3, 4, 4, 4, device=DEVICE))
    for a, b in zip(maps(plain, x), maps(fast, x), strict=True):
        assert difference(a, b) < 1e-5
    for a, b in zip(plain.buffers(), fast.buffers(), strict=True):
        assert difference(a, b, 1e-2) < 1e-5
    assert max(int(b) for b in fast.buffers() if b.dim() == 0) == 2


@library
def test_norms_that_do_not_train_are_left_to_the_batched_path(monkeypatch):
    edge = lambda i, j: bare_norms(PRIMITIVES["nor_conv_1x1"](4, 4, 1))  # noqa: E731
    plain, fast = twins(edge)
    x = channels_last(torch.randn(3, 4, 4, 4, device=DEVICE))
    maps(twins(edge)[1], x)  # the first use is compared with the batched path, by a passage, too
    for cell in (plain, fast):
        for norm in cell.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eval()
    monkeypatch.setattr(passage.Passage, "leave", None)
    for a, b in zip(maps(plain, x), maps(fast, x), strict=True):
        assert difference(a, b) < 1e-5


@library
@pytest.mark.parametrize(("needs", "levels"), [((True, True), 1), ((False, False), 1), ((False, True), 2)])
def test_inputs_are_a_level_where_all_or_none_need_gradients(needs, levels, monkeypatch):
    """So nothing is computed for an input that needs none."""
    cell = Cell("c", 2, 1, lambda i, j: bare_norms(PRIMITIVES["nor_conv_1x1"](4, 4, 1))).to(DEVICE)
    plain, cell.execute = copy.deepcopy(cell), run_by_kernels
    cell(*torch.randn(2, 3, 4, 4, 4, device=DEVICE))  # what is run is tried first
    asked, known = [], launch.convolve_gradients

    def gradients(*args, for_x, **kwargs):
        asked.append(for_x)
        return known(*args, for_x=for_x, **kwargs)

    monkeypatch.setattr(launch, "convolve_gradients", gradients)
    found = []
    for run in (plain, cell):
        torch.manual_seed(0)
        maps = [channels_last(torch.randn(3, 4, 4, 4, device=DEVICE)).requires_grad_(need) for need in needs]
        run(*maps).sin().sum().backward()
        found.append([tensor.grad for tensor in (*maps, *run.parameters()) if tensor.grad is not None])
    assert len(asked) == levels
    assert sum(asked) == any(needs)
    for a, b in zip(*found, strict=True):
        assert difference(a, b) < 1e-5


class Counted:
    """Programs, of which each launch is counted."""

    def __init__(self, programs, counts):
        self.programs, self.counts = programs, counts

    def __getattr__(self, name):
        self.counts[name] += 1
        return getattr(self.programs, name)


@library
def test_a_cell_takes_few_launches(monkeypatch):
    (_, _, fast), (x, y) = triple(SPACES["darts"]), images()
    outcome(fast, x, y)  # what is run is tried first
    counts = Counter()
    for module, name in PROGRAMS:
        monkeypatch.setattr(module, name, Counted(getattr(module, name), counts))
    outcome(fast, x, y)
    cells, nodes, sources = 2, 2 + 1, 2 + 1  # both inputs count as one
    assert counts == {
        "pool_forward": sources,
        "node_forward": nodes,
        "node_sums": nodes,
        "branch_gradient": sources,
        "pool_gradient": sources,
        "leaving_gradient": sources,
        "sums": sources + cells,
        "norm_forward": cells,
        "norm_gradient": sources + cells,
        "follow": cells,
    }


# -- trust ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max", "avg"])
def test_pools_that_are_wrong_are_not_used(name, monkeypatch):
    monkeypatch.setattr(trust, "_TRIED", {})
    known = mixing_launch.pools

    def wrong(x, *args, **room):
        return known(x + 0.1 * x.square(), *args, **room)

    monkeypatch.setattr(mixing_launch, "pools", wrong)
    with pytest.warns(UserWarning, match="Pool2d, MixtureNorm on .* is not kernels what it is alone"):
        found = trust.known(pool(name, 1, 4, normed=True), kernels=True)
    assert found.chain is not None
    assert found.form is None


def test_what_has_no_tensors_is_tried_on_the_kind_of_map_that_it_gets(monkeypatch):
    monkeypatch.setattr(trust, "_TRIED", {})
    op, x = PRIMITIVES["avg_pool_3x3"](4, 4, 1), torch.randn(1, 4, 2, 2, device=DEVICE)
    assert trust.known(op, kernels=True).form is None
    assert trust.known(op, on=x.double(), kernels=True).form is None
    assert not trust._TRIED
    assert trust.known(op, on=x, kernels=True).form == Pool(largest=False, stride=1, norm=None)
    assert list(itertools.chain(*trust._TRIED))[:2] == ["kernels", DEVICE.type]
