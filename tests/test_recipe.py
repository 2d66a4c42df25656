"""Recipes: rules between their settings, and the schedule at known steps."""

import dataclasses

import pytest

from nas.errors import ConfigError
from nas.training.recipe import Recipe, compressed, learning_rate, segmented

PLAIN = Recipe(epochs=10, batch=32, lr=0.1, weight_decay=5e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"momentum": 0.0}, "nesterov is True, but must be False where momentum is 0"),
        ({"restarts": [3]}, "restarts is [3], but must be a tuple of ascending epochs from 1 on"),
        ({"restarts": (3, 10)}, "restarts is (3, 10), but must be below epochs, 10"),
        ({"restarts": (2,), "warmup_epochs": 2.0}, "is 2.0, but must be below the first restart, 2"),
    ],
)
def test_rules_between_settings_are_named_with_what_was_got_and_wanted(change, message):
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(PLAIN, **change)
    assert message in str(error.value)


def test_warm_up_is_linear_and_meets_the_cosine():
    recipe = dataclasses.replace(PLAIN, warmup_epochs=2.0, lr_min=0.01)
    rates = [learning_rate(recipe, step, steps_per_epoch=4) for step in range(40)]
    assert rates[:8] == pytest.approx([0.1 * (step + 1) / 8 for step in range(8)])
    assert rates[8] == pytest.approx(0.1)
    assert rates[24] == pytest.approx((0.1 + 0.01) / 2)
    assert rates[8:] == sorted(rates[8:], reverse=True)
    assert rates[-1] > 0.01


def rates(recipe, *, steps_per_epoch=4):
    return [learning_rate(recipe, s, steps_per_epoch=steps_per_epoch) for s in range(recipe.epochs * 4)]


@pytest.mark.parametrize("schedule", ["step", "epoch"])
def test_each_segment_is_a_cosine_of_its_own(schedule):
    recipe = dataclasses.replace(PLAIN, restarts=(1, 4), lr_min=0.01, schedule=schedule)
    parts = [dataclasses.replace(recipe, restarts=(), epochs=epochs) for epochs in (1, 3, 6)]
    assert rates(recipe) == pytest.approx([rate for part in parts for rate in rates(part)])


def test_segmented_repeats_the_schedule_and_warms_up_once():
    recipe = dataclasses.replace(PLAIN, warmup_epochs=1.0, restarts=(5,))
    found = segmented(recipe, [2, 4, 12])
    assert found == dataclasses.replace(PLAIN, epochs=18, warmup_epochs=0.2, restarts=(2, 6))
    assert found.ends == (2, 6, 18)
    assert segmented(recipe, [3]).ends == (3,)


@pytest.mark.parametrize(("epochs", "restarts"), [(20, (4, 10)), (5, (1, 3)), (2, (1,)), (1, ())])
def test_compression_moves_the_restarts(epochs, restarts):
    recipe = dataclasses.replace(PLAIN, restarts=(2, 5), warmup_epochs=1.9)
    assert compressed(recipe, epochs).restarts == restarts
    assert compressed(recipe, epochs).warmup_epochs == pytest.approx(0.19 * epochs)
