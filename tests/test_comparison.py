"""Paired comparisons: numbers by hand, against exact tests, and how often chance is called better."""

import numpy as np
import pytest

from nas.errors import ConfigError
from nas.evaluate.significance import paired


def hits(*rows):
    return np.array([[character == "1" for character in row] for row in rows])


def drawn(seed, *, images=200, seeds=2, own=0.7, other=0.7, shared=0.0):
    """Hits of two networks; `shared` is the share of images that are equally hard for both."""
    rng = np.random.default_rng(seed)
    common = rng.random(images) < shared
    easy = rng.random(images) < (own + other) / 2
    first, second = (
        np.where(common, easy, rng.random((seeds, images)) < accuracy) for accuracy in (own, other)
    )
    return first, second


def exact(own, other):
    """The p-value over all sign patterns, one by one."""
    difference = own.sum(0).astype(int) - other.sum(0)
    patterns = np.array(np.meshgrid(*[[-1, 1]] * len(difference))).reshape(len(difference), -1)
    return float((np.abs(difference @ patterns) >= abs(difference.sum())).mean())


def test_the_difference_by_hand():
    own, other = hits("1111", "1110"), hits("1010", "0110")
    found, back = paired(own, other), paired(other, own)
    assert found.delta == pytest.approx(7 / 8 - 4 / 8)
    assert (found.images, found.seeds) == (4, 2)
    half = 1.959964 * np.array([0.5, 0.5, 0.0, 0.5]).std(ddof=1) / 2
    assert (found.low, found.high) == (pytest.approx(0.375 - half), pytest.approx(0.375 + half))
    assert found.p == back.p == pytest.approx(0.25, abs=0.015)
    assert (back.delta, back.low, back.high) == pytest.approx((-found.delta, -found.high, -found.low))


def test_p_is_that_of_all_sign_patterns():
    own, other = drawn(0, images=12, own=0.9, other=0.5)
    assert paired(own, other).p == pytest.approx(exact(own, other), abs=0.02)


def test_chance_alone_is_called_significant_one_time_in_twenty():
    found = [paired(*drawn(seed, images=100)) for seed in range(200)]
    assert 0.02 <= np.mean([f.p < 0.05 for f in found]) <= 0.08
    assert 0.92 <= np.mean([f.low <= 0 <= f.high for f in found]) <= 0.98
    assert np.mean([paired(*drawn(seed, own=0.75, other=0.6)).p < 0.05 for seed in range(50)]) > 0.9


@pytest.mark.parametrize(
    ("own", "other"),
    [((2, 5), (2, 6)), ((2, 5), (3, 5)), ((5,), (5,)), ((2, 1), (2, 1))],
)
def test_shapes_that_cannot_be_compared_are_refused(own, other):
    with pytest.raises(ConfigError, match="wanted two equal shapes"):
        paired(np.zeros(own, bool), np.zeros(other, bool))


# -- training seeds ---------------------------------------------------------------------------------------


def noisy(seed, *, seeds=2, images=600, sd=0.02):
    """Two equally good architectures, whose every training shifts the accuracy."""
    draw = np.random.default_rng(seed)
    shares = 0.8 + sd * draw.standard_normal((2, seeds, 1))
    return draw.random((2, seeds, images)) < shares


def test_lucky_trainings_are_not_called_better_more_often_than_chance():
    pairs = [noisy(seed) for seed in range(150)]
    naive, honest = ([paired(*pair, **more) for pair in pairs] for more in ({}, {"seed_sd": 0.02}))
    assert sum(f.p < 0.05 for f in naive) > 0.1 * len(pairs)
    assert sum(f.p < 0.05 for f in honest) <= 0.07 * len(pairs)
    assert all(h.delta == n.delta for h, n in zip(honest, naive, strict=True))
    assert all(h.high - h.low > n.high - n.low for h, n in zip(honest, naive, strict=True))


def test_a_noise_that_few_trainings_tell_of_is_not_taken_for_known():
    found = []
    for seed in range(200):
        own, other = noisy(seed, images=300, sd=0.03)
        sd = np.sqrt(np.var([own.mean(1), other.mean(1)], axis=1, ddof=1).mean())
        found.append(paired(own, other, seed_sd=sd, seed_degrees=2))
    assert np.mean([f.p < 0.05 for f in found]) <= 0.07
    assert np.mean([f.low <= 0 <= f.high for f in found]) >= 0.93
