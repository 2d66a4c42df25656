"""Forecasts of an accuracy: the closed form against the joint normal, and on curves of a known shape."""

import itertools

import numpy as np
import pytest

from nas.evaluate import learning_curves
from nas.evaluate.learning_curves import EarlyStop, extrapolate


def test_the_closed_form_is_the_conditioned_joint_normal():
    """The same belief from the joint normal of all accuracies, with nothing simplified."""
    curve, at = np.asarray([0.3, 0.45, 0.5, 0.56]), 11
    epochs = np.asarray([1.0, 2.0, 3.0, 4.0, at])
    shapes = [epochs**-c for c in learning_curves._POWERS]
    shapes += [np.exp(-c * (epochs - 1)) for c in learning_curves._DECAYS]
    found = []
    for missing, noise in itertools.product(shapes, learning_curves._NOISES):
        # The start counts fully at once; of the gain, what is not missing.
        features = np.stack([np.ones(5), 1 - missing], axis=1)
        mean = features @ [0.5, 0.2]
        covariance = features @ np.diag([0.25, 0.16]) @ features.T + noise**2 * np.eye(5)
        inner, across = covariance[:4, :4], covariance[4, :4]
        solved = np.linalg.solve(inner, curve - mean[:4])
        log_evidence = -0.5 * ((curve - mean[:4]) @ solved + np.linalg.slogdet(inner)[1])
        variance = covariance[4, 4] - across @ np.linalg.solve(inner, across)
        found.append((log_evidence, mean[4] + across @ solved, variance))
    log_evidence, means, variances = np.asarray(found).T
    weights = np.exp(log_evidence) / np.exp(log_evidence).sum()
    forecast = extrapolate(curve, at=at)
    assert forecast.mean == pytest.approx(weights @ means, abs=1e-6)
    assert forecast.variance == pytest.approx(weights @ (variances + (means - forecast.mean) ** 2), abs=1e-6)


def test_a_training_ends_where_the_best_is_out_of_reach():
    stop = EarlyStop(best=0.9, chance=0.05)
    assert not stop([0.1], 40)
    assert stop([0.1] * 10, 40)
    assert not stop([0.3, 0.5, 0.6, 0.7], 40)
