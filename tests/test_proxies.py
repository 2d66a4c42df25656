"""Proxies: closed forms on tiny networks, purity, errors, aggregation, and published values."""

import copy
import csv
import gzip
import random
from math import log

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published import table
from torch import nn

from nas.errors import ConfigError, TrialError
from nas.evaluate.calibration import spearman
from nas.evaluate.proxies import DEFAULT, PROXIES, Batch, log_rank
from nas.space.loading import load

DATALESS = ("params", "macs", "l2_norm")
BY_LOSS = ("grad_norm", "snip", "grasp", "zico")
CLASSES = 3


def images(n=8, channels=2, side=6, *, classes=CLASSES, seed=0):
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, side, side, generator=stream)
    return Batch(x, torch.arange(n) % classes)


def small():
    return nn.Sequential(
        nn.ReLU(inplace=True),
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 4, 1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, CLASSES),
    )


def score(name, network, batch):
    return PROXIES[name](network, batch)


class Square(nn.Module):
    """Its input gradients are the images themselves."""

    def forward(self, x):
        return F.pad(x.flatten(1).square().sum(1, keepdim=True) / 2, (0, CLASSES - 1))


class Lambda(nn.Module):
    def __init__(self, function, inner=None):
        super().__init__()
        self.function, self.inner = function, inner or nn.Identity()

    def forward(self, x):
        return self.function(self.inner(x))


# -- gradients ----------------------------------------------------------------------------------------


@pytest.fixture(name="logistic")
def _logistic():
    """A linear classifier without bias, its batch, its weights and the closed form of its gradient."""
    batch = images(6, channels=1, side=2)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, CLASSES, bias=False))
    weight = network[1].weight.detach()
    x = batch.x.flatten(1)
    error = ((x @ weight.T).softmax(1) - F.one_hot(batch.y, CLASSES)) / len(x)
    return network, batch, weight, x, error


def test_first_order_proxies_of_a_linear_classifier(logistic):
    network, batch, weight, x, error = logistic
    gradient = error.T @ x
    assert score("grad_norm", network, batch) == pytest.approx(gradient.norm().item(), rel=1e-5)
    assert score("snip", network, batch) == pytest.approx((weight * gradient).abs().sum().item(), rel=1e-5)


def test_grasp_multiplies_by_the_hessian(logistic):
    network, batch, weight, x, _ = logistic

    def loss(flat):
        return F.cross_entropy(x @ flat.view_as(weight).T, batch.y)

    flat = weight.flatten()
    gradient = torch.autograd.functional.jacobian(loss, flat)
    hessian = torch.autograd.functional.hessian(loss, flat)
    expected = -(flat @ hessian @ gradient).item()
    assert score("grasp", network, batch) == pytest.approx(expected, rel=1e-4)


def test_zico_compares_the_two_halves(logistic):
    network, batch, weight, x, _ = logistic

    def gradient(part):
        error = (x[part] @ weight.T).softmax(1) - F.one_hot(batch.y[part], CLASSES)
        return error.T @ x[part] / 3

    first, second = gradient(slice(3)), gradient(slice(3, 6))
    ratio = (first.abs() + second.abs()) / (first - second).abs()
    assert score("zico", network, batch) == pytest.approx(log(ratio.sum().item()), rel=1e-4)


# -- input gradients ----------------------------------------------------------------------------------


def test_jacov_is_that_of_the_images_where_these_are_the_input_gradients():
    batch = images(9, classes=3)
    values = np.linalg.eigvalsh(np.corrcoef(batch.x.flatten(1).numpy())) + 1e-5
    assert score("jacov", Square(), batch) == pytest.approx(-(np.log(values) + 1 / values).sum(), rel=1e-4)


def test_a_network_that_reacts_to_all_images_alike_scores_lowest():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(72, CLASSES))
    expected = -7 * (log(1e-5) + 1e5) - log(8) - 1 / 8
    for network in (linear, Lambda(lambda x: x * 0, linear)):
        assert score("jacov", network, images()) == pytest.approx(expected, rel=1e-4)
    assert score("jacov", small(), images()) > expected


# -- synaptic flow ------------------------------------------------------------------------------------


def test_synflow_of_linear_layers_is_the_product_of_their_magnitudes():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))
    first, second = (network[i].weight.detach().abs().double() for i in (1, 2))
    flow = (second @ first).sum().item()
    assert score("synflow", network, images(2, 1, 2)) == pytest.approx(2 * flow, rel=1e-12)


def test_logsynflow_takes_the_logarithm_of_the_gradients_alone():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))
    first, second = (network[i].weight.detach().abs().double() for i in (1, 2))
    flows = second.sum(0)[:, None].expand_as(first), first.sum(1).expand_as(second)
    expected = sum((w * (1 + g).log()).sum() for w, g in zip((first, second), flows, strict=True))
    found = score("logsynflow", network, images(2, 1, 2))
    assert found == pytest.approx(expected.item(), rel=1e-12)
    assert found < score("synflow", network, images(2, 1, 2))


# -- codes of ReLUs -----------------------------------------------------------------------------------

CODE = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1]])


def coded(code, layer):
    """A network that begins with a ReLU of the images, which are on where `code` says."""
    x = (2.0 * code - 1).reshape(len(code), 1, 1, -1)
    network = nn.Sequential(layer, nn.Flatten(), nn.Linear(code.shape[1], CLASSES))
    return network, Batch(x, torch.zeros(len(code), dtype=torch.int64))


@pytest.mark.parametrize(
    "relu", [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), Lambda(torch.relu), Lambda(lambda x: x.relu())]
)
def test_codes_by_hand_for_every_kind_of_relu(relu):
    network, batch = coded(CODE, relu)
    # The agreements are [[4, 3, 0], [3, 4, 1], [0, 1, 4]].
    assert score("nwot", network, batch) == pytest.approx(log(24), rel=1e-9)


# -- Zen ----------------------------------------------------------------------------------------------


def test_zen_measures_features_of_its_own_random_weights():
    network = nn.Sequential(nn.Conv2d(2, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))
    found = score("zen", network, images(64))
    # Four channels of 36 pixels, each the sum of two standard normals times two others.
    assert log(0.01 * 4 * 36 * 0.3) < found < log(0.01 * 4 * 36 * 2.5)
    with torch.no_grad():
        network[0].weight.mul_(100)
    assert score("zen", network, images(64, seed=1)) == found


# -- what all have in common --------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROXIES)
def test_nothing_is_changed(name):
    network, batch = small(), images()
    network[5].weight.requires_grad = False
    network[6].eval()
    network[1].weight.grad = torch.ones_like(network[1].weight)
    before, x, y = copy.deepcopy(network), batch.x.clone(), batch.y.clone()
    streams = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    with torch.no_grad():
        score(name, network, batch)
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert np.array_equal(np.random.get_state()[1], streams[1])  # noqa: NPY002
    assert random.getstate() == streams[2]
    assert torch.equal(batch.x, x) and torch.equal(batch.y, y) and not batch.x.requires_grad
    for (key, value), old in zip(network.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(value, old) and value.dtype == old.dtype, key
    for parameter, old in zip(network.parameters(), before.parameters(), strict=True):
        assert parameter.requires_grad == old.requires_grad
        assert parameter is network[1].weight or parameter.grad is None
    assert torch.equal(network[1].weight.grad, torch.ones_like(network[1].weight))
    for module, old in zip(network.modules(), before.modules(), strict=True):
        assert module.training == old.training
        assert not module._forward_hooks and not module._forward_pre_hooks and not module._backward_hooks


@pytest.mark.parametrize("name", PROXIES)
def test_a_score_depends_on_network_and_batch_alone_and_not_on_an_auxiliary_output(name):
    network, batch = small(), images()
    first = score(name, network, batch)
    assert isinstance(first, float)
    torch.manual_seed(5)
    assert score(name, network.eval(), batch) == first
    assert score(name, Lambda(lambda logits: (logits, logits * 7), network), batch) == first


@pytest.mark.parametrize("name", PROXIES)
def test_a_cell_without_a_path_scores_lowest(name):
    space = load("nasbench201", width=4, cells=1, in_channels=2)
    batch = images(side=8)
    cut, through = (space.network(genotype) for genotype in ((0, 0, 0, 0, 0, 0), (3, 3, 3, 3, 3, 3)))
    found = score(name, cut, batch)
    if name != "grasp":
        assert found < score(name, through, batch)
    if name in BY_LOSS or name in ("synflow", "logsynflow"):
        assert found == 0


# -- errors -------------------------------------------------------------------------------------------

GELU = nn.Sequential(nn.Conv2d(2, 2, 1), nn.GELU(), nn.Flatten(), nn.Linear(72, CLASSES))
NAN = Lambda(lambda x: x * float("nan"), small())
DETACHED = Lambda(torch.detach, small())


@pytest.mark.parametrize(
    ("name", "network", "reason", "words"),
    [
        ("nwot", GELU, "metric", "the network runs no ReLU"),
        *(
            (name, Square(), "metric", "the network has no convolution")
            for name in ("l2_norm", "snip", "zen")
        ),
        *((name, NAN, "nan", "the logits are not finite") for name in sorted(PROXIES.keys() - set(DATALESS))),
        *((name, DETACHED, "no-grad", "the logits depend on no") for name in ("grasp", "jacov", "synflow")),
    ],
)
def test_a_network_that_a_proxy_cannot_score_fails_its_trial(name, network, reason, words):
    with pytest.raises(TrialError, match=f"proxy '{name}': {words}") as caught:
        score(name, network, images())
    assert caught.value.reason == reason


def test_batches_that_do_not_suit():
    x, y = images().x, images().y
    for wrong in ((x.to(torch.uint8), y), (x[:1], y[:1]), (x, y[:7])):
        with pytest.raises(ConfigError, match="wanted"):
            Batch(*wrong)
    with pytest.raises(ConfigError, match="'zico' got 3 images, wanted at least 4"):
        score("zico", small(), images(3))


# -- ranks --------------------------------------------------------------------------------------------


def test_log_rank_by_hand():
    found = log_rank({"a": [1, 2, 3], "b": [10, 10, -5]})
    expected = [log(1 / 3) + log(2.5 / 3), log(2 / 3) + log(2.5 / 3), log(3 / 3) + log(1 / 3)]
    assert found == pytest.approx(expected, rel=1e-12)
    assert set(DEFAULT) <= PROXIES.keys()
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    for wrong in ({"a": [1, 2], "b": [1]}, {}, {"a": [1, float("nan")]}):
        with pytest.raises(ConfigError, match="log_rank"):
            log_rank(wrong)


# -- published ----------------------------------------------------------------------------------------


def test_the_cheap_proxies_rank_as_published():
    with gzip.open(table("nasbench201.csv.gz"), "rt") as file:
        genotypes = [tuple(map(int, row["ops"])) for row in csv.DictReader(file)]
    with np.load(table("nasbench201_proxies.npz")) as archive:
        published = dict(zip(archive["columns"], archive["values"].T, strict=True))
    finite = np.flatnonzero(np.isfinite(published["cifar10|naslib_l2_norm"]))
    cells = np.random.default_rng(0).choice(finite, 8, replace=False)
    space, batch = load("nasbench201", in_channels=3), images(2, channels=3, side=32)
    networks = [space.network(genotypes[cell]) for cell in cells]
    norms = [score("l2_norm", network, batch) for network in networks]
    # By value, because cells with equally many convolutions differ by the luck of their weights alone.
    assert norms == pytest.approx(published["cifar10|naslib_l2_norm"][cells], rel=0.01)
    for name, least in (("synflow", 0.95), ("logsynflow", 0.99)):
        scores = [score(name, network, batch) for network in networks]
        assert spearman(scores, published[f"cifar10|{name}"][cells]) >= least, name
