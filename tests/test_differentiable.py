"""The differentiable search: what an epoch reports, stopping, and resuming after any kill to the bit."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import run_killed

from nas.checkpoint import Checkpoints, load_tensors, save_tensors
from nas.errors import ConfigError
from nas.oneshot.bilevel import PUBLISHED, Bilevel
from nas.oneshot.differentiable import search
from nas.oneshot.supernet import Supernet
from nas.recipe import Recipe
from nas.registry import load
from nas.resumable import Stopped
from nas.seeding import isolated
from nas.task import task_from_arrays

RECIPE = dataclasses.replace(PUBLISHED, epochs=3, batch=16)


def make_task(*, images=96):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (images, 8, 8), dtype=np.uint8)
    return task_from_arrays(x, np.arange(images) % 3, x[:12], np.arange(12) % 3, flip=False)


def make_supernet(name="toy", **settings):
    with isolated(0, "test"):
        return Supernet(load(name, **({"width": 4, "classes": 3, "in_channels": 1} | settings)))


def run(supernet, *, recipe=RECIPE, order=1, seed=5, images=96, **options):
    return search(supernet, make_task(images=images), Bilevel(recipe, order), seed=seed, **options)


def assert_same(a, b):
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name


def comparable(epochs):
    return [{**vars(e), "seconds": 0, "strengths": [s.tolist() for s in e.strengths]} for e in epochs]


def test_every_epoch_is_reported_and_returned():
    supernet, told = make_supernet(), []
    epochs = run(supernet, on_epoch=told.append)
    assert [[*map(id, so_far)] for so_far in told] == [[*map(id, epochs[: n + 1])] for n in range(3)]
    assert [e.epoch for e in epochs] == [1, 2, 3]
    for e in epochs:
        assert e.epochs == 3 and e.seconds > 0
        assert 0 <= e.val_acc <= 1 and 0 < e.train_loss < 5
        assert [len(s) for s in e.strengths] == [3, 3, 3]
        assert all(s.sum() == pytest.approx(1) for s in e.strengths)
        assert e.genotype == tuple(int(s.argmax()) for s in e.strengths)
    assert epochs[-1].genotype == supernet.genotype()
    np.testing.assert_array_equal(epochs[-1].strengths, supernet.strengths())


def test_the_same_seed_gives_the_same_search_and_another_seed_another():
    one, two, other = make_supernet(), make_supernet(), make_supernet()
    torch.manual_seed(1)
    first = run(one)
    torch.manual_seed(2)
    second = run(two)
    run(other, seed=6)
    assert_same(one, two)
    assert comparable(first) == comparable(second)
    assert not torch.equal(one.alphas[0], other.alphas[0])


def test_the_callers_random_stream_is_left_alone():
    before = torch.get_rng_state()
    supernet = make_supernet()
    assert torch.equal(torch.get_rng_state(), before)
    run(supernet)
    assert torch.equal(torch.get_rng_state(), before)


def test_alphas_learn_which_operation_helps():
    """Stripes across or along, of random phase: no mean tells them apart, only a convolution does."""
    rng = np.random.default_rng(0)
    wave = 127 + 120 * np.sign(
        np.sin(np.arange(8)[None] * np.pi / 2 + rng.integers(0, 4, 128)[:, None] * np.pi / 2)
    )
    x = np.repeat(wave[:, :, None], 8, axis=2)
    labels = np.arange(128) % 2
    x[labels == 1] = x[labels == 1].transpose(0, 2, 1)
    task = task_from_arrays(x.astype(np.uint8), labels, x[:8].astype(np.uint8), labels[:8], flip=False)
    supernet = make_supernet(classes=2)
    settings = Bilevel(dataclasses.replace(RECIPE, epochs=15, lr=0.1, crop=False), alpha_lr=0.02)
    epochs = search(supernet, task, settings, seed=0)
    assert epochs[-1].val_acc > 0.95
    strengths = np.array(epochs[-1].strengths)
    assert strengths[2, 2] > 0.4 and 2 in epochs[-1].genotype


def test_stopping_writes_a_checkpoint_that_is_taken_up(tmp_path):
    whole, parts = make_supernet(), make_supernet()
    wanted = run(whole)
    asked = iter([False] * 4 + [True])
    with pytest.raises(Stopped, match="search stopped after step 4 of 9"):
        run(parts, checkpoints=Checkpoints(tmp_path), stop=lambda: next(asked))
    again = make_supernet()
    epochs = run(again, checkpoints=Checkpoints(tmp_path))
    assert_same(again, whole)
    assert comparable(epochs) == comparable(wanted)


def test_a_spent_budget_makes_the_epoch_in_progress_the_last(tmp_path):
    epochs = run(make_supernet(), budget_s=1e-9, checkpoints=Checkpoints(tmp_path))
    assert [e.epoch for e in epochs] == [1]
    again = run(make_supernet(), budget_s=1e-9, checkpoints=Checkpoints(tmp_path))
    assert comparable(again) == comparable(epochs)
    assert len(run(make_supernet(), budget_s=1e9, checkpoints=Checkpoints(tmp_path))) == 3


def test_a_finished_search_is_not_done_again(tmp_path):
    first = run(make_supernet(), checkpoints=Checkpoints(tmp_path))
    told = []
    again = run(make_supernet(), checkpoints=Checkpoints(tmp_path), on_epoch=told.append)
    assert comparable(first) == comparable(again) and told == []
    assert [e.seconds for e in first] == [e.seconds for e in again]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"order": 2}, "alphas"),
        ({"seed": 6}, "seed"),
        ({"recipe": dataclasses.replace(RECIPE, lr=0.01)}, "recipe"),
        ({"images": 112}, "data"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(tmp_path, change, named):
    run(make_supernet(), checkpoints=Checkpoints(tmp_path))
    with pytest.raises(ConfigError, match=f"written with another .*{named}"):
        run(make_supernet(), checkpoints=Checkpoints(tmp_path), **change)


def test_a_checkpoint_of_another_supernet_is_refused(tmp_path):
    run(make_supernet(), checkpoints=Checkpoints(tmp_path))
    with pytest.raises(ConfigError, match="written with another network"):
        run(make_supernet(width=5), checkpoints=Checkpoints(tmp_path))


# -- SIGKILL ------------------------------------------------------------------------------------------

LONG = Recipe(epochs=4, batch=16, lr=0.05, weight_decay=3e-4, nesterov=False, clip=5.0)
FIRST_ORDER = {"name": "toy", "order": 1, "epochs": 20}
SECOND_ORDER = {"name": "nasbench201", "order": 2, "epochs": 4}


def search_to_file(variant: dict, folder: Path, checkpoint_seconds: float) -> None:
    supernet = make_supernet(variant["name"], **({"cells": 1} if variant["name"] == "nasbench201" else {}))
    epochs = run(
        supernet,
        recipe=dataclasses.replace(LONG, epochs=variant["epochs"]),
        order=variant["order"],
        images=320,
        checkpoints=Checkpoints(folder),
        checkpoint_seconds=checkpoint_seconds,
    )
    record = {"losses": torch.tensor([[e.train_loss, e.val_acc] for e in epochs], dtype=torch.float64)}
    save_tensors(folder / "result", {**supernet.state_dict(), **record})


@pytest.mark.parametrize(("variant", "longest_s"), [(FIRST_ORDER, 0.15), (SECOND_ORDER, 0.3)])
def test_killed_at_random_points_it_ends_the_same_to_the_bit(tmp_path, variant, longest_s):
    """Checkpoints are due after every step, so that most kills fall between, within or during them."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    search_to_file(variant, whole, 1e9)
    run_killed(search_to_file, variant, killed, 0.0, kills=12, longest_s=longest_s, seed=1)
    wanted, _ = load_tensors(whole / "result")
    got, _ = load_tensors(killed / "result")
    assert got.keys() == wanted.keys()
    for tensor, value in wanted.items():
        assert torch.equal(got[tensor], value), tensor
