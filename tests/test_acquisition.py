"""What guides a search: its Gaussian process beside scikit-learn's, and what a candidate promises."""

import numpy as np
import pytest
from scipy.special import ndtr
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from nas.searchers import predictor_guided as module
from nas.searchers.goals import parse_goals
from nas.searchers.pareto import front, hypervolume
from nas.searchers.predictor_guided import gaussian_process, log_expected_improvement, promise, volume_gain
from nas.types import Trial

# -- the Gaussian process -----------------------------------------------------------------------------


def data(count, *, width=1, seed=0):
    x = np.random.default_rng(seed).random((count, width)) * 2
    y = np.sin(3 * x).sum(1)
    return x, (y - y.mean()) / y.std()


@pytest.mark.parametrize(("length", "noise"), [(0.5, 0.003), (2.0, 0.3)])
def test_the_process_is_that_of_scikit_learn(monkeypatch, length, noise):
    monkeypatch.setattr(module, "_tuned", lambda *_: (length, noise))
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
    first, second, _ = module._tuned([draw.standard_normal((60, 5)), x], y, np.random.default_rng(0))
    assert first == np.inf and np.isfinite(second)
    noise = draw.standard_normal(60)
    mean, _ = gaussian_process([x], noise, draw)([x])
    assert mean.std() < 0.6 * noise.std()


@pytest.mark.parametrize("x", [np.zeros((6, 2)), np.random.default_rng(0).random((6, 2))], ids=["x", "y"])
def test_equal_trials_teach_nothing_but_break_nothing(x):
    mean, sd = gaussian_process([x], np.zeros(6), np.random.default_rng(0))([x])
    assert np.abs(mean).max() < 1e-6
    assert np.isfinite(sd).all()


# -- pieces of the acquisition ------------------------------------------------------------------------


def planted(x, goals, candidates, *, seed=0, **metrics):
    """Promises of candidates `[M, F]` after trials at `[N, F]` with the given metrics `[N]`."""
    trials = [
        Trial(i, (i,), state="done", metrics={name: float(values[i]) for name, values in metrics.items()})
        for i in range(len(x))
    ]
    blocks = [np.vstack([x, candidates])]
    return promise(goals, trials, blocks, np.random.default_rng(seed))


@pytest.mark.parametrize(("mean", "sd"), [(-1.0, 0.5), (0.3, 2.0)])
def test_expected_improvement_against_sampling(mean, sd):
    draws = np.random.default_rng(0).normal(mean, sd, 400_000)
    sampled = np.maximum(0, draws - 0.4).mean()
    found = np.exp(log_expected_improvement(np.array([mean]), np.array([sd]), 0.4))
    assert found[0] == pytest.approx(sampled, abs=0.01 * sd)


def test_the_logarithm_is_that_of_the_formula_and_of_exact_arithmetic_where_this_underflows():
    """Values of `log(phi(z) + z Phi(z))` by arithmetic of 80 digits; a later one is always told apart."""
    z = np.linspace(-6, 6, 1201)
    formula = z * ndtr(z) + np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    assert log_expected_improvement(z, np.ones_like(z), 0.0) == pytest.approx(np.log(formula), rel=1e-6)
    exact = {-1.5: -3.529935921, -10: -55.55312204, -38: -730.1961834, -1000: -500014.73445}
    exact[-20000] = -2.0000002073e8
    found = log_expected_improvement(np.array([*exact], dtype=float), np.ones(len(exact)), 0.0)
    assert found == pytest.approx([*exact.values()], rel=1e-9)
    mean = -np.logspace(0, 8, 400)
    assert (np.diff(log_expected_improvement(mean, np.ones_like(mean), 0.0)) < 0).all()


@pytest.mark.parametrize("objectives", [2, 3])
def test_volume_gain_is_a_difference_of_hypervolumes(objectives):
    draw = np.random.default_rng(1)
    scores, candidates = draw.random((15, objectives)), 2 * draw.random((60, objectives)) - 0.5
    best = scores[front(scores)]
    reference = best.min(0) - 0.1 * (best.max(0) - best.min(0)).clip(1.0)
    expected = [
        hypervolume(np.vstack([scores, row]), reference) - hypervolume(scores, reference)
        for row in candidates
    ]
    gain = volume_gain(scores, candidates)
    assert gain == pytest.approx(np.array(expected), abs=1e-12)
    assert gain.max() > 0
    assert volume_gain(scores, scores) == pytest.approx(0, abs=1e-12)


# -- the whole ----------------------------------------------------------------------------------------

X = np.linspace(0, 1, 21)[:, None]


@pytest.mark.parametrize("bound", ["params<=0.5", "spare>=0.5"])
def test_candidates_that_keep_the_bounds_come_first(bound):
    """The objective rises with x, but only x up to one half is allowed."""
    goals = parse_goals(["val_acc"], [bound])
    new = np.array([[0.1], [0.47], [0.9], [1.0]])
    metrics = {"val_acc": X[:, 0], "params": X[:, 0], "spare": 1 - X[:, 0]}
    worth = planted(X, goals, new, **metrics)
    assert np.argmax(worth) == 1
    assert worth[3] < worth[1] + np.log(0.1)


@pytest.mark.parametrize("objectives", [["a", "b"], ["a", "b", "-c"]])
def test_several_objectives_prefer_what_widens_the_front(objectives):
    """The front is the line from (0, 1) to (1, 0); the second feature lifts both objectives."""
    draw = np.random.default_rng(0)
    x = np.column_stack([draw.random(30), draw.random(30)])
    metrics = {"a": x[:, 0] + x[:, 1], "b": 1 - x[:, 0] + x[:, 1], "c": 1 - x[:, 1]}
    new = np.array([[0.5, 0.0], [0.5, 0.5], [0.5, 1.2]])
    assert np.argmax(planted(x, parse_goals(objectives), new, **metrics)) == 2
    bounded = parse_goals(objectives, ["lift<=0.6"])
    assert np.argmax(planted(x, bounded, new, lift=x[:, 1], **metrics)) == 1


def test_of_candidates_far_behind_all_the_nearest_comes_first(monkeypatch):
    """So far that none of them widens the front."""
    behind = np.array([-60.0, -50.0, -70.0])

    def fit(blocks, target, rng):
        return lambda new: (behind, np.full(3, 0.1))

    monkeypatch.setattr(module, "gaussian_process", fit)
    goals = parse_goals(["val_acc", "-loss"])
    worth = planted(X, goals, np.zeros((3, 1)), val_acc=X[:, 0], loss=1 - X[:, 0])
    assert np.argsort(worth).tolist() == [2, 0, 1]
