"""The alarm of a growing eigenvalue, how strong weight decay may get, and which moments are kept."""

import pytest
import torch

from nas.errors import ConfigError
from nas.oneshot.early_stopping import EigenvalueMonitor, Growth, Guards


def test_the_alarm_compares_means_some_epochs_apart():
    """RobustDARTS, code: means of 5 values, 4 epochs apart, ratio above 1.3, not before epoch 10."""
    flat, guards = [1.0] * 20, Guards()
    assert guards.growth([*flat, 2.4], 50) == Growth(mean=pytest.approx(1.28), level=1.3)
    assert not guards.growth([*flat, 2.4], 50).alarming
    assert guards.growth([*flat, 2.6], 50).alarming and guards.reach(50) == 4
    assert not guards.growth([1.0] * 8 + [9.0], 50).alarming
    assert guards.growth([1.0] * 9 + [9.0], 50).alarming


def test_windows_shrink_with_the_search_but_not_below_three():
    guards = Guards()
    assert guards.growth([1.0, 1.0, 1.0, 1.0, 2.0], 8) == Growth(mean=pytest.approx(4 / 3), level=1.3)
    assert guards.reach(8) == 3
    assert not guards.growth([1.0, 1.0, 9.0], 8).alarming


@pytest.mark.parametrize(
    "eigenvalues", [[0.2] * 60, [10.0 / (1 + i) for i in range(30)], [0.0] * 12 + [1.0] * 4]
)
def test_no_alarm_is_raised_by_what_does_not_grow(eigenvalues):
    assert not any(Guards().growth(eigenvalues[:n], 50).alarming for n in range(len(eigenvalues) + 1))


def test_weight_decay_grows_by_threes_up_to_its_largest():
    guards, decay, found = Guards(), 3e-4, []
    while (decay := guards.stronger(decay)) is not None:
        found.append(decay)
    assert found == pytest.approx([9e-4, 2.7e-3, 8.1e-3])
    assert guards.stronger(0.0) == pytest.approx(3e-4)


@pytest.mark.parametrize(
    ("change", "subject"),
    [
        ({"warmup": 1.0}, "warmup is 1.0"),
        ({"delay": -0.1}, "delay is -0.1"),
        ({"ratio": 1.0}, "ratio 1.0"),
        ({"decay_factor": 0.5}, "decay_factor 0.5"),
        ({"decay_max": float("inf")}, "decay_max inf"),
        ({"skip_cap": -1}, "skip_cap is -1"),
    ],
)
def test_impossible_settings_are_refused(change, subject):
    with pytest.raises(ConfigError, match=subject):
        Guards(**change)


# -- the monitor --------------------------------------------------------------------------------------


def monitor():
    """Of ten epochs, three each for the window, the delay and the start."""
    return EigenvalueMonitor(Guards(window=0.1, delay=0.1, start=0.1))


def moment(value):
    state = {"weights": [torch.full((2,), float(value))], "name": "x", "none": (None, 1)}
    return lambda: (value, 10 * value, state)


def test_an_alarm_gives_the_moment_some_epochs_before_and_forgets_the_rest():
    watch, twin = monitor(), monitor()
    assert all(watch.look(epoch, 10, 1.0, moment(epoch))[1] is None for epoch in range(1, 5))
    twin.restore(watch.state())
    for own in (watch, twin):
        growth, (epoch, step, state) = own.look(5, 10, 9.0, moment(5))
        assert growth.alarming and (epoch, step) == (2, 20) and state["weights"][0].tolist() == [2.0, 2.0]
        assert own.state() == {"eigenvalues": [], "moments": {}}


def test_where_nobody_goes_back_growth_is_told_and_nothing_kept():
    watch = monitor()
    found = [watch.look(epoch, 10, value, None) for epoch, value in enumerate([1.0] * 4 + [9.0] * 2)]
    assert [growth.alarming for growth, _ in found] == [False] * 4 + [True] * 2
    assert all(moment is None for _, moment in found) and not watch.state()["moments"]


def test_only_copies_of_the_moments_that_an_alarm_can_go_back_to_are_kept():
    watch, weights = monitor(), torch.zeros(2)
    for epoch in range(1, 9):
        watch.look(epoch, 10, 1.0, lambda epoch=epoch: (epoch, 10, {"weights": weights}))
        weights.add_(1)
    moments = watch.state()["moments"]
    assert {epoch: kept[2]["weights"].tolist() for epoch, kept in moments.items()} == {
        6: [5.0, 5.0],
        7: [6.0, 6.0],
        8: [7.0, 7.0],
    }
