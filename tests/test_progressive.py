"""Stages: the published schedules, Fisher terms by hand, wider and deeper supernets."""

import math

import numpy as np
import pytest
import torch

from nas.data.loading import load_task
from nas.errors import ConfigError
from nas.oneshot.progressive import (
    Progressive,
    PruneOneByOne,
    SearchStage,
    SingleStage,
    deepened,
    fading,
    inherit,
    record_fisher,
)
from nas.oneshot.relaxations import Uniform
from nas.oneshot.supernet import Supernet
from nas.space.loading import load

NB201 = load("nasbench201", width=8, cells=1, in_channels=1)
TASK = load_task("digits").reduced(96)


def supernet(space=NB201, **settings):
    torch.manual_seed(0)
    return Supernet(space, **settings).train()


# -- schedules ----------------------------------------------------------------------------------------


def ends(stages):
    return np.cumsum([stage.epochs for stage in stages]).tolist()


def test_is_darts_drops_options_after_the_published_epochs():
    """Its code: after epochs 23, 25, 27 and 29 of 30 with 5 options, 31, 34, ..., 49 of 50 with 8."""
    stages = PruneOneByOne().stages(30, 5)
    assert ends(stages) == [23, 25, 27, 29, 30]
    assert [s.options(5) for s in stages] == [5, 4, 3, 2, 1]
    longer = PruneOneByOne().stages(50, 8)
    assert ends(longer) == [31, 34, 37, 40, 43, 46, 49, 50]
    assert [s.options(8) for s in longer] == [8, 7, 6, 5, 4, 3, 2, 1]


def test_with_fewer_epochs_than_options_several_drop_out_together():
    assert [s.options(8) for s in PruneOneByOne().stages(4, 8)] == [8, 6, 3, 1]
    assert [s.epochs for s in PruneOneByOne().stages(4, 1)] == [4]


def test_progressive_stages_are_equally_long_and_the_last_ones_remain():
    staging = Progressive(keep=(1.0, 5 / 8, 3 / 8), depth=(1.0, 2.0, 3.0), anew=True)
    stages = staging.stages(75, 8)
    assert [s.epochs for s in stages] == [25, 25, 25]
    assert [s.options(8) for s in stages] == [8, 5, 3] and [s.options(5) for s in stages] == [5, 3, 2]
    assert [s.depth for s in stages] == [1.0, 2.0, 3.0] and staging.fresh
    assert [s.epochs for s in staging.stages(10, 8)] in ([3, 4, 3], [3, 3, 4])
    few = Progressive(keep=(1.0, 0.6, 0.2), parts=(4, 2, 1)).stages(2, 5)
    assert [(s.epochs, s.keep, s.parts) for s in few] == [(1, 0.6, 2), (1, 0.2, 1)]
    assert SingleStage(4).stages(50, 8) == [SearchStage(50, parts=4)]


def test_the_dropout_of_identities_fades_as_in_the_code_of_p_darts():
    """25 epochs, of which the alphas rest for 10: linear, and then anew and exponential."""
    shares = [fading(at, 10, 25) for at in range(25)]
    assert shares[:10] == pytest.approx([(25 - at - 1) / 25 for at in range(10)])
    assert shares[10:] == pytest.approx([math.exp(-0.2 * (at - 10)) for at in range(10, 25)])
    assert all(0 <= fading(at, rest, n) <= 1 for n in range(1, 9) for rest in range(n) for at in range(n))


@pytest.mark.parametrize(
    ("settings", "subject"),
    [
        ({"keep": (0.5, 1.0)}, "keep is"),
        ({"keep": (1.0, 0.0)}, "keep is"),
        ({"keep": (1.0, 0.5), "parts": (2, 0)}, "parts is"),
        ({"keep": (1.0, 0.5), "depth": (1.0, -2.0), "anew": True}, "depth is"),
        ({"keep": (1.0, 0.5), "skip_dropout": (0.0, 1.0)}, "skip_dropout is"),
    ],
)
def test_impossible_stages_are_refused(settings, subject):
    with pytest.raises(ConfigError, match=subject):
        Progressive(**settings)
    with pytest.raises(ConfigError, match="parts is 0"):
        SingleStage(0)
    with pytest.raises(ConfigError, match="every is nan"):
        PruneOneByOne(float("nan"))


# -- between stages -----------------------------------------------------------------------------------


def test_fisher_terms_are_those_of_the_formula():
    """`3 (o - μ)² / σ⁶` over the channels of each option's output, averaged over images, pixels and cells."""
    net = supernet(relaxation=Uniform())
    before = {name: value.clone() for name, value in net.network.state_dict().items()}
    seen = {}
    for mixed in net.mixed_ops:
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
            torch.testing.assert_close(net.alphas[row, option], wanted, rtol=1e-4, atol=1e-4)
    # No connection is the first to go, and nothing else has changed.
    assert (net.alphas[:, 0] < net.alphas[:, 1:].min()).all()
    assert all(torch.equal(before[name], value) for name, value in net.network.state_dict().items())


def test_a_supernet_on_more_channels_inherits_the_weights_in_turn():
    old, new = supernet(parts=4, edge_norm=True), Supernet(NB201, parts=2, edge_norm=True).train()
    old.keep([(1, 3)] * 6)
    inherit(new, old)
    assert new.alive == old.alive
    assert all(torch.equal(a, b) for a, b in zip(new.architecture(), old.architecture(), strict=True))
    small, large = (net.mixed_ops[0].ops[3] for net in (old, new))
    index = torch.arange(4) % 2
    assert torch.equal(large[1].weight, small[1].weight[index][:, index])
    assert torch.equal(*(net.network[0][0].weight for net in (old, new)))
    # Batch-norm takes out the scale that twice as many inputs add, so that copies equal the original.
    x = torch.randn(8, 2, 6, 6)
    torch.testing.assert_close(large(torch.cat([x, x], 1)), small(x).repeat(1, 2, 1, 1), atol=1e-4, rtol=1e-3)


def test_a_deeper_space_has_the_same_decisions():
    deeper = deepened(NB201, 2.2)
    assert deeper.settings["cells"] == 2 and deeper.decisions == NB201.decisions
    assert deepened(NB201, 1) is NB201
    with pytest.raises(ConfigError, match="cells"):
        deepened(load("toy"), 2.0)
