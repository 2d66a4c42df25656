"""Recipes: their rules, their published numbers and the schedule at known steps."""

from __future__ import annotations

import dataclasses
import math

import pytest

from nas.errors import ConfigError
from nas.training.recipe import Recipe, compressed, learning_rate, preset, segmented

PLAIN = Recipe(epochs=10, batch=32, lr=0.1, weight_decay=5e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "recipe: epochs is 0, but must be an integer of at least 1"),
        ({"batch": 1}, "batch is 1, but must be an integer of at least 2"),
        ({"lr": 0.0}, "lr is 0.0, but must be a number above 0"),
        ({"lr": math.inf}, "lr is inf, but must be a finite number of at least 0"),
        ({"lr_min": 0.2}, "lr_min is 0.2, but must be at most lr, 0.1"),
        ({"momentum": 1.0}, "momentum is 1.0, but must be a finite number of at least 0 and below 1"),
        ({"momentum": 0.0}, "nesterov is True, but must be False where momentum is 0"),
        ({"weight_decay": -1e-4}, "weight_decay is -0.0001, but must be a finite number of at least 0"),
        ({"warmup_epochs": 10}, "warmup_epochs is 10, but must be below epochs, 10"),
        ({"restarts": [3]}, "restarts is [3], but must be a tuple of ascending epochs from 1 on"),
        ({"restarts": (3, 10)}, "restarts is (3, 10), but must be below epochs, 10"),
        ({"restarts": (2,), "warmup_epochs": 2.0}, "is 2.0, but must be below the first restart, 2"),
        ({"schedule": "cosine"}, "schedule is 'cosine', but must be 'step' or 'epoch'"),
        ({"cutout": 2.5}, "cutout is 2.5, but must be an integer of at least 0"),
        ({"crop": 1}, "crop is 1, but must be True or False"),
    ],
)
def test_a_broken_rule_is_named_with_what_was_got_and_wanted(change, message):
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(PLAIN, **change)
    assert message in str(error.value)


def test_standard_is_the_recipe_of_darts():
    own = {
        "nesterov": False,
        "schedule": "epoch",
        "clip": 5.0,
        "auxiliary": 0.4,
        "drop_path": 0.2,
        "cutout": 16,
    }
    assert preset("standard") == Recipe(epochs=600, batch=96, lr=0.025, weight_decay=3e-4, **own)


@pytest.mark.parametrize(("name", "epochs"), [("nasbench201", 200), ("nasbench201-12", 12)])
def test_nasbench201_is_the_recipe_of_its_tables(name, epochs):
    """Table 1, and the released code, whose cosine looks at the epoch alone."""
    assert preset(name) == Recipe(epochs=epochs, batch=256, lr=0.1, weight_decay=5e-4, schedule="epoch")


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="no recipe 'standart'; did you mean 'standard'"):
        preset("standart")


def test_the_cosine_moves_every_step():
    rates = [learning_rate(PLAIN, step, steps_per_epoch=4) for step in (0, 10, 20, 30, 39)]
    expected = [0.05 * (1 + math.cos(math.pi * t)) for t in (0, 0.25, 0.5, 0.75, 39 / 40)]
    assert rates == pytest.approx(expected)
    assert rates[0] == 0.1
    assert rates[2] == pytest.approx(0.05)


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
