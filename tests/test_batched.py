"""Batched execution: operations that run together give what each gives alone, in values and all gradients."""

import copy
import dataclasses
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from calls import Calls
from nested import nested_space
from torch import nn
from trainings import double

from nas.data.loading import load_task
from nas.oneshot.methods import METHODS
from nas.oneshot.relaxations import GumbelHard
from nas.oneshot.search import Search
from nas.oneshot.supernet import Supernet, as_searched, recompute_cells
from nas.space.batching import Stack, channels_last, depthwise
from nas.space.cell import Cell
from nas.space.loading import load
from nas.space.ops import PRIMITIVES, candidates
from nas.space.space import Space
from nas.training.batched import chain_of, execute_cells
from nas.training.recipe import Recipe

CPU = torch.device("cpu")
SIDES = [(8, 8), (7, 5), (2, 2), (1, 3)]


def difference(a, b):
    """Of the norm; where there is nothing but rounding, of one."""
    a, b = a.detach(), b.detach()
    return float((a - b).norm() / a.norm().clamp_min(1e-3))


def run_together(ops, x):
    """What operations of one kind make of one map together, `[B, G * C, H, W]`."""
    stack, chains = Stack(x, len(ops), shared=True), [chain_of(op) for op in ops]
    for layers in zip(*chains, strict=True):
        stack = layers[0][1].run([layer for layer, _ in layers], stack)
    return stack.apart()


def largest_difference(some, others):
    return max(difference(a, b) for a, b in zip(some, others, strict=True))


# -- depthwise convolution --------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel", [3, 5, 7, 9])
def test_a_depthwise_convolution_is_that_of_the_library(kernel, dilation, stride):
    padding = dilation * (kernel // 2)
    for sides in SIDES:
        x = torch.randn(3, 4, *sides, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(4, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)
        expected = F.conv2d(x, weight, stride=stride, padding=padding, dilation=dilation, groups=4)
        found = depthwise(x, weight, stride=stride, dilation=dilation)
        along = torch.randn_like(expected)
        assert difference(expected, found) < 1e-12
        pairs = (torch.autograd.grad(out, [x, weight], along) for out in (expected, found))
        assert largest_difference(*pairs) < 1e-12


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (5, 1), (3, 2)])
def test_second_derivatives_with_fixed_kernels_are_those_of_the_library(kernel, dilation, stride):
    """They are few calls, however many channels there are."""
    weight, scale = torch.randn(16, 1, kernel, kernel, dtype=torch.float64), torch.ones(16, 1, 1).double()
    padding = dilation * (kernel // 2)
    for sides in SIDES:
        x, found = torch.randn(2, 16, *sides, dtype=torch.float64), []
        for run in (
            lambda x: F.conv2d(x, weight, None, stride, padding, dilation, groups=16),
            lambda x: depthwise(x, weight, stride=stride, dilation=dilation),
        ):
            own = scale.clone().requires_grad_()
            out = run(x * own)
            (first,) = torch.autograd.grad(out.pow(3).sum(), own, create_graph=True)
            with Calls() as calls:
                (second,) = torch.autograd.grad(first.square().sum(), own)
            found.append((out, first, second))
        assert largest_difference(*found) < 1e-9
        convolutions = [count for name, count in calls.counts.items() if "convolution" in name]
        assert sum(convolutions) <= 3, calls.counts


# -- primitives -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stride", "affine", "training"),
    [(1, True, True), (1, False, False), (2, True, False), (2, False, True)],
)
@pytest.mark.parametrize("name", [name for name in PRIMITIVES if name != "none"])
def test_primitives_of_a_kind_run_together(name, stride, affine, training):
    ops = [PRIMITIVES[name](4, 4, stride).double() for _ in range(3)]
    for op in ops:
        for module in op.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
        if not affine:
            as_searched(op, [""])
        op.train(training)
    assert chain_of(ops[0]) is not None
    others = copy.deepcopy(ops)
    x = torch.randn(5, 4, 7, 6, dtype=torch.float64, requires_grad=True)
    outcomes, along = [], None
    for own, run in ((ops, lambda: torch.cat([op(x) for op in ops], dim=1)),
                     (others, lambda: run_together(others, channels_last(x)))):  # fmt: skip
        out = run()
        along = torch.randn_like(out) if along is None else along
        parameters = [p for op in own for p in op.parameters()]
        found = torch.autograd.grad(out, [x, *parameters], along)
        outcomes.append([out, *found, *(b.double() for op in own for b in op.buffers())])
    assert largest_difference(*outcomes) < 1e-12


class Doubled(nn.ReLU):
    """A subclass of a known layer, which may do something else."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "op",
    [
        nn.Sequential(nn.ReLU(), nn.Softplus()),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(2, momentum=None),
        nn.MaxPool2d(2, return_indices=True),
        nn.Sequential(),
        Doubled(),
    ],
)
def test_what_is_not_known_runs_by_itself(op):
    assert chain_of(op) is None


# -- cells and supernets ----------------------------------------------------------------------------------


class Scaled(nn.Module):
    """An operation of a user, without a rule."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.scale * x.tanh()


def users_space():
    """Cells with an operation that has no rule, one edge that is not decided, and one of nothing."""

    def build(choose):
        def edge(src, dst):
            if (src, dst) == (0, 2):
                return PRIMITIVES["sep_conv_3x3"](4, 4, 1)
            if (src, dst) == (1, 3):
                return PRIMITIVES["none"](4, 4, 1)
            known = candidates(["none", "skip_connect", "max_pool_3x3", "dil_conv_5x5"], 4, 4)
            return choose.op(f"{src}->{dst}", {**known, "scaled": Scaled, "empty": nn.Sequential})

        cell = Cell("c", 1, 3, edge, concat=True)
        return nn.Sequential(
            nn.Conv2d(3, 4, 1), cell, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)
        )

    return Space("users", build)


def primitives_space(width=4):
    """A normal and a reducing cell with every primitive on every edge."""

    def build(choose):
        def cell(name, stride):
            def edge(src, dst):
                options = candidates(tuple(PRIMITIVES), width, width, 1 if src else stride)
                return choose.op(f"{name}: {src}->{dst}", options)

            return Cell(name, 1, 2, edge)

        cells = [cell("normal", 1), cell("reduce", 2)]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)]
        return nn.Sequential(nn.Conv2d(3, width, 1), *cells, *head)

    return Space("primitives", build)


def signals_space():
    """Cells over signals `[B, C, L]`."""

    def build(choose):
        known = candidates(["none", "skip_connect"], 4, 4)
        conv = partial(nn.Conv1d, 4, 4, 3, padding=1)
        options = {**known, "conv": conv, "pool": partial(nn.MaxPool1d, 3, 1, 1), "scaled": Scaled}
        cells = [Cell("signal", 1, 2, lambda i, j: choose.op(f"{i}->{j}", options)) for _ in range(2)]
        head = [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 5)]
        return nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 4, 1), *cells, *head)

    return Space("signals", build)


ALL = primitives_space()
SPACES = {
    "toy": load("toy", width=4, classes=5, in_channels=3),
    "nasbench201": load("nasbench201", width=4, cells=1, classes=5),
    "primitives": ALL,
    "nested": nested_space(),
    "users": users_space(),
    "signals": signals_space(),
}
DARTS = load("darts", width=4, cells=3, classes=5)
PARTIAL = primitives_space(width=8)


def twins(space, dtype=torch.float64, **settings):
    """A supernet that is not fresh, and a copy that runs batched."""
    plain = Supernet(space, **settings).to(dtype)
    with torch.no_grad():
        for parameter in plain.architecture():
            parameter.copy_(torch.randn_like(parameter))
    batched = copy.deepcopy(plain)
    execute_cells(plain, "plain", CPU)
    execute_cells(batched, "batched", CPU)
    return plain, batched


def images(dtype=torch.float64, side=8):
    return torch.randn(6, 3, side, side, dtype=dtype), torch.arange(6) % 5


def assert_equal(plain, batched, *, limit=1e-9, dtype=torch.float64, side=8, run=lambda net, x: net(x)):
    """Logits, all gradients and all running statistics."""
    outcomes, (x, y) = [], images(dtype, side)
    for network in (plain, batched):
        network.zero_grad()
        torch.manual_seed(1)
        logits = run(network, x)
        F.cross_entropy(logits, y).backward()
        outcomes.append((logits, {k: p.grad for k, p in network.named_parameters()}))
    (a, gradients), (b, others) = outcomes
    assert difference(a, b) < limit
    for name, gradient in gradients.items():
        assert (gradient is None) == (others[name] is None), name
        if gradient is not None:
            assert difference(gradient, others[name]) < limit, name
    kept = dict(batched.named_buffers())
    for name, buffer in plain.named_buffers():
        assert difference(buffer.double(), kept[name].double()) < limit, name


@pytest.mark.parametrize(
    ("side", "dtype", "limit"), [(8, torch.float32, 1e-4), (7, torch.float64, 1e-11)], ids=["8", "7"]
)
@pytest.mark.parametrize("space", [*SPACES.values(), DARTS], ids=[*SPACES, "darts"])
def test_a_mixture_runs_batched_as_it_does_plainly(space, side, dtype, limit):
    assert_equal(*twins(space, dtype), limit=limit, dtype=dtype, side=side)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_so_do_sampled_operations_single_paths_and_running_statistics(space):
    assert_equal(*twins(space, relaxation=GumbelHard()))
    plain, batched = twins(space)
    genotype = space.nearest(plain.strengths())
    assert_equal(plain, batched, run=lambda net, x: net(x, genotype))
    plain.eval()
    batched.eval()
    assert_equal(plain, batched)


def dropping(supernet, probability=0.5):
    for cell in supernet.modules():
        if isinstance(cell, Cell):
            cell.drop_path = probability


def halved(supernet):
    widths = [len(d.options) for d in supernet.space.decisions]
    supernet.keep([tuple(range(width))[i % 2 :: 2] or (0,) for i, width in enumerate(widths)])


def some_norms(change):
    def apply(supernet):
        for norm in [m for m in supernet.modules() if isinstance(m, nn.BatchNorm2d)][::3]:
            change(norm)

    return apply


def only(moving):
    def apply(supernet):
        wanted = set(getattr(supernet, moving)())
        for parameter in supernet.parameters():
            parameter.requires_grad = parameter in wanted

    return apply


EDGES = {"parts": 4, "edge_norm": True}
CHANGES = {
    "partial": (PARTIAL, EDGES, lambda supernet: None),
    "partial, dropped paths": (PARTIAL, EDGES, dropping),
    "dropped paths": (SPACES["signals"], {}, dropping),
    "dropped paths, images": (ALL, {}, dropping),
    "dropped identities": (ALL, {}, lambda supernet: supernet.drop_skips(1 - 1e-6)),
    "half of the options": (ALL, {}, halved),
    "frozen norms": (ALL, {}, some_norms(lambda norm: norm.eval())),
    "norms that do not record": (ALL, {}, some_norms(lambda n: setattr(n, "track_running_stats", False))),
    "computed again": (ALL, {}, partial(recompute_cells, enabled=True)),
    "weights alone": (ALL, {}, only("weights")),
    "alphas alone": (ALL, {}, only("architecture")),
}


@pytest.mark.parametrize(("space", "settings", "change"), CHANGES.values(), ids=CHANGES)
def test_so_does_a_supernet_that_was_changed(space, settings, change):
    pair = twins(space, **settings)
    for supernet in pair:
        change(supernet)
    assert_equal(*pair)


def test_so_does_a_hessian():
    (x, y), found = images(), []
    for supernet in twins(ALL):
        loss = F.cross_entropy(supernet(x), y)
        (first,) = torch.autograd.grad(loss, [supernet.alphas], create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [supernet.alphas])[0])
    assert difference(*found) < 1e-9


def test_hooks_are_heard():
    _, batched = twins(ALL)
    heard = []
    handle = batched.mixed_ops[0].ops[4].register_forward_hook(lambda *_: heard.append(1))
    x, _ = images()
    batched(x)
    assert heard
    handle.remove()
    heard.clear()
    batched(x)
    assert not heard


# -- where it is used -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["darts", "darts2", "gdas", "pcdarts", "sdarts-adv", "oles", "gaea"])
def test_steps_of_a_search_are_the_same_on_either_path(monkeypatch, method):
    """In float64, as steps amplify what is rounded."""
    task, space = load_task("digits").reduced(96), load("nasbench201", width=4, cells=1, in_channels=1)
    own, states = METHODS[method](**{"steps": 2} if method == "sdarts-adv" else {}), []
    for execution in ("plain", "batched"):
        recipe = Recipe(epochs=1, batch=16, lr=0.02, weight_decay=0.0, clip=5.0, execution=execution)
        search = Search(space, task, dataclasses.replace(own, weights=recipe, warmup=0.0), seed=0)
        double(search, monkeypatch)
        for _ in range(2):
            search.advance()
        assert all(p.requires_grad and p.dtype == torch.float64 for p in search.supernet.parameters())
        states.append([p.detach() for p in search.supernet.parameters()])
    assert largest_difference(*states) < 1e-11
