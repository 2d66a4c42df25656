import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import digamma, polygamma
from scipy.stats import beta
from torch.utils._python_dispatch import TorchDispatchMode

from nas.data.augment import Policy, _log_gamma_draws, augment, mixup
from nas.data.task import Task, task_from_arrays
from nas.errors import ConfigError
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


def test_no_augmentation_is_normalisation(task):
    x = batch(task, 16)
    stream = torch_rng(0, "augment")
    before = stream.get_state()
    assert torch.equal(augment(x, task, Policy(), stream), task.normalise(x))
    assert torch.equal(stream.get_state(), before)


def test_crop_equals_the_loop_over_images(task):
    x, pad = batch(task, 64), 2
    got = augment(x, task, Policy(pad=pad), torch_rng(0, "crop"))
    offsets = torch.randint(2 * pad + 1, (2, 64), generator=torch_rng(0, "crop"))
    height, width = x.shape[2:]
    for image, crop, (top, left) in zip(x, got, offsets.T.tolist(), strict=True):
        padded = F.pad(image, (pad, pad, pad, pad))
        expected = task.normalise(padded[None, :, top : top + height, left : left + width])[0]
        assert torch.equal(crop, expected)
    assert offsets.unique().tolist() == list(range(2 * pad + 1))


def test_crop_and_flip_together_equal_the_loop_over_images(task):
    x, pad = batch(task, 64), 1
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


def test_padding_is_black_before_normalisation(task):
    white = torch.full((200, 3, 10, 8), 255, dtype=torch.uint8)
    got = augment(white, task, Policy(pad=3), torch_rng(0, "pad"))
    black = task.normalise(torch.zeros(1, 3, 1, 1, dtype=torch.uint8))
    full = task.normalise(white[:1, :, :1, :1])
    assert ((got == black) | (got == full)).all()
    assert (got == black).any()


def test_flip_mirrors_about_half_of_the_images(task):
    x = batch(task, 2000)
    got = augment(x, task, Policy(flip=True), torch_rng(0, "flip"))
    plain, mirrored = task.normalise(x), task.normalise(x.flip(-1))
    kept = (got == plain).flatten(1).all(1)
    flipped = (got == mirrored).flatten(1).all(1)
    assert (kept ^ flipped).all()
    assert abs(flipped.float().mean() - 0.5) < 4 * 0.5 / 2000**0.5


@pytest.mark.parametrize("side", [1, 3, 4])
def test_cutout_zeroes_one_square_and_nothing_else(task, side):
    x = batch(task, 1000)
    got = augment(x, task, Policy(cutout=side), torch_rng(0, "cutout"))
    hole = got == 0
    assert torch.equal(got[~hole], task.normalise(x)[~hole])
    assert torch.equal(hole.all(1), hole.any(1))
    for mask in hole[:, 0]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns)
        assert 1 <= int(rows.sum()) <= side and 1 <= int(columns.sum()) <= side
    area = hole[:, 0].flatten(1).sum(1)
    assert int(area.max()) == side * side
    # Each of the h centres leaves h - (its distance outside) rows: the mean over centres, exactly.
    height, width = x.shape[2:]
    mean = expected_stripe(height, side) * expected_stripe(width, side)
    assert abs(float(area.double().mean()) - mean) < 0.05 * side * side


def test_cutout_squares_lie_around_the_drawn_pixel(task):
    x, side = batch(task, 64), 4
    hole = augment(x, task, Policy(cutout=side), torch_rng(0, "centre"))[:, 0] == 0
    stream = torch_rng(0, "centre")
    centres = [torch.randint(length, (64, 1), generator=stream) for length in x.shape[2:]]
    for mask, (row, column) in zip(hole, torch.cat(centres, 1).tolist(), strict=True):
        expected = torch.zeros_like(mask)
        expected[max(row - 2, 0) : row + 2, max(column - 2, 0) : column + 2] = True
        assert torch.equal(mask, expected)


def expected_stripe(length: int, side: int) -> float:
    starts = [centre - side // 2 for centre in range(length)]
    return sum(min(start + side, length) - max(start, 0) for start in starts) / length


def test_a_cutout_larger_than_the_image_may_blank_it(task):
    assert not augment(batch(task, 8), task, Policy(cutout=100), torch_rng(0, "all")).any()


def test_float_images_are_augmented_too():
    x = rng(0, "floats").normal(0, 1, (40, 8, 8))
    task = task_from_arrays(x, np.arange(40) % 2)
    got = augment(task.train.x, task, Policy(pad=1, flip=True, cutout=2), torch_rng(0))
    assert got.shape == task.train.x.shape and got.dtype == torch.float32


def test_the_same_generator_state_gives_the_same_images(task):
    x, policy = batch(task, 64), Policy(pad=2, flip=True, cutout=3)
    raw = x.clone()
    one, same, other = (augment(x, task, policy, torch_rng(seed, "all")) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(x, raw)


def test_the_global_stream_is_not_touched(task):
    before = torch.get_rng_state()
    x = augment(batch(task, 8), task, Policy(pad=2, flip=True, cutout=3), torch_rng(0))
    mixup(x, torch.arange(8), 0.2, torch_rng(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("setting", ["pad", "cutout"])
def test_negative_settings_are_refused(setting):
    with pytest.raises(ConfigError, match=f"{setting} is -1"):
        Policy(**{setting: -1})


def test_mixup_mixes_images_and_pairs_labels(task):
    x, y = task.normalise(batch(task, 16)), torch.arange(16)
    mixed, partners, share = mixup(x, y, 0.7, torch_rng(0, "mixup"))
    assert sorted(partners.tolist()) == y.tolist()
    assert share.shape == () and 0 <= float(share) <= 1
    assert torch.allclose(mixed, share * x + (1 - share) * x[partners], atol=1e-6)
    again = mixup(x, y, 0.7, torch_rng(0, "mixup"))
    assert torch.equal(again[0], mixed) and torch.equal(again[1], partners) and torch.equal(again[2], share)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 8.0])
def test_mixup_shares_follow_the_beta_distribution(alpha):
    stream = torch_rng(0, "beta")
    x, y = torch.zeros(1, 1), torch.zeros(1)
    shares = np.array([float(mixup(x, y, alpha, stream)[2]) for _ in range(2000)])
    assert np.isfinite(shares).all()
    assert abs(shares.mean() - 0.5) < 4 * beta(alpha, alpha).std() / 2000**0.5
    assert abs(shares.std() - beta(alpha, alpha).std()) < 0.02
    for point in (0.001, 0.1, 0.3, 0.5, 0.8, 0.99):
        assert abs((shares <= point).mean() - beta(alpha, alpha).cdf(point)) < 4 * 0.5 / 2000**0.5


@pytest.mark.parametrize("shape", [0.05, 0.2, 1.0, 8.0])
def test_gamma_draws_have_the_right_mean_and_deviation_in_logarithms(shape):
    draws = _log_gamma_draws(shape, 20_000, torch_rng(0, "gamma"), torch.device("cpu")).double()
    deviation = float(polygamma(1, shape)) ** 0.5
    assert abs(float(draws.mean()) - float(digamma(shape))) < 4 * deviation / 20_000**0.5
    assert abs(float(draws.std()) / deviation - 1) < 0.05


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan")])
def test_mixup_refuses_a_useless_alpha(alpha):
    with pytest.raises(ConfigError, match="alpha"):
        mixup(torch.zeros(2, 1), torch.zeros(2), alpha, torch_rng(0))
