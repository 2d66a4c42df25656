"""How estimates are correlated with the truth, which one is chosen, and what is written down."""

import dataclasses
import math

import numpy as np
import pytest

from nas.errors import ConfigError
from nas.evaluate.calibration import (
    FILE,
    Calibration,
    Estimate,
    choose,
    chosen_fidelity,
    estimate,
    read_calibration,
)
from nas.files.atomic import write_json


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr("nas.evaluate.calibration.RESAMPLES", 200)


def planted(rho, *, count=16, seed=0):
    """Scores and truth, normal with a correlation of `rho`."""
    x, noise = np.random.default_rng(seed).standard_normal((2, count))
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def measured(scores, truth):
    return estimate("e", "trained", scores, truth, cost_s=1.0)


def made(name, *, tau=0.8, low=0.5, cost_s=1.0, group="trained"):
    return Estimate(name, group, tau, low, 0.9, tau, low, 0.95, cost_s, 16)


def calibration(**changes):
    estimates = (
        made("epochs=3", cost_s=3),
        made("epochs=1", cost_s=1, low=0.1),
        made("params", group="proxy"),
    )
    plain = Calibration("s", "t", "abc", 16, 12, 2, 0.4, estimates, "epochs=3")
    return dataclasses.replace(plain, **changes)


def test_correlations_by_hand():
    truth = np.arange(8.0)
    same, opposite = measured(truth**3, truth), measured(-truth, truth)
    assert (same.tau, same.rho, same.tau_low, same.tau_high, same.count) == pytest.approx((1, 1, 1, 1, 8))
    assert (opposite.tau, opposite.rho) == pytest.approx((-1, -1))
    found = measured([1, 2, 3, 4, 5], [2, 1, 3, 5, 4])
    assert found.tau == pytest.approx((8 - 2) / 10)
    assert found.rho == pytest.approx(1 - 6 * 4 / (5 * 24))
    ties = measured([1, 1, 2, 3, 4], [1, 2, 3, 4, 5])
    assert ties.tau == pytest.approx(9 / math.sqrt(9 * 10)), "tau-b"


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_a_planted_correlation_is_found(rho):
    found = measured(*planted(rho, count=400))
    assert found == measured(*planted(rho, count=400))
    assert found.tau == pytest.approx(2 / math.pi * math.asin(rho), abs=0.07)
    assert found.rho == pytest.approx(6 / math.pi * math.asin(rho / 2), abs=0.12)
    assert found.tau_low < found.tau < found.tau_high
    assert found.rho_low < found.rho < found.rho_high


def test_what_failed_is_left_out_on_either_side():
    scores, truth = [1, 2, math.nan, 4, 5, 6, 7.0], [1, 2, 3, math.nan, 5, 6, 7.0]
    found = measured(scores, truth)
    assert (found.count, found.tau) == (5, pytest.approx(1))


@pytest.mark.parametrize(
    ("scores", "truth"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4]),
        ([1, 2, 3, 4, math.nan], [1, 2, 3, 4, 5]),
        ([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]),
        ([1, 2, 3, 4, 5], [2, 2, 2, 2, 2]),
    ],
)
def test_too_few_or_constant_values_say_nothing(scores, truth):
    assert measured(scores, truth) is None


def test_the_cheapest_that_is_surely_above_the_threshold_is_chosen():
    unsure = made("unsure", tau=0.9, low=0.39, cost_s=0.1)
    cheap, dear = made("cheap", low=0.4, cost_s=2), made("dear", tau=0.95, low=0.9, cost_s=5)
    proxy = made("proxy", group="proxy", low=0.9, cost_s=0.01)
    assert choose([dear, unsure, cheap, proxy], 0.4) == cheap
    assert choose([dear, cheap], 0.5) == dear
    assert choose([unsure, proxy], 0.4) is None
    few, enough = (estimate("e", "trained", np.arange(n), np.arange(n), cost_s=1.0) for n in (9, 10))
    assert choose([few], 0.4) is None, "a handful of architectures convinces nobody"
    assert choose([enough], 0.4) == enough


def test_the_chosen_fidelity_is_that_of_this_space_and_task_only(tmp_path):
    with pytest.raises(ConfigError, match="run `nas calibrate`"):
        read_calibration(tmp_path)
    write_json(tmp_path / FILE, {"space": "s"})
    with pytest.raises(ConfigError, match="no record of a calibration"):
        read_calibration(tmp_path)
    for chosen in ("epochs=3", None):
        write_json(tmp_path / FILE, calibration(chosen=chosen).to_dict())
        assert read_calibration(tmp_path) == calibration(chosen=chosen)
        assert chosen_fidelity(tmp_path, space="s", task="t") == chosen
    for space, task in (("other", "t"), ("s", "other")):
        with pytest.raises(ConfigError, match="calibrated space 's' on task 't', not"):
            chosen_fidelity(tmp_path, space=space, task=task)
