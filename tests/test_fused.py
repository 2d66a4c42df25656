"""Fused execution: operations that run together give what each gives alone, in values and all gradients."""

import copy
import dataclasses
import warnings
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from calls import Calls
from forwarded import by
from nested import nested_space
from torch import nn

from nas.data.task import load_task
from nas.oneshot.bilevel import Bilevel, recompute_cells
from nas.oneshot.darts_step import stepping
from nas.oneshot.methods import METHODS
from nas.oneshot.path_evaluation import accuracies
from nas.oneshot.relaxations import GumbelHard, Softmax
from nas.oneshot.supernet import Supernet, as_searched
from nas.space.batching import Batched, Stack, channels_last, depthwise
from nas.space.cell import Cell
from nas.space.loading import load
from nas.space.mixed_op import MixedOp, Terms
from nas.space.ops import PRIMITIVES, candidates
from nas.space.space import Space
from nas.training.batched import equivalence
from nas.training.batched.cells import execute_cells, explain, resolve
from nas.training.batched.execution_plan import chain_of, outcome_of, table_of
from nas.training.recipe import Recipe
from nas.training.train import train

CPU = torch.device("cpu")
LIMIT = {torch.float32: 1e-5, torch.float64: 1e-12}
each_precision = pytest.mark.parametrize("dtype", LIMIT, ids=["float32", "float64"])


def difference(a, b):
    """Of the norm; where there is nothing but rounding, of one."""
    a, b = a.detach(), b.detach()
    return float((a - b).norm() / a.norm().clamp_min(1e-3))


# -- depthwise convolution --------------------------------------------------------------------------------


@each_precision
@pytest.mark.parametrize("sides", [(8, 8), (7, 5), (2, 2), (1, 3)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel", [3, 5, 7, 9])
def test_a_depthwise_convolution_is_that_of_the_library(kernel, dilation, stride, sides, dtype):
    x = torch.randn(3, 4, *sides, dtype=dtype, requires_grad=True)
    weight = torch.randn(4, 1, kernel, kernel, dtype=dtype, requires_grad=True)
    padding = dilation * (kernel // 2)
    expected = F.conv2d(x, weight, stride=stride, padding=padding, dilation=dilation, groups=4)
    found = depthwise(x, weight, stride=stride, dilation=dilation)
    along = torch.randn_like(expected)
    assert difference(expected, found) < LIMIT[dtype]
    pairs = zip(
        torch.autograd.grad(expected, [x, weight], along),
        torch.autograd.grad(found, [x, weight], along),
        strict=True,
    )
    assert max(difference(a, b) for a, b in pairs) < LIMIT[dtype]


@pytest.mark.parametrize(("kernel", "dilation"), [(5, 1), (3, 2)])
def test_a_depthwise_convolution_can_be_differentiated_twice(kernel, dilation):
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)
    run = lambda x, weight: depthwise(x, weight, stride=1, dilation=dilation)  # noqa: E731
    assert torch.autograd.gradcheck(run, (x, weight))
    assert torch.autograd.gradgradcheck(run, (x, weight))


@pytest.mark.parametrize("sides", [(8, 8), (7, 5), (1, 3)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (5, 1), (3, 2)])
def test_second_derivatives_with_fixed_kernels_are_those_of_the_library(kernel, dilation, stride, sides):
    """They are few calls, however many channels there are."""
    x = torch.randn(2, 16, *sides, dtype=torch.float64)
    weight, scale = torch.randn(16, 1, kernel, kernel, dtype=torch.float64), torch.ones(16, 1, 1).double()
    found, padding = [], dilation * (kernel // 2)
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
    for expected, ours in zip(*found, strict=True):
        assert difference(expected, ours) < 1e-9
    convolutions = [count for name, count in calls.counts.items() if "convolution" in name]
    assert sum(convolutions) <= 3, calls.counts


def test_only_wanted_gradients_of_a_depthwise_convolution_are_computed():
    x = torch.randn(2, 3, 6, 6)
    weight = torch.randn(3, 1, 5, 5, requires_grad=True)
    depthwise(x, weight, stride=1, dilation=1).sum().backward()
    assert x.grad is None
    assert weight.grad is not None


# -- primitives -------------------------------------------------------------------------------------------


@each_precision
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", [name for name in PRIMITIVES if name != "none"])
def test_primitives_of_a_kind_run_together(name, stride, affine, training, dtype):
    ops = [PRIMITIVES[name](4, 4, stride).to(dtype) for _ in range(3)]
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
    x = torch.randn(5, 4, 7, 6, dtype=dtype, requires_grad=True)
    alone = torch.cat([op(x) for op in ops], dim=1)
    along = torch.randn_like(alone)
    expected = [alone, *torch.autograd.grad(alone, [x, *parameters(ops)], along)]
    together = outcome_of(others, channels_last(x))
    found = [together, *torch.autograd.grad(together, [x, *parameters(others)], along)]
    assert max(difference(a, b) for a, b in zip(expected, found, strict=True)) < LIMIT[dtype]
    for a, b in zip(buffers(ops), buffers(others), strict=True):
        assert difference(a.to(dtype), b.to(dtype)) < LIMIT[dtype]


def parameters(ops):
    return [parameter for op in ops for parameter in op.parameters()]


def buffers(ops):
    return [buffer for op in ops for buffer in op.buffers()]


def test_an_unknown_layer_has_no_rule():
    assert chain_of(nn.Sequential(nn.ReLU(), nn.Softplus())) is None
    assert chain_of(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")) is None
    assert chain_of(nn.BatchNorm2d(2, momentum=None)) is None
    assert chain_of(nn.MaxPool2d(2, return_indices=True)) is None


def test_a_subclass_of_a_known_layer_has_no_rule():
    class Doubled(nn.ReLU):
        def forward(self, x):
            return 2 * super().forward(x)

    assert chain_of(Doubled()) is None


def test_an_empty_sequence_runs_by_itself():
    cell = Cell("c", 1, 2, lambda *_: nn.Sequential())
    x = torch.randn(2, 4, 3, 3)
    expected = cell(x)
    execute_cells(cell, "batched", CPU)
    torch.testing.assert_close(cell(x), expected)


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
            return choose.op(f"{src}->{dst}", {**known, "scaled": Scaled})

        return nn.Sequential(
            nn.Conv2d(3, 4, 1), Cell("c", 1, 3, edge, concat=True), nn.Flatten(), nn.LazyLinear(5)
        )

    return Space("users", build)


SPACES = {
    "toy": load("toy", width=4, classes=5, in_channels=3),
    "nasbench201": load("nasbench201", width=4, cells=1, classes=5),
    "darts": load("darts", width=4, cells=3, classes=5),
    "nested": nested_space(),
}
each_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
PARTIAL = load("darts", width=8, cells=3, classes=5)


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


def images(dtype, side=8):
    return torch.randn(6, 3, side, side, dtype=dtype), torch.arange(6) % 5


def assert_equal(plain, batched, run, x, y, *, limit):
    """Logits, all gradients and all running statistics."""
    outcomes = []
    for supernet in (plain, batched):
        supernet.zero_grad()
        torch.manual_seed(1)
        logits = run(supernet, x)
        F.cross_entropy(logits, y).backward()
        outcomes.append((logits, {k: p.grad for k, p in supernet.named_parameters()}))
    (a, gradients), (b, others) = outcomes
    assert difference(a, b) < limit
    for name, gradient in gradients.items():
        assert (gradient is None) == (others[name] is None), name
        if gradient is not None:
            assert difference(gradient, others[name]) < limit, name
    kept = dict(batched.named_buffers())
    for name, buffer in plain.named_buffers():
        assert difference(buffer.double(), kept[name].double()) < limit, name


def mixture(supernet, x):
    return supernet(x)


@each_precision
@pytest.mark.parametrize("side", [8, 7])
@each_space
def test_a_mixture_runs_batched_as_it_does_plainly(space, side, dtype):
    assert_equal(*twins(space, dtype), mixture, *images(dtype, side), limit=10 * LIMIT[dtype])


@each_precision
def test_so_do_partial_channels_with_weighed_edges(dtype):
    pair = twins(PARTIAL, dtype, parts=4, edge_norm=True)
    assert_equal(*pair, mixture, *images(dtype), limit=10 * LIMIT[dtype])


@each_precision
@each_space
def test_so_do_sampled_operations(space, dtype):
    pair = twins(space, dtype, relaxation=GumbelHard())
    assert_equal(*pair, mixture, *images(dtype), limit=10 * LIMIT[dtype])


@each_precision
@each_space
def test_so_do_single_paths(space, dtype):
    plain, batched = twins(space, dtype)
    genotype = space.nearest(plain.strengths())
    assert_equal(plain, batched, lambda net, x: net(x, genotype), *images(dtype), limit=10 * LIMIT[dtype])


@each_space
def test_so_does_evaluation_by_running_statistics(space):
    plain, batched = twins(space)
    for _ in range(2):
        assert_equal(plain, batched, mixture, *images(torch.float64), limit=1e-9)
    plain.eval()
    batched.eval()
    assert_equal(plain, batched, mixture, *images(torch.float64), limit=1e-9)


@each_space
def test_so_does_a_mixture_of_what_is_left(space):
    plain, batched = twins(space)
    alive = [tuple(range(len(d.options)))[i % 2 :: 2] or (0,) for i, d in enumerate(space.decisions)]
    for supernet in (plain, batched):
        supernet.keep(alive)
    assert_equal(plain, batched, mixture, *images(torch.float64), limit=1e-9)


def test_so_do_operations_without_a_rule_and_edges_that_are_not_decided():
    space = users_space()
    plain, batched = Supernet(space).double(), None
    plain(torch.randn(2, 3, 8, 8, dtype=torch.float64))
    batched = copy.deepcopy(plain)
    execute_cells(batched, "batched", CPU)
    assert_equal(plain, batched, mixture, *images(torch.float64), limit=1e-9)


def signals_space():
    """Cells over signals `[B, C, L]`."""

    def build(choose):
        known = candidates(["none", "skip_connect"], 4, 4)
        conv = partial(nn.Conv1d, 4, 4, 3, padding=1)
        options = {**known, "conv": conv, "pool": partial(nn.MaxPool1d, 3, 1, 1), "scaled": Scaled}
        cells = [Cell("signal", 1, 2, lambda i, j: choose.op(f"{i}->{j}", options)) for _ in range(2)]
        return nn.Sequential(
            nn.Flatten(2), nn.Conv1d(3, 4, 1), *cells, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 5)
        )

    return Space("signals", build)


def test_so_do_cells_over_signals_and_their_dropped_paths():
    plain, batched = twins(signals_space())
    for supernet in (plain, batched):
        for cell in supernet.modules():
            if isinstance(cell, Cell):
                cell.drop_path = 0.3
    assert_equal(plain, batched, mixture, *images(torch.float64), limit=1e-9)


@pytest.mark.parametrize(
    "change", [lambda norm: norm.eval(), lambda norm: setattr(norm, "track_running_stats", False)]
)
def test_so_does_a_cell_of_which_some_norms_are_frozen_or_do_not_record(change):
    plain, batched = twins(SPACES["darts"])
    for supernet in (plain, batched):
        for norm in [m for m in supernet.modules() if isinstance(m, nn.BatchNorm2d)][::3]:
            change(norm)
    assert_equal(plain, batched, mixture, *images(torch.float64), limit=1e-9)


def test_so_do_cells_that_are_computed_again():
    plain, batched = twins(SPACES["darts"])
    recompute_cells(batched, enabled=True)
    assert_equal(plain, batched, mixture, *images(torch.float64), limit=1e-9)


def test_so_does_a_hessian():
    plain, batched = twins(SPACES["darts"])
    x, y = images(torch.float64)
    found = []
    for supernet in (plain, batched):
        loss = F.cross_entropy(supernet(x), y)
        (first,) = torch.autograd.grad(loss, [supernet.alphas[0]], create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [supernet.alphas[0]])[0])
    assert difference(*found) < 1e-9


def test_dropped_identities_and_dropped_paths():
    plain, batched = twins(SPACES["darts"])
    for supernet in (plain, batched):
        supernet.drop_skips(1.0)
        for cell in supernet.modules():
            if isinstance(cell, Cell):
                cell.drop_path = 0.5
    assert_equal(plain, batched, mixture, *images(torch.float64), limit=1e-9)


def test_dropped_paths_beside_partial_channels():
    """What bypasses the operations of an edge is dropped with them."""
    plain, batched = twins(PARTIAL, parts=4, edge_norm=True)
    for supernet in (plain, batched):
        for cell in supernet.modules():
            if isinstance(cell, Cell):
                cell.drop_path = 0.5
    assert_equal(plain, batched, mixture, *images(torch.float64), limit=1e-9)


def test_a_network_of_its_own_drops_the_same_paths():
    space = SPACES["darts"]
    plain = space.network(space.nearest([np.array([0, 0, 1, 2, 3, 0, 0, i]) for i in range(28)])).double()
    batched = copy.deepcopy(plain)
    execute_cells(batched, "batched", CPU)
    for network in (plain, batched):
        for cell in network.modules():
            if isinstance(cell, Cell):
                cell.drop_path = 0.3
    assert_equal(plain, batched, lambda net, x: net(x), *images(torch.float64), limit=1e-9)


def test_weights_alone_and_alphas_alone():
    plain, batched = twins(SPACES["darts"])
    for moving in ("weights", "architecture"):
        for supernet in (plain, batched):
            wanted = set(getattr(supernet, moving)())
            for parameter in supernet.parameters():
                parameter.requires_grad = parameter in wanted
        assert_equal(plain, batched, mixture, *images(torch.float64), limit=1e-9)


def test_many_architectures_at_once_run_as_they_did():
    task = load_task("digits")
    plain, batched = twins(load("darts", width=4, cells=3, in_channels=1), torch.float32)
    genotypes = [plain.space.nearest([torch.rand(8).numpy() for _ in range(28)]) for _ in range(3)]
    scores = [accuracies(net, genotypes, task, seed=0, images=512) for net in (plain, batched)]
    assert scores[0] == scores[1]


def test_hooks_are_heard():
    _, batched = twins(SPACES["darts"])
    heard = []
    mixed = next(m for m in batched.modules() if isinstance(m, MixedOp))
    handle = mixed.ops[4].register_forward_hook(lambda *_: heard.append(1))
    x, _ = images(torch.float64)
    batched(x)
    assert heard
    handle.remove()
    heard.clear()
    batched(x)
    assert not heard


def test_modules_that_are_replaced_are_seen():
    """An operation on an edge, one of a mixture, and a layer of one."""
    supernet = Supernet(users_space()).train()
    execute_cells(supernet, "batched", CPU)
    x = images(torch.float32)[0]
    cell = next(module for module in supernet.modules() if isinstance(module, Cell))
    mixed = next(op for _, _, op in cell.edges() if isinstance(op, MixedOp))
    chain = next(op for op in mixed.ops if isinstance(op, nn.Sequential))
    for holder, name in ((chain, "1"), (mixed.ops, "2"), (cell.incoming[0], "0")):
        before = mixture(supernet, x)
        old = getattr(holder, name)
        setattr(holder, name, nn.Sequential(nn.Tanh(), old))
        now = mixture(supernet, x)
        execute_cells(supernet, "plain", CPU)
        assert difference(mixture(supernet, x), now) < 1e-5 < difference(before, now)
        execute_cells(supernet, "batched", CPU)


def test_what_leaves_a_node_runs_in_few_calls(monkeypatch):
    library, calls, counts = F.conv2d, [], []
    monkeypatch.setattr(F, "conv2d", lambda *args, **kwargs: calls.append(1) or library(*args, **kwargs))
    x, _ = images(torch.float64)
    for supernet in twins(SPACES["darts"]):
        supernet(x)  # what runs together is tried first
        calls.clear()
        supernet(x)
        counts.append(len(calls))
    plain, batched = counts
    assert batched < plain / 2


def test_rows_of_one_table_are_read_from_it_and_others_as_they_are():
    """A supernet's mixture, in an order of its own, as rows of the table and as so many tensors."""
    _, batched = twins(SPACES["darts"])
    x, y = images(torch.float64)
    table = batched.points()[0].detach()
    order = torch.randperm(len(table))
    names, found = [decision.name for decision in SPACES["darts"].decisions], []
    for apart in (False, True):
        whole = table.clone().requires_grad_()
        own = [row.clone() if apart else row for row in whole]
        mixture = {name: own[at] for name, at in zip(names, order.tolist(), strict=True)}
        assert (table_of([Terms((0,), row) for row in mixture.values()]) is None) == apart
        loss = F.cross_entropy(batched.mix(x, mixture), y)
        found.append((loss, *torch.autograd.grad(loss, whole)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_losses_of_many_steps_are_the_same():
    plain, batched = twins(SPACES["darts"], torch.float32, relaxation=Softmax())
    losses = []
    for supernet in (plain, batched):
        optimizer = torch.optim.SGD(supernet.parameters(), lr=0.05, momentum=0.9)
        torch.manual_seed(3)
        curve = []
        for _ in range(8):
            x, y = images(torch.float32)
            optimizer.zero_grad()
            loss = F.cross_entropy(supernet(x), y)
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        losses.append(curve)
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


# -- where it is used -------------------------------------------------------------------------------------


def executions(network):
    return {cell.execute is not None for cell in network.modules() if isinstance(cell, Cell)}


@pytest.mark.parametrize(("execution", "expected"), [("auto", {True}), ("plain", {False})])
def test_a_training_runs_as_its_recipe_says_and_leaves_a_plain_network(execution, expected):
    task, space = load_task("digits"), load("nasbench201", width=4, cells=1, in_channels=1)
    network, seen = space.network((3, 4, 1, 2, 3, 0)), []
    recipe = Recipe(epochs=1, batch=256, lr=0.1, weight_decay=0.0, execution=execution)

    def forward(network, x, step):
        del step
        seen.append(executions(network))
        assert x.is_contiguous(memory_format=torch.channels_last)
        return network(x)

    train(network, task, recipe, seed=0, gradients=by(forward))
    assert seen[0] == expected
    assert executions(network) == {False}


@pytest.mark.parametrize("method", ["darts", "darts2", "gdas", "pcdarts", "sdarts-adv", "oles", "gaea"])
def test_steps_of_a_search_are_the_same_on_either_path(method):
    task, space = load_task("digits").reduced(96), load("darts", width=4, cells=3, in_channels=1)
    states = []
    for execution in ("plain", "batched"):
        torch.manual_seed(0)
        parts = {"pcdarts": 4}.get(method, 1)
        own = METHODS[method](**{"steps": 2} if method == "sdarts-adv" else {})
        supernet = Supernet(space, relaxation=own.relaxation, parts=parts, edge_norm=own.edge_norm)
        recipe = Recipe(epochs=1, batch=16, lr=0.02, weight_decay=0.0, clip=5.0, execution=execution)
        method = dataclasses.replace(own, weights=recipe)
        advance = stepping(Bilevel.begun(supernet.train(), task, method, seed=0))
        for _ in range(2):
            advance()
        assert all(parameter.requires_grad for parameter in supernet.parameters())
        states.append([p.detach() for p in [*supernet.architecture(), *supernet.weights()]])
    worst = max(difference(a, b) for a, b in zip(*states, strict=True))
    assert worst < 2e-3


# -- trust ------------------------------------------------------------------------------------------------


class Wrong(nn.Module, Batched):
    """Whose rule forgets its weight."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.scale * x

    def batch_key(self):
        return ()

    @classmethod
    def batch(cls, modules: Sequence[nn.Module], stack: Stack) -> Stack:
        return Stack(stack.apart() * modules[0].scale, len(modules), shared=False)


def test_a_wrong_rule_is_found_out_once_and_not_used(monkeypatch):
    monkeypatch.setattr(equivalence, "_TRIED", {})
    cell = Cell("c", 1, 2, lambda *_: Wrong())
    with torch.no_grad():
        for i, parameter in enumerate(cell.parameters()):
            parameter.fill_(i + 1.0)
    x = torch.randn(2, 3, 4, 4)
    expected = cell(x)
    execute_cells(cell, "batched", CPU)
    with pytest.warns(
        UserWarning, match="Wrong on cpu is not batched .* output differs by .* do not run batched"
    ):
        found = cell(x)
    torch.testing.assert_close(found, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cell(x)


def test_trying_leaves_random_streams_and_operations_alone(monkeypatch):
    monkeypatch.setattr(equivalence, "_TRIED", {})
    op = PRIMITIVES["sep_conv_3x3"](4, 4, 1)
    before, state = copy.deepcopy(op.state_dict()), torch.get_rng_state()
    assert equivalence.known(op) is not None
    assert torch.equal(state, torch.get_rng_state())
    for name, value in op.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_path_is_resolved_and_explained():
    assert resolve("auto", CPU) == "batched"
    assert resolve("plain", CPU) == "plain"
    assert resolve("auto", torch.device("mps")) == "plain"
    assert "batched" in explain(CPU)
    assert "plain" in explain(torch.device("mps"))
