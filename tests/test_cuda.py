"""On a GPU: the same results as on the CPU up to precision, and exact resumption of what is saved."""

import dataclasses

import pytest
import torch

from nas.checkpoint import Checkpoints
from nas.oneshot.bilevel import PUBLISHED, Bilevel, BilevelLoop
from nas.oneshot.differentiable import search
from nas.oneshot.supernet import Supernet
from nas.recipe import compressed, preset
from nas.registry import load
from nas.resumable import Stopped
from nas.search_run import search as whole_job
from nas.seeding import isolated
from nas.task import load_task
from nas.train import evaluate, train

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


def test_training_learns_in_bfloat16_and_channels_last(task):
    _, net = network(width=8, cells=1)
    curve = train(net.cuda(), task, compressed(preset("quick"), 8), seed=0, evaluate_on=task.val)
    assert curve.final_val_acc > 0.9
    convolution = next(m for m in net.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3))
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)


def test_evaluation_agrees_with_the_cpu(task):
    _, net = network(width=8, cells=1)
    train(net.cuda(), task, compressed(preset("quick"), 3), seed=0)
    on_gpu = evaluate(net, task, task.test)
    on_cpu = evaluate(net.cpu(), task.to("cpu"), task.to("cpu").test)
    assert abs(on_gpu[1] - on_cpu[1]) < 0.02
    assert abs(on_gpu[0] - on_cpu[0]) < 0.05


@pytest.mark.parametrize("order", [1, 2])
def test_alpha_gradients_agree_with_the_cpu(task, order, monkeypatch):
    # Without augmentation both devices see the same images; without bfloat16 they compute the same numbers.
    monkeypatch.setattr("nas.loop.precision", lambda device: torch.autocast(device.type, enabled=False))
    monkeypatch.setattr(
        "nas.oneshot.bilevel.precision", lambda device: torch.autocast(device.type, enabled=False)
    )
    recipe = dataclasses.replace(PUBLISHED, epochs=1, batch=32, crop=False, flip=False)
    found = []
    for device in ("cpu", "cuda"):
        with isolated(0, "supernet"):
            supernet = Supernet(load("nasbench201", width=8, cells=1, in_channels=1)).to(device)
        loop = BilevelLoop(supernet, task.to(device), Bilevel(recipe, order), seed=0)
        found.append(torch.cat([g.flatten().cpu() for g in loop.alpha_gradient()]))
    assert torch.allclose(found[0], found[1], rtol=0.05, atol=1e-4)


def test_a_stopped_search_goes_on_from_its_checkpoint(task, tmp_path):
    settings = Bilevel(dataclasses.replace(PUBLISHED, epochs=3))
    supernet = Supernet(load("nasbench201", width=8, cells=1, in_channels=1)).cuda()
    asked = iter(range(100))
    with pytest.raises(Stopped):
        search(
            supernet,
            task,
            settings,
            seed=0,
            checkpoints=Checkpoints(tmp_path),
            stop=lambda: next(asked) == 15,
        )
    saved = [alpha.detach().clone() for alpha in supernet.alphas]
    again = Supernet(load("nasbench201", width=8, cells=1, in_channels=1)).cuda()
    epochs = search(again, task, settings, seed=0, checkpoints=Checkpoints(tmp_path))
    assert len(epochs) == 3
    assert not any(torch.equal(a, b) for a, b in zip(saved, again.alphas, strict=True))


def test_the_whole_job_runs_and_its_result_comes_back_to_the_cpu(tmp_path):
    result = whole_job(
        "darts",
        "digits",
        "darts",
        out=tmp_path / "run",
        settings={"device": "cuda", "epochs": 2, "top_k": 1, "retrain": {"epochs": 12}},
    )
    assert result.metrics["test_acc"] > 0.95
    assert all(not parameter.is_cuda for parameter in result.network.parameters())
