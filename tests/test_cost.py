"""Costs: multiply-accumulates and memory by hand and against other counters, and the published counts."""

import csv
import gzip
from functools import partial

import numpy as np
import pytest
import torch
from published import table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas.errors import TrialError
from nas.space.cost import cost
from nas.space.loading import load
from nas.space.space import Space
from nas.spaces.nasbench201 import from_string


def fixed(make):
    """A space of one network."""
    return Space("fixed", lambda _: make())


def count(make, *image_shape):
    return cost(fixed(make), (), image_shape)


# -- the peak, by hand --------------------------------------------------------------------------------


def test_a_chain_peaks_where_an_operator_reads_and_writes_most():
    def make():
        widths = [(3, 8), (8, 16), (16, 4), (4, 4)]
        return nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in widths))

    assert count(make, 3, 10, 10).peak_bytes == 4 * 100 * (8 + 16)


class Residual(nn.Module):
    """Two convolutions, and the input added to what they give."""

    def __init__(self, *, inplace):
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
        self.relu = nn.ReLU(inplace=inplace)

    def forward(self, x):
        return x + self.second(self.relu(self.first(x)))


def test_a_residual_block_keeps_its_input_and_an_inplace_relu_takes_nothing():
    # Input, first convolution and its ReLU are alive together; in place, the ReLU's map is the convolution's,
    # and the second convolution then needs most.
    assert count(lambda: Residual(inplace=False), 8, 6, 6).peak_bytes == 4 * 36 * (8 + 16 + 16)
    assert count(lambda: Residual(inplace=True), 8, 6, 6).peak_bytes == 4 * 36 * (8 + 16 + 8)


def test_a_max_pooling_counts_its_indices_and_a_batch_norm_only_its_map():
    pooled = count(lambda: nn.MaxPool2d(2), 3, 8, 8)
    assert pooled.peak_bytes == 4 * 3 * 64 + (4 + 8) * 3 * 16
    assert count(lambda: nn.BatchNorm2d(3), 3, 8, 8).peak_bytes == 2 * 4 * 3 * 64


# -- against other counters ---------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.block = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.recurrent = nn.LSTM(16, 8, batch_first=True)

    def forward(self, x):
        return self.recurrent(self.block(self.patches(x).flatten(2).transpose(1, 2)))[0].mean(1)


def odd():
    """Grouped and transposed convolutions and other norms, at odd sizes."""
    return nn.Sequential(
        nn.ConvTranspose2d(3, 8, 3, 2),
        nn.GroupNorm(2, 8),
        nn.SiLU(),
        nn.Conv2d(8, 12, 3, stride=2, groups=4),
        nn.BatchNorm2d(12, affine=False, track_running_stats=False),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 1),
    )


@pytest.mark.parametrize("make", [Attention, odd])
def test_macs_are_those_of_torchs_own_counter(make):
    network = make().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.to("meta")(torch.zeros(1, 3, 12, 12, device="meta"))
    assert count(make, 3, 12, 12).macs == counter.get_total_flops() // 2 > 0


@pytest.mark.parametrize("make", [odd, lambda: load("nasbench201", width=4, cells=1).network((3,) * 6)])
def test_activation_bytes_are_those_of_a_real_training_pass(make):
    network = make().train()
    own = {tensor.untyped_storage().data_ptr() for tensor in network.parameters()}
    own |= {tensor.untyped_storage().data_ptr() for tensor in network.buffers()}
    kept = {}
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t
    )
    with hooks:
        network(torch.randn(2, 3, 12, 12))
    expected = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in own)
    assert count(make, 3, 12, 12).activation_bytes == expected // 2


# -- published ----------------------------------------------------------------------------------------


def test_nasbench201_cells_cost_what_its_table_says():
    with gzip.open(table("nasbench201.csv.gz"), "rt") as file:
        rows = list(csv.DictReader(file))
    space, rng = load("nasbench201"), np.random.default_rng(0)
    for i in rng.choice(len(rows), 15, replace=False):
        row = rows[i]
        found = cost(space, from_string(row["arch"]), (3, 32, 32))
        assert found.params == int(row["params"])
        assert found.macs == pytest.approx(1e6 * float(row["flops_c10_M"]), rel=1e-5)


# -- faults -------------------------------------------------------------------------------------------


def test_a_network_that_rejects_the_images_fails_its_trial():
    with pytest.raises(TrialError, match=r"images of \(5, 8, 8\) fail: RuntimeError") as caught:
        cost(load("toy", in_channels=1), (0, 0, 0), (5, 8, 8))
    assert caught.value.reason == "build"


class Odd(nn.Module):
    """Fails as a user's module may."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def forward(self, x):
        return self.fault(x)


@pytest.mark.parametrize(
    ("fault", "reason", "words"),
    [
        (lambda x: {}["absent"], "error", "KeyError: 'absent'"),
        (lambda x: x if x.mean() > 0 else -x, "build", "counted on maps without values: a network may not"),
        (lambda x: x + torch.ones(1), "build", "makes new tensors on the device of its input"),
    ],
)
def test_whatever_a_users_module_raises_fails_its_trial(fault, reason, words):
    options = {"odd": partial(Odd, fault), "skip": nn.Identity}
    space = Space("odd", lambda choose: nn.Sequential(choose.op("a", options)))
    with pytest.raises(TrialError, match=words) as caught:
        cost(space, (0,), (3, 8, 8))
    assert caught.value.reason == reason
