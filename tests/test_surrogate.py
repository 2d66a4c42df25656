"""Surrogates: against scikit-learn where it has the same model, and on data whose answer is known."""

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from nas.searchers import surrogate as module
from nas.searchers.surrogate import SURROGATES, bayesian_ridge, gaussian_process, random_forest, surrogate

each = pytest.mark.parametrize("name", SURROGATES)


def wave(x):
    return np.sin(3 * x).sum(1)


def data(count, *, width=1, seed=0):
    x = np.random.default_rng(seed).random((count, width)) * 2
    y = wave(x)
    return x, (y - y.mean()) / y.std()


def fixed(monkeypatch, lengths, noise):
    settings = module._Settings(lengths, noise)
    monkeypatch.setattr(module, "_tuned", lambda blocks, y, rng: settings)


# -- the Gaussian process -----------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "noise"), [(0.5, 0.003), (2.0, 0.3)])
def test_the_process_is_that_of_scikit_learn(monkeypatch, length, noise):
    fixed(monkeypatch, (length,), noise)
    (x, y), new = data(25, width=2), np.random.default_rng(1).random((40, 2)) * 4
    mean, sd = gaussian_process([x], y, np.random.default_rng(0))([new])
    covariance = np.exp(-((x[:, None] - x[None]) ** 2).sum(-1) / length**2) + noise * np.eye(len(y))
    signal = y @ np.linalg.solve(covariance, y) / len(y)
    kernel = ConstantKernel(signal) * RBF(length / np.sqrt(2))
    theirs = GaussianProcessRegressor(kernel, alpha=signal * noise, optimizer=None).fit(x, y)
    expected, deviation = theirs.predict(new, return_std=True)
    assert mean == pytest.approx(expected, abs=1e-8)
    assert sd == pytest.approx(deviation, abs=1e-6)


def test_it_passes_through_noise_free_data_and_is_unsure_far_away():
    """All trials are learnt, though many are tuned on some of them."""
    for count in (40, 3 * module.TUNED_ON):
        x, y = data(count)
        predict = gaussian_process([x], y, np.random.default_rng(0))
        mean, near = predict([x])
        assert np.abs(mean - y).max() < 0.1
        _, far = predict([np.full((1, 1), 9.0)])
        assert far[0] > 5 * near.max()


def test_an_irrelevant_block_is_given_up_and_noise_is_not_followed():
    x, y = data(60)
    draw = np.random.default_rng(4)
    settings = module._tuned([draw.standard_normal((60, 5)), x], y, np.random.default_rng(0))
    assert settings.lengths[0] == np.inf
    assert np.isfinite(settings.lengths[1])
    noise = draw.standard_normal(60)
    mean, _ = gaussian_process([x], noise, draw)([x])
    assert mean.std() < 0.6 * noise.std()


# -- all of them --------------------------------------------------------------------------------------


@each
def test_better_architectures_are_predicted_to_be_better(name):
    draw = np.random.default_rng(5)
    x = draw.integers(0, 2, size=(120, 8)).astype(float)
    y = x @ np.arange(1.0, 9.0)
    y = (y - y.mean()) / y.std() + 0.1 * draw.standard_normal(120)
    predict = surrogate(name)([x[:80, :4], x[:80, 4:]], y[:80], draw)
    mean, sd = predict([x[80:, :4], x[80:, 4:]])
    assert mean.shape == sd.shape == (40,)
    assert np.corrcoef(mean, y[80:])[0, 1] > 0.8
    assert (sd >= 0).all() and sd.max() > 0


@each
def test_a_surrogate_depends_on_its_stream_alone(name):
    x, y = data(30, width=3)
    first, second = (surrogate(name)([x], y, np.random.default_rng(7))([x]) for _ in range(2))
    assert np.array_equal(first, second)


@each
@pytest.mark.parametrize("x", [np.zeros((6, 2)), np.random.default_rng(0).random((6, 2))], ids=["x", "y"])
def test_equal_trials_teach_nothing_but_break_nothing(name, x):
    mean, sd = surrogate(name)([x], np.zeros(6), np.random.default_rng(0))([x])
    assert np.abs(mean).max() < 1e-6
    assert np.isfinite(sd).all()


def test_the_forest_stays_within_the_data_and_the_ridge_goes_on_in_a_line():
    x, y = data(30)
    far, _ = random_forest([x], y, np.random.default_rng(0))([np.full((1, 1), 99.0)])
    assert y.min() <= far[0] <= y.max()
    draw = np.random.default_rng(0)
    x = draw.random((50, 2))
    y = 2 * x[:, 0] - x[:, 1] + 0.05 * draw.standard_normal(50)
    mean, sd = bayesian_ridge([x], y - y.mean(), draw)([np.array([[0.5, 0.5], [20.0, -20.0]])])
    assert mean[1] - mean[0] == pytest.approx(2 * 19.5 + 20.5, rel=0.1)
    assert sd[1] > 3 * sd[0]
