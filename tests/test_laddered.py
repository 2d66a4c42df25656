"""Trials that climb a ladder: what a promotion continues, what it costs, and that nothing interrupts it."""

import dataclasses

import numpy as np
import pytest
from trainings import train

from nas.data.loading import load_task
from nas.errors import Stopped
from nas.evaluate.multi_fidelity import Laddered, scaled_space, scaled_task
from nas.evaluate.trained import affordable
from nas.searchers.fidelity import Fidelity, Ladder, parse_ladder
from nas.seeding import derive, isolated
from nas.space.loading import load
from nas.training.checkpoint import Checkpoints
from nas.training.recipe import Recipe, segmented
from nas.types import Trial

TASK = load_task("digits").reduced(160)
TOY = load("toy", width=4)
RECIPE = Recipe(epochs=4, batch=32, lr=0.05, weight_decay=1e-4, warmup_epochs=0.5, ema=0.5, drop_path=0.1)
LADDER = parse_ladder("epochs=1; epochs=1; epochs=2")
GENOTYPE = (2, 0, 2)


def rng(seed=0):
    return np.random.default_rng(seed)


def make(folder, *, ladder=LADDER, space=TOY, recipe=RECIPE, seed=0, stop=None):
    return Laddered(space, TASK, recipe, ladder, folder, seed=seed, stop=stop)


def climb(evaluate, *fidelities, genotype=GENOTYPE):
    """The metrics of one architecture at one fidelity after the other, in trials of their own."""
    return [dict(evaluate(Trial(7 + i, genotype, f), rng(i))) for i, f in enumerate(fidelities)]


def after(steps):
    asked = iter(range(steps + 1))
    return lambda: next(asked) == steps


def by_hand(folder, stages, *, genotype=GENOTYPE, seed=0):
    """What `Laddered` should have done: one call of `train` for each (rung, recipe, starts anew)."""
    own, start = derive(seed, "ladder", *genotype), None
    for first, fidelity, recipe, is_new in stages:
        with isolated(own, "init"):
            network = scaled_space(TOY, fidelity).network(genotype)
        checkpoints = Checkpoints(folder / f"{first}")
        task = scaled_task(TASK, fidelity)
        curve = train(
            network,
            task,
            recipe if is_new else dataclasses.replace(recipe, warmup_epochs=0.0),
            seed=derive(own, first),
            evaluate_on=task.val,
            start=None if is_new else start,
            checkpoints=checkpoints,
        )
        start = checkpoints
    return curve


# -- climbing -------------------------------------------------------------------------------------------


def test_every_rung_equals_an_uninterrupted_training_bit_for_bit(tmp_path):
    found = climb(make(tmp_path / "rungs"), 1, 2, 4)
    recipe = segmented(RECIPE, [1, 1, 2])
    assert (recipe.restarts, recipe.warmup_epochs) == ((1, 2), 0.125)
    curve = by_hand(tmp_path / "whole", [(0, LADDER.rungs[0], recipe, True)])
    assert [m["epochs_trained"] for m in found] == [1, 2, 4]
    assert [m["val_acc"] for m in found] == [curve.val_score[epoch - 1] for epoch in (1, 2, 4)]
    assert [m["val_loss"] for m in found] == [curve.val_loss[epoch - 1] for epoch in (1, 2, 4)]
    assert [m["train_loss"] for m in found] == [curve.train_loss[epoch - 1] for epoch in (1, 2, 4)]


def test_rungs_that_no_trial_trained_are_trained_first(tmp_path):
    *_, climbed = climb(make(tmp_path / "climbed"), 1, 2, 4)
    for path in ((4,), (1, 4)):
        *_, straight = climb(make(tmp_path / f"from {path[0]}"), *path)
        assert straight == climbed


# -- what the rungs cut ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [{"images": 0.5}, {"image_size": 0.5}])
def test_more_or_larger_images_continue_the_weights_and_the_momentum(tmp_path, cut):
    ladder = Ladder((Fidelity(1, **cut), Fidelity(1), Fidelity(2)))
    found = climb(make(tmp_path / "rungs", ladder=ladder), 1, 2, 4)
    stages = [(0, ladder.rungs[0], segmented(RECIPE, [1]), True)]
    stages.append((1, ladder.rungs[1], segmented(RECIPE, [1, 2]), False))
    low, curve = by_hand(tmp_path / "low", stages[:1]), by_hand(tmp_path / "both", stages)
    assert found[0]["val_loss"] == low.val_loss[-1]
    assert [m["val_loss"] for m in found[1:]] == [curve.val_loss[0], curve.val_loss[2]]
    *_, straight = climb(make(tmp_path / "straight", ladder=ladder), 4)
    assert straight == found[-1]


def test_a_wider_rung_begins_with_new_weights_and_says_so(tmp_path):
    ladder = parse_ladder("epochs=1,width=0.5; epochs=1; epochs=2")
    found = climb(make(tmp_path / "rungs", ladder=ladder), 1, 2, 4)
    assert [m["epochs_trained"] for m in found] == [1, 1, 3]
    stage = [(1, ladder.rungs[1], segmented(RECIPE, [1, 2]), True)]
    assert found[2]["val_loss"] == by_hand(tmp_path / "wide", stage).val_loss[-1]
    # Nothing of the narrow rung is of use above it, so a straight climb leaves it out.
    *_, straight = climb(make(tmp_path / "straight", ladder=ladder), 4)
    assert straight == found[2]
    size = affordable(TOY, GENOTYPE, TASK).params
    assert all(m["params"] == size for m in found), "that of the whole architecture at every rung"


# -- interruptions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cut", "path"), [({}, (1, 2, 4)), ({"images": 0.5}, (4,)), ({"images": 0.5}, (2, 4))]
)
def test_a_stopped_trial_ends_like_an_uninterrupted_one(tmp_path, cut, path):
    ladder = Ladder((Fidelity(1, **cut), Fidelity(1), Fidelity(2)))
    whole = climb(make(tmp_path / "whole", ladder=ladder), *path)
    found = []
    for fidelity in path:
        for _ in range(10):
            try:
                found += climb(make(tmp_path / "parts", ladder=ladder, stop=after(2)), fidelity)
                break
            except Stopped:
                continue
    assert found == whole


def test_a_trial_killed_before_it_was_told_is_answered_from_its_checkpoint(tmp_path):
    found = climb(make(tmp_path), 1, 2)
    assert climb(make(tmp_path, stop=lambda: True), 2) == found[1:]


def test_paused_trials_are_kept_and_finished_ones_removed(tmp_path):
    evaluate = make(tmp_path)
    climb(evaluate, 1, 2)
    place = evaluate.place(GENOTYPE)
    assert sorted(path.name for path in place.iterdir()) == ["lock", "rung-0"]
    assert len(list((place / "rung-0").iterdir())) == 1
    climb(evaluate, 4)
    assert not list(tmp_path.iterdir())
