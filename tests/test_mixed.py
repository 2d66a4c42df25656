"""The mixed operation: the weighted sum, options out of the race, partial channels, dropout on identities."""

import pytest
import torch
from torch import nn

from nas.errors import SpaceError
from nas.space.choosers import Candidate
from nas.space.mixed_op import MixedOp, shuffled
from nas.space.ops import candidates

OPTIONS = ("none", "skip_connect", "avg_pool_3x3", "nor_conv_3x3")


def mixed(*, stride=1, parts=1, channels=8):
    torch.manual_seed(0)
    mixture = {}
    return MixedOp("d", candidates(OPTIONS, channels, channels, stride), mixture, parts=parts), mixture


def x(*, channels=8, batch=2):
    return torch.randn(batch, channels, 6, 6, generator=torch.Generator().manual_seed(1))


def test_partial_channels_compute_on_a_part_and_pass_on_the_rest():
    op, mixture = mixed(parts=4)
    assert op.ops[3][1].weight.shape == (2, 2, 3, 3)
    mixture["d"] = weights = torch.tensor([0.4, 0.3, 0.2, 0.1])
    part = sum(w * o(x()[:, :2]) for w, o in zip(weights, op.ops, strict=True))
    torch.testing.assert_close(op(x()), shuffled(torch.cat([part, x()[:, 2:]], 1), 4))


@pytest.mark.parametrize(
    ("make", "subject"),
    [
        (nn.Identity, "'skip'.*nas.Candidate"),
        (Candidate(lambda i, o, s: nn.Identity(), 6, 6), "6 channels in and 6 out"),
        (Candidate(lambda i, o, s: nn.Identity(), 8, 4), "8 channels in and 4 out"),
    ],
)
def test_what_cannot_be_divided_is_refused(make, subject):
    with pytest.raises(SpaceError, match=subject):
        MixedOp("d", {"skip": make}, {}, parts=4)


def test_only_identities_are_dropped_and_only_in_training():
    op, mixture = mixed()
    op.skip_dropout = torch.tensor(0.5)
    mixture["d"] = 1
    dropped = op.train()(torch.ones(4, 8, 6, 6))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert dropped.mean().item() == pytest.approx(1, abs=0.15)
    assert torch.equal(op.eval()(x()), x())
    mixture["d"] = 2
    torch.testing.assert_close(op.train()(x()), op.ops[2](x()))
