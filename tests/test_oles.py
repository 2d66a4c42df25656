"""Operation-level early stopping: matches by hand, frozen weights stand still, alphas do not."""

import pytest
import torch
from smooth import RECIPE, make_task, smooth
from torch import nn

from nas.errors import ConfigError
from nas.oneshot.methods import Method
from nas.oneshot.oles import Freezer, Freezing, operations
from nas.oneshot.search import Search
from nas.oneshot.supernet import Supernet
from nas.space.loading import load
from nas.space.mixed_op import MixedOp
from nas.space.ops import FactorizedReduce
from nas.space.space import Space


def supernet(space=None):
    return Supernet(space or smooth()).train()


def searching(**settings):
    return Search(smooth(), make_task(), Method("t", RECIPE, freezing=Freezing(**settings)), seed=0)


def test_operations_are_the_candidates_with_weights_at_every_place_but_skips_that_reduce():
    """Those have weights, but are no rivals of skips: so in the released code, too."""
    net = supernet(load("nasbench201", width=4, cells=2, in_channels=1))
    found = operations(net)
    assert len(found) == 6 * 6 * 2 and len(operations(supernet())) == 6 * 2
    inside = {id(p) for weights in found.values() for p in weights}
    assert inside == {id(p) for mixed in net.mixed_ops for p in mixed.parameters()}
    net = supernet(load("darts", width=4, cells=3, in_channels=1))
    modules = {name: module for name, module in net.network.named_modules() if isinstance(module, MixedOp)}
    strided = [name for name, mixed in modules.items() if isinstance(mixed.ops[3], FactorizedReduce)]
    assert len(strided) == 2 * 8  # four nodes read both inputs of each of two cells
    found = operations(net)
    assert not any(f"{name}.ops.3" in found for name in modules)
    assert all(f"{name}.ops.{option}" in found for name in strided for option in (4, 5, 6, 7))


def seen(freezer, validation):
    freezer.validation = [validation[weight] for weight in freezer.weights]
    freezer.hold(compare=True)


def test_an_operation_below_the_threshold_is_frozen_after_so_many_steps():
    freezer = Freezer(supernet(), Freezing(steps=3, threshold=0.4))
    first, *others, last = freezer.operations
    for step in range(3):
        assert not freezer.frozen
        validation = {}
        for path, weights in freezer.operations.items():
            # Cosines of 1 and -1 in turn for the first, always 1 for the others but the last: always -1.
            sign = (-1) ** step if path == first else -1 if path == last else 1
            for w in weights:
                w.grad = torch.randn_like(w)
                validation[w] = sign * 2.0 * w.grad
        seen(freezer, validation)
    assert freezer.frozen == {first, last}
    assert all(w.grad is None for path in freezer.frozen for w in freezer.operations[path])
    assert all(w.grad.all() for path in others for w in freezer.operations[path])


def test_a_match_is_the_mean_cosine_of_the_columns_of_the_weights():
    """Along the output channels, each input channel and place of a kernel for itself, as the code has it."""
    freezer = Freezer(supernet(), Freezing(steps=1, threshold=0.0))
    torch.manual_seed(3)
    validation, wanted = {}, set()
    for path, weights in freezer.operations.items():
        match = []
        for w in weights:
            w.grad, validation[w] = torch.randn_like(w), torch.randn_like(w)
            columns = zip(w.grad.flatten(1).T, validation[w].flatten(1).T, strict=True)
            match.append(torch.stack([a @ b / (a.norm() * b.norm()) for a, b in columns]).mean())
        if torch.stack(match).mean() < 0:
            wanted.add(path)
    seen(freezer, validation)
    assert freezer.frozen == wanted and 0 < len(wanted) < len(freezer.operations)


def test_frozen_weights_stand_still_while_alphas_and_others_move():
    search = searching(steps=10**6)
    search.advance()
    freezer, net = search.freezer, search.supernet
    path = next(iter(freezer.operations))
    freezer.restore({**freezer.state(), "frozen": [path]})
    held = [w.detach().clone() for w in freezer.operations[path]]
    others = [w for p, ws in freezer.operations.items() if p != path for w in ws]
    before, alphas = [w.detach().clone() for w in others], net.alphas.detach().clone()
    search.advance()
    assert freezer.frozen == {path}
    assert all(torch.equal(a, b) for a, b in zip(held, freezer.operations[path], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, others, strict=True))
    assert not torch.equal(alphas, net.alphas)


def test_the_search_really_freezes_what_overfits():
    """On random labels the gradients of training and validation agree about nothing."""
    search = searching(steps=2)
    for _ in range(6):
        search.advance()
    assert search.freezer.frozen


def test_what_cannot_be_is_refused():
    for change in ({"steps": 0}, {"threshold": 1.5}):
        with pytest.raises(ConfigError, match="freezing"):
            Freezing(**change)
    options = {"max": lambda: nn.MaxPool2d(3, 1, 1), "avg": lambda: nn.AvgPool2d(3, 1, 1)}
    space = Space("pools", lambda choose: nn.Sequential(choose.op("pool", options), nn.Flatten()))
    with pytest.raises(ConfigError, match="no option of space 'pools' has weights"):
        Freezer(Supernet(space), Freezing())
