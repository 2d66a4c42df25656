"""Architectures on shared weights: each scores as its own network with its own batch-norm statistics."""

import pytest
import torch
from nested import nested_space
from torch import nn

from nas.data.loading import load_task
from nas.errors import ConfigError, SpaceError
from nas.oneshot.path_evaluation import score
from nas.oneshot.path_training import train_shared
from nas.oneshot.supernet import Supernet
from nas.seeding import rng, torch_rng
from nas.space.loading import load
from nas.space.ops import MixtureNorm
from nas.space.space import Space
from nas.training.evaluate import evaluate
from nas.training.recipe import Recipe

TASK = load_task("digits").reduced(400)


SPACES = {
    "nasbench201": load("nasbench201", width=4, cells=1, in_channels=1),
    "darts": load("darts", width=4, cells=3, in_channels=1),
    "nested": nested_space(in_channels=1, classes=10),
}


def trained(space, *, parts=1, epochs=2):
    torch.manual_seed(0)
    supernet = Supernet(space, parts=parts).train()
    train_shared(supernet, TASK, Recipe(epochs=epochs, batch=32, lr=0.05, weight_decay=1e-4), seed=0)
    return supernet


def one_by_one(supernet, genotype, *, seed, calibration):
    network = supernet.extract(genotype).eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None  # plain means over the batches since the reset
    order = torch.randperm(len(TASK.train), generator=torch_rng(seed, "batchnorm", "order"))[:calibration]
    with torch.no_grad():
        network(TASK.normalise(TASK.train.x[order]))
    return evaluate(network, TASK, TASK.val)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("images", [50, 5000])
def test_each_architecture_scores_as_its_own_network_would(space, images):
    supernet, draw = trained(space), rng(0)
    for genotype in [space.sample(draw) for _ in range(5)]:
        found = score(supernet, genotype, TASK, calibration=100, seed=3, images=images)
        loss, accuracy = one_by_one(supernet, genotype, seed=3, calibration=100)
        assert found.accuracy == pytest.approx(accuracy, abs=1 / len(TASK.val) + 1e-6)
        assert found.loss == pytest.approx(loss, rel=2e-3)


def test_a_norm_for_mixtures_passes_through_where_nothing_is_mixed():
    def build(choose):
        stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), MixtureNorm(4))
        options = {"one": lambda: nn.Conv2d(4, 4, 1), "three": lambda: nn.Conv2d(4, 4, 3, padding=1)}
        return nn.Sequential(stem, choose.op("conv", options), nn.Flatten(), nn.Linear(64, 10))

    supernet = trained(Space("pooled", build))
    found = score(supernet, (1,), TASK, calibration=100, seed=3)
    loss, _ = evaluate(supernet.extract((1,)), TASK, TASK.val)
    assert found.loss == pytest.approx(loss, rel=2e-3)


def test_statistics_of_the_mixture_would_fit_worse():
    """What re-estimation is for: with the supernet's own statistics the same paths do worse."""
    space = SPACES["nasbench201"]
    supernet, draw = trained(space, epochs=12), rng(1)
    genotypes = [space.sample(draw) for _ in range(10)]
    own = sum(score(supernet, g, TASK, seed=0).accuracy for g in genotypes)
    shared = sum(evaluate(supernet.extract(g), TASK, TASK.val)[1] for g in genotypes)
    assert own > shared + 0.5


def test_nothing_of_the_supernet_changes():
    supernet = trained(SPACES["nasbench201"])
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    score(supernet, (3,) * 6, TASK, seed=0)
    assert supernet.training and all(module.training for module in supernet.modules())
    assert all(torch.equal(before[name], value) for name, value in supernet.state_dict().items())
    assert {m.momentum for m in supernet.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_partial_channels_have_paths_too():
    space = load("nasbench201", width=8, cells=1, in_channels=1)
    supernet = trained(space, parts=2)
    assert 0 <= score(supernet, (3,) * 6, TASK, seed=0).accuracy <= 1


def test_what_is_no_architecture_is_refused():
    with pytest.raises(SpaceError, match="option 9"):
        score(trained(SPACES["nasbench201"]), (9,) * 6, TASK, seed=0)


def test_statistics_need_two_images():
    with pytest.raises(ConfigError, match="calibration is 1"):
        score(trained(SPACES["nasbench201"]), (3,) * 6, TASK, calibration=1, seed=0)
