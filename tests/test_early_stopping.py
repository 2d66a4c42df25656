"""The alarm of a growing eigenvalue, and how strong weight decay may get."""

import pytest

from nas.errors import ConfigError
from nas.oneshot.early_stopping import Growth, Guards


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
        ({"ratio": 1.0}, "ratio is 1.0"),
        ({"decay_factor": 0.5}, "decay_factor is 0.5"),
        ({"decay_max": float("inf")}, "decay_max is inf"),
        ({"skip_cap": -1}, "skip_cap is -1"),
    ],
)
def test_impossible_settings_are_refused(change, subject):
    with pytest.raises(ConfigError, match=subject):
        Guards(**change)
