"""On a GPU: the same results as on the CPU up to precision, and exact resumption of what is saved."""

import dataclasses

import numpy as np
import pytest
import torch
from trainings import train

from nas.data.loading import load_task
from nas.errors import Stopped
from nas.evaluate.trained import Trained
from nas.oneshot.darts_step import alpha_gradient
from nas.oneshot.early_stopping import Guards
from nas.oneshot.methods import METHODS, Method
from nas.oneshot.path_training import score
from nas.oneshot.search import Search, search
from nas.seeding import isolated
from nas.space.loading import load
from nas.space.space import Space
from nas.training.checkpoint import Checkpoints
from nas.training.recipe import DARTS_SEARCH, compressed, preset
from nas.types import Trial

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def task():
    return load_task("digits").to("cuda")


def network(name="nasbench201", **size):
    space = load(name, {"in_channels": 1, "image_size": 8}, **size)
    with isolated(0, "test"):
        return space, space.network(
            space.nearest([torch.arange(len(d.options)).double().numpy() for d in space.decisions])
        )


@pytest.mark.parametrize("order", [1, 2])
def test_alpha_gradients_agree_with_the_cpu(task, order):
    # Without augmentation both devices see the same images; in float32 they compute the same numbers.
    recipe = dataclasses.replace(
        DARTS_SEARCH, epochs=1, batch=32, crop=False, flip=False, precision="float32"
    )
    found = []
    for device in ("cpu", "cuda"):
        space = load("nasbench201", width=8, cells=1, in_channels=1)
        work = Search(space, task.to(device), Method("test", recipe, order=order), seed=0)
        gradient = alpha_gradient(work, work.loop.begin(), work.validation.at(0))
        found.append(torch.cat([g.flatten().cpu() for g in gradient]))
    assert torch.allclose(found[0], found[1], rtol=0.05, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_a_stopped_search_goes_on_from_its_checkpoint(task, tmp_path, name):
    space = load("nasbench201", width=8, cells=1, in_channels=1)
    recipe = dataclasses.replace(DARTS_SEARCH, epochs=6)
    method = dataclasses.replace(METHODS[name](), weights=recipe, guards=Guards())
    asked = iter(range(1000))
    with pytest.raises(Stopped):
        search(space, task, method, seed=0, checkpoints=Checkpoints(tmp_path), stop=lambda: next(asked) == 15)
    outcome = search(space, task, method, seed=0, checkpoints=Checkpoints(tmp_path))
    assert outcome.epochs[-1].epoch == 6
    assert 0 <= score(outcome.supernet, outcome.selected[0], task, seed=0)[1] <= 1


@pytest.mark.parametrize("name", ["darts", "pcdarts", "oles"])
def test_a_search_in_graphs_is_the_search(task, name):
    """Steps replayed as CUDA graphs leave what the same steps leave one launch at a time."""
    found = []
    for graph in (False, True):
        recipe = dataclasses.replace(compressed(preset("quick"), 2), graph=graph, precision="float32")
        method = dataclasses.replace(METHODS[name](), weights=recipe)
        space = load("nasbench201", {"in_channels": 1, "image_size": 8}, width=8, cells=1)
        work = Search(space, task, method, seed=0)
        work.moves_alphas = True
        for _ in range(12):
            work.advance()
        found.append(torch.cat([a.detach().flatten() for a in work.supernet.architecture()]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_a_training_in_graphs_is_the_training(task):
    found = []
    for graph in (False, True):
        _, net = network(width=8, cells=1)
        recipe = dataclasses.replace(compressed(preset("quick"), 2), graph=graph, precision="float32")
        train(net.cuda(), task, recipe, seed=0)
        found.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-3)


def test_a_trial_that_runs_out_of_memory_takes_its_batches_in_halves(task):
    share = torch.cuda.get_device_properties("cuda").total_memory // 24

    class Wide(torch.nn.Linear):
        def forward(self, x):
            kept = torch.empty(len(x) if self.training else 0, share, dtype=torch.uint8, device=x.device)
            return super().forward(x) + 0 * kept[:, :1].float().sum()

    space = Space("wide", lambda choose: torch.nn.Sequential(torch.nn.Flatten(), Wide(64, 10)))
    recipe = dataclasses.replace(preset("quick"), batch=32)
    metrics = Trained(space, task.reduced(128), recipe)(Trial(0, (), 1), np.random.default_rng(0))
    assert metrics["passes_per_step"] in (2, 4)
    assert torch.cuda.memory_allocated() < share
