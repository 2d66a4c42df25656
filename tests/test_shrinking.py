"""Between stages: which options drop out, Fisher terms by hand, wider supernets, deeper spaces."""

import numpy as np
import pytest
import torch

from nas.data.task import load_task
from nas.errors import ConfigError, SpaceError
from nas.oneshot.progressive import deepened, inherit, record_fisher, shrink
from nas.oneshot.relaxations import Uniform
from nas.oneshot.stages import Stage
from nas.oneshot.supernet import Supernet
from nas.space.loading import load

NB201 = load("nasbench201", width=8, cells=1, in_channels=1)
TASK = load_task("digits").reduced(96)


def supernet(space=NB201, **settings):
    torch.manual_seed(0)
    return Supernet(space, **settings).train()


def test_the_strongest_options_stay():
    net = supernet()
    torch.manual_seed(1)
    with torch.no_grad():
        net.alphas[0].copy_(torch.randn(6, 5))
    strengths = net.strengths()
    events = shrink(net, Stage(1, keep=0.6))
    assert events == ["12 options drop out, 18 are left"]
    for row, alive in zip(strengths, net.alive, strict=True):
        assert set(alive) == set(np.argsort(-row)[:3])
    shrink(net, Stage(1, keep=0.2))
    assert net.genotype() == tuple(int(np.argmax(row)) for row in strengths)
    assert shrink(net, Stage(1, keep=0.2)) == []


def test_what_dropped_out_does_not_come_back():
    net = supernet()
    net.keep([(1, 3)] * 6)
    with torch.no_grad():
        net.alphas[0].copy_(torch.tensor([5.0, 1.0, 9.0, 0.0, 7.0]).expand(6, 5))
    shrink(net, Stage(1, keep=0.6))
    assert net.alive == [(1, 3)] * 6 and net.genotype() == (1,) * 6


def test_fisher_terms_are_those_of_the_formula():
    """`3 (o - μ)² / σ⁶` over the channels of each option's output, averaged over images, pixels and cells."""
    net = supernet(relaxation=Uniform())
    seen = {}
    for mixed in net.mixed():
        for option, op in enumerate(mixed.ops):
            op.register_forward_hook(
                lambda _, __, y, key=(mixed.decision, option): seen.setdefault(key, []).append(y.detach())
            )
    record_fisher(net, TASK, batch=1000)
    for row, decision in enumerate(NB201.decisions):
        for option in range(1, 5):
            terms = []
            for y in seen[decision.name, option]:
                sigma = y.std(1, keepdim=True)
                terms.append((3 * (y - y.mean(1, keepdim=True)) ** 2 / sigma**6).mean())
            assert len(terms) == 3
            wanted = -torch.stack(terms).mean().log()
            torch.testing.assert_close(net.alphas[0][row, option], wanted, rtol=1e-4, atol=1e-4)


def test_fisher_terms_are_always_taken_of_an_even_mixture():
    """Neither the terms of the stage before nor alphas that someone set may weigh the options."""
    even, weighed = supernet(relaxation=Uniform()), supernet(relaxation=Uniform())
    with torch.no_grad():
        weighed.alphas[0].copy_(torch.randn(6, 5) * 5)
    for net in (even, weighed):
        net.keep([(1, 2, 3, 4)] * 6)
        row = net.mixture(whole=True)["0->1"]
        torch.testing.assert_close(row.detach(), torch.tensor([0.0, 0.25, 0.25, 0.25, 0.25]))
        record_fisher(net, TASK)
    torch.testing.assert_close(even.alphas[0], weighed.alphas[0])


def test_no_connection_is_the_first_to_go():
    net = supernet(relaxation=Uniform())
    before = {name: value.clone() for name, value in net.network.state_dict().items()}
    record_fisher(net, TASK)
    assert all(torch.equal(before[name], value) for name, value in net.network.state_dict().items())
    assert (net.alphas[0][:, 0] < net.alphas[0][:, 1:].min()).all()
    shrink(net, Stage(1, keep=0.8))
    assert all(0 not in alive and len(alive) == 4 for alive in net.alive)


def test_a_supernet_on_more_channels_inherits_the_weights_in_turn():
    old, new = supernet(parts=4, edge_norm=True), Supernet(NB201, parts=2, edge_norm=True).train()
    old.keep([(1, 3)] * 6)
    inherit(new, old)
    assert new.alive == old.alive
    assert all(torch.equal(a, b) for a, b in zip(new.architecture(), old.architecture(), strict=True))
    one, two = (next(m for m in net.mixed()).ops[3][1].weight for net in (old, new))
    assert one.shape == (2, 2, 3, 3) and two.shape == (4, 4, 3, 3)
    for i in range(4):
        for j in range(4):
            assert torch.equal(two[i, j], one[i % 2, j % 2])
    stem = [net.network[0][0].weight for net in (old, new)]
    assert torch.equal(*stem)


def test_after_inheriting_an_operation_computes_the_same_channels_twice():
    """Batch-norm takes out the scale that twice as many inputs add, so that copies equal the original."""
    old, new = supernet(parts=4), Supernet(NB201, parts=2).train()
    inherit(new, old)
    small, large = next(old.mixed()).ops[3], next(new.mixed()).ops[3]
    x = torch.randn(8, 2, 6, 6)
    torch.testing.assert_close(large(torch.cat([x, x], 1)), small(x).repeat(1, 2, 1, 1), atol=1e-4, rtol=1e-3)


def test_a_deeper_space_has_the_same_decisions():
    deeper = deepened(NB201, 2.2)
    assert deeper.settings["cells"] == 2 and deeper.decisions == NB201.decisions
    assert deepened(NB201, 1) is NB201


def test_a_space_without_cells_cannot_be_deepened():
    with pytest.raises(ConfigError, match="no setting `cells`"):
        deepened(load("toy"), 2.0)


def test_keeping_nothing_is_refused():
    with pytest.raises(SpaceError, match="no option is left"):
        supernet().keep([()] * 6)
