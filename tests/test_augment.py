"""Augmentation does what its papers say, draws from the caller's generator alone, and never waits."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import beta
from torch.utils._python_dispatch import TorchDispatchMode

from nas.data.augment import Policy, augment, mixup
from nas.data.loading import task_from_arrays
from nas.data.task import Task
from nas.seeding import rng, torch_rng


@pytest.fixture(scope="module")
def task() -> Task:
    images = rng(0, "images").integers(1, 256, (80, 10, 8, 3), dtype=np.uint8)
    return task_from_arrays(images, np.arange(80) % 4)


def batch(task: Task, size: int) -> torch.Tensor:
    """Distinct images, none of whose raw or normalised pixels is exactly zero."""
    x = task.train.x.repeat(-(-size // len(task.train)), 1, 1, 1)[:size]
    assert x.min() > 0 and task.normalise(x).abs().min() > 0
    return x


def test_crop_and_flip_equal_the_loop_over_images(task):
    x, pad = batch(task, 64), 2
    got = augment(x, task, Policy(pad=pad, flip=True), torch_rng(0, "both"))
    stream = torch_rng(0, "both")
    corners = torch.randint(2 * pad + 1, (2, 64), generator=stream).T.tolist()
    mirrored = (torch.rand(64, generator=stream) < 0.5).tolist()
    height, width = x.shape[2:]
    for image, moved, (top, left), mirror in zip(x, got, corners, mirrored, strict=True):
        crop = F.pad(image, (pad, pad, pad, pad))[None, :, top : top + height, left : left + width]
        assert torch.equal(moved, task.normalise(crop.flip(-1) if mirror else crop)[0])
    assert len(set(mirrored)) == 2


class NoWaiting(TorchDispatchMode):
    """Lets nothing through whose outcome the host has to read, or whose shape depends on a value."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waiting = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
        assert not waiting & set(func.tags), func
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device(task):
    x, y, stream = batch(task, 8), torch.arange(8), torch_rng(0)
    with NoWaiting():
        mixup(augment(x, task, Policy(pad=2, flip=True, cutout=3), stream), y, 0.2, stream)
        for waits in (lambda: x[x > 3], lambda: x.sum().item()):
            with pytest.raises(AssertionError):
                waits()


@pytest.mark.parametrize("side", [1, 3, 4])
def test_cutout_zeroes_one_square_around_the_drawn_pixel_and_nothing_else(task, side):
    x = batch(task, 200)
    got = augment(x, task, Policy(cutout=side), torch_rng(0, "centre"))
    hole = got == 0
    assert torch.equal(got[~hole], task.normalise(x)[~hole])
    assert torch.equal(hole.all(1), hole.any(1))
    stream = torch_rng(0, "centre")
    centres = [torch.randint(length, (200, 1), generator=stream) for length in x.shape[2:]]
    for mask, (row, column) in zip(hole[:, 0], torch.cat(centres, 1).tolist(), strict=True):
        top, left = row - side // 2, column - side // 2
        expected = torch.zeros_like(mask)
        expected[max(top, 0) : top + side, max(left, 0) : left + side] = True
        assert torch.equal(mask, expected)
    assert not augment(batch(task, 8), task, Policy(cutout=100), torch_rng(0, "all")).any()


def test_all_depends_on_the_generator_alone(task):
    x, policy, y = batch(task, 64), Policy(pad=2, flip=True, cutout=3), torch.arange(64)
    raw, before = x.clone(), torch.get_rng_state()
    one, same, other = (augment(x, task, policy, torch_rng(seed, "all")) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    mixed, again = (mixup(one, y, 0.7, torch_rng(0, "mixup")) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(mixed, again, strict=True))
    assert torch.equal(x, raw) and torch.equal(torch.get_rng_state(), before)


def test_mixup_mixes_images_and_pairs_labels(task):
    x, y = task.normalise(batch(task, 16)), torch.arange(16)
    mixed, partners, share = mixup(x, y, 0.7, torch_rng(0, "mixup"))
    assert sorted(partners.tolist()) == y.tolist()
    assert share.shape == () and 0 <= float(share) <= 1
    assert torch.allclose(mixed, share * x + (1 - share) * x[partners], atol=1e-6)


@pytest.mark.parametrize("alpha", [0.05, 1.0, 8.0])
def test_mixup_shares_follow_the_beta_distribution(alpha):
    stream = torch_rng(0, "beta")
    x, y = torch.zeros(1, 1), torch.zeros(1)
    shares = np.array([float(mixup(x, y, alpha, stream)[2]) for _ in range(2000)])
    assert np.isfinite(shares).all()
    assert abs(shares.mean() - 0.5) < 4 * beta(alpha, alpha).std() / 2000**0.5
    assert abs(shares.std() - beta(alpha, alpha).std()) < 0.02
    for point in (0.001, 0.1, 0.3, 0.5, 0.8, 0.99):
        assert abs((shares <= point).mean() - beta(alpha, alpha).cdf(point)) < 4 * 0.5 / 2000**0.5
