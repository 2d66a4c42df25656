"""The supernet: alphas in order, nested decisions, weighed edges, options out of the race, sampled ones."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from nested import nested_space
from torch import nn

from nas.errors import SpaceError
from nas.oneshot.relaxations import GumbelHard
from nas.oneshot.supernet import Supernet
from nas.space.cell import Cell
from nas.space.loading import load
from nas.space.mixed_op import MixedOp, Weighed
from nas.space.ops import candidates
from nas.space.space import Space


def without_cells():
    """Decisions straight in a chain, named against the alphabet."""

    def build(choose):
        names = ["nor_conv_1x1", "skip_connect", "max_pool_3x3"]
        layers = [choose.op(name, candidates(names, 3, 3)) for name in "zma"]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(3 * 64, 5))

    return Space("chain", build)


SPACES = {
    "nasbench201": load("nasbench201", width=4, cells=1, classes=5),
    "darts": load("darts", width=4, cells=3, classes=5),
    "nested": nested_space(),
    "chain": without_cells(),
}


def batch(*, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.arange(6) % 5


def assert_close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_decision_whose_only_option_is_no_connection():
    def build(choose):
        cell = Cell("c", 1, 1, lambda i, j: choose.op("x", candidates(["none"], 3, 3)))
        return nn.Sequential(cell, nn.Flatten(), nn.Linear(192, 5))

    supernet = Supernet(Space("nothing", build)).double()
    x, _ = batch()
    assert_close(supernet(x), supernet.extract((0,))(x))
    assert_close(supernet(x), supernet.network[-1].bias.expand(6, 5))


def test_nested_decisions_are_listed_mixed_and_extracted():
    space = SPACES["nested"]
    assert [d.name for d in space.decisions] == ["0->1", "inner", "0->2", "1->2"]
    assert space.trace.nested == {"0->1", "0->2", "1->2"}
    assert space.canonical((1, 1, 0, 1)) == (1, 0, 0, 1)
    assert space.size.count == 8 + 2 * (27 - 8)
    supernet = Supernet(space)
    assert Counter(m.decision for m in supernet.mixed_ops) == {"0->1": 1, "0->2": 1, "1->2": 1, "inner": 3}
    network = supernet.extract((2, 1, 0, 1))
    assert not any(isinstance(m, MixedOp) for m in network.modules())
    kernels = [m.kernel_size for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert kernels == [(1, 1), (1, 1), (3, 3)]
    x = batch()[0].float()
    torch.testing.assert_close(network.eval()(x), supernet.eval()(x, (2, 1, 0, 1)))


def test_wrong_genotypes_are_refused():
    supernet = Supernet(load("toy", width=4))
    for use in (supernet.extract, supernet.path, lambda g: supernet(batch()[0].float(), g)):
        for genotype in ((0, 0), (0, 0, 3)):
            with pytest.raises(SpaceError):
                use(genotype)


# -- edges, options out of the race, one option at a time -----------------------------------------------


def edged(space=SPACES["nasbench201"], **settings):
    torch.manual_seed(0)
    supernet = Supernet(space, edge_norm=True, **settings)
    with torch.no_grad():
        for parameter in supernet.architecture():
            parameter.copy_(torch.randn_like(parameter))
    return supernet


def test_the_edges_into_a_node_share_a_softmax():
    """PC-DARTS, §3.2: node 1 has one edge, node 2 two, node 3 three; each kind of cell by itself."""
    supernet = edged()
    betas, weights = supernet.betas.detach(), supernet.mixture_weights()[-1].detach()
    for members in ([0], [1, 2], [3, 4, 5]):
        torch.testing.assert_close(weights[members], betas[members].softmax(0))
    both = edged(SPACES["darts"]).mixture_weights()[-1].split(2 * [2, 3, 4, 5])
    assert [weights.sum().item() for weights in both] == pytest.approx([1.0] * 8)
    assert torch.equal(edged(SPACES["chain"]).mixture_weights()[-1], torch.ones(3))


def test_an_edges_weight_multiplies_the_channels_that_bypass_its_operations_too():
    """PC-DARTS, equation 3: the whole of what an edge gives is weighed, f_PC(x) * β."""
    mixed = edged(parts=2).train().mixed_ops[0]
    x, weights = torch.randn(2, 4, 6, 6), torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15])
    mixture = mixed._mixture
    mixture[mixed.decision] = weights
    plain = mixed(x)
    mixture[mixed.decision] = Weighed(weights, torch.tensor(0.5))
    torch.testing.assert_close(mixed(x), 0.5 * plain)
    half = sum(w * op(x[:, :2]) for w, op in zip(weights, mixed.ops, strict=True))
    torch.testing.assert_close(plain, torch.stack([half, x[:, 2:]], dim=2).flatten(1, 2))


def test_what_is_out_of_the_race_has_no_weight_and_no_gradient():
    supernet = Supernet(SPACES["nasbench201"]).train()
    supernet.keep([(1, 3), (3,), (0, 1, 2, 3, 4), (2, 4), (1, 2), (0, 3)])
    weights = supernet.mixture_weights()[0]
    assert ((weights > 0).sum(1) == torch.tensor([2, 1, 5, 2, 2, 2])).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(6))
    x, y = batch()
    (gradient,) = torch.autograd.grad(F.cross_entropy(supernet(x.float()), y), [supernet.alphas])
    assert gradient.isfinite().all() and (gradient[weights == 0] == 0).all()
    assert all(o in alive for o, alive in zip(supernet.genotype(), supernet.alive, strict=True))


def test_one_option_at_a_time_computes_nothing_else():
    torch.manual_seed(0)
    supernet = Supernet(SPACES["nasbench201"], relaxation=GumbelHard()).train()
    calls = Counter()
    for mixed in supernet.mixed_ops:
        for op in mixed.ops:
            op.register_forward_hook(lambda *_, place=mixed: calls.update([place]))
    x, y = batch()
    loss = F.cross_entropy(supernet(x.float()), y)
    assert set(calls.values()) == {1} and len(calls) == 18
    (gradient,) = torch.autograd.grad(loss, [supernet.alphas])
    assert (gradient != 0).any()
    calls.clear()
    supernet.mix(x.float(), supernet.expected_mixture())
    assert set(calls.values()) == {4}  # all but `none`
    weights = supernet.mixture_weights()
    genotype = tuple(weights[0].argmax(-1).tolist())
    x = x.float()
    torch.testing.assert_close(supernet.mix(x, supernet.mixture(weights)), supernet(x, genotype))


class Ones(nn.Module):
    def forward(self, x):
        return torch.ones_like(x)


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_a_sampled_option_is_that_of_the_released_gdas(seed):
    """An edge adds up `weights[o] * op_o(x)` of the sampled option and `weights[o]` alone of the others."""
    torch.manual_seed(seed)
    supernet = Supernet(load("nasbench201", width=4, cells=1), relaxation=GumbelHard()).double().train()
    torch.nn.init.normal_(supernet.alphas)
    weights = supernet.mixture_weights()
    x, y = batch()
    loss = F.cross_entropy(supernet.mix(x, supernet.mixture(weights)), y)
    (found,) = torch.autograd.grad(loss, [supernet.alphas], retain_graph=True)
    sampled = dict(zip(supernet.mixture(weights), weights[0].argmax(-1).tolist(), strict=True))
    for mixed in supernet.mixed_ops:
        for option in set(range(5)) - {sampled[mixed.decision]}:
            mixed.ops[option] = Ones()
    theirs = F.cross_entropy(supernet.mix(x, supernet.mixture(weights, full=True)), y)
    torch.testing.assert_close(loss, theirs)
    torch.testing.assert_close(found, torch.autograd.grad(theirs, [supernet.alphas])[0])


def test_a_part_of_the_channels_has_no_network_of_its_own():
    supernet = Supernet(load("nasbench201", width=8, cells=1), parts=2)
    with pytest.raises(SpaceError, match="1/2 of the channels"):
        supernet.extract((3,) * 6)
    assert supernet(torch.randn(2, 3, 8, 8), (3,) * 6).shape == (2, 10)
