"""How time is divided, what fits into it, and the clock that holds a job to it."""

import dataclasses
import json
import math

import pytest

from nas.budget.clock import SAVE_S, Clock, TimeUp
from nas.budget.shares import FINISH_S, Fit, Needs, divide, fit
from nas.errors import ConfigError
from nas.training.recipe import Recipe, learning_rate, preset

NEEDS = Needs(search_s=100, baselines_s=100, rerank_s=40, retrain_s=60, training_s=4)
RECIPE = Recipe(epochs=10, batch=10, lr=0.1, weight_decay=0.0, warmup_epochs=1.0)


class Hands:
    """A clock's time, moved by hand."""

    def __init__(self):
        self.at = 100.0

    def __call__(self):
        return self.at


@pytest.fixture
def hands():
    return Hands()


def test_what_fits_gets_what_it_needs_and_its_part_of_the_rest():
    shares = divide(NEEDS, 0.0, 600.0 + FINISH_S)
    assert (shares.search_s, shares.baselines_s, shares.rerank_s) == (200.0, 400.0, 480.0)


def test_a_shorter_budget_keeps_time_for_the_last_training_and_shares_the_rest():
    shares = divide(NEEDS, 10.0, 213.0)
    rerank, retrain = 30.0, 60.0
    half = (200.0 - rerank - retrain) / 2
    assert (shares.search_s, shares.baselines_s, shares.rerank_s) == (
        10 + half,
        10 + 2 * half,
        10 + 2 * half + rerank,
    )


def test_the_test_of_the_network_is_set_aside_like_the_writing():
    tested = dataclasses.replace(NEEDS, test_s=40.0)
    assert tested.total_s == NEEDS.total_s + 40
    for budget_s in (30.0, 150.0, 213.0, 600.0):
        assert divide(tested, 0.0, budget_s + 40) == divide(NEEDS, 0.0, budget_s)


@pytest.mark.parametrize(("budget_s", "left"), [(103.0, (False, True)), (53.0, (False, False))])
def test_random_search_is_left_out_first_then_the_re_evaluation(budget_s, left):
    shares = divide(NEEDS, 0.0, budget_s)
    assert (shares.baselines_s is not None, shares.rerank_s is not None) == left
    assert 0 < shares.search_s < budget_s


def test_nothing_is_promised_where_no_time_is_left():
    shares = divide(NEEDS, 5.0, 2.0)
    assert (shares.search_s, shares.baselines_s, shares.rerank_s) == (5.0, None, None)


def test_unmeasured_needs_leave_all_time_to_the_clock():
    assert divide(Needs(), 1.0, 60.0).search_s == 1.0


@pytest.mark.parametrize(
    ("left_s", "found"),
    [(1e9, (10, 100)), (50.0, (4, 100)), (11.2, (1, 100)), (4.5, (1, 40)), (0.0, (1, 10)), (-9.0, (1, 10))],
)
def test_a_training_is_shortened_to_what_fits(left_s, found):
    assert fit(RECIPE, 100, 1.0, left_s) == Fit(*found)


def test_a_shortened_training_has_its_whole_schedule():
    assert fit(RECIPE, 100, 1.0, 60.0).of(RECIPE).warmup_epochs == 0.5
    assert fit(RECIPE, 100, 0.0, 1.0).of(RECIPE) is RECIPE


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_training_that_is_cut_ends_at_a_low_rate(epochs):
    """The published cosine of 600 epochs looks at the epoch alone; of two, the second has half the rate."""
    recipe = Fit(epochs, 100).of(preset("standard"))
    assert (recipe.epochs, recipe.auxiliary, recipe.cutout) == (epochs, 0.4, 16)
    assert learning_rate(recipe, 100 * epochs - 1, steps_per_epoch=100) < 0.01 * recipe.lr


def test_earlier_processes_count(tmp_path, hands):
    first = Clock(60.0, now=hands)
    first.open(tmp_path)
    hands.at += 50
    first.save()
    second = Clock(60.0, now=hands)
    second.open(tmp_path)
    hands.at += 5
    assert (second.elapsed_s, second.left_s) == (55.0, 5.0)


def test_a_killed_process_forgets_a_few_seconds_at_most(tmp_path, hands):
    clock = Clock(60.0, now=hands)
    clock.open(tmp_path)
    for _ in range(30):
        hands.at += 1
        clock.late(60.0)
    again = Clock(60.0, now=hands)
    again.open(tmp_path)
    assert 30 - SAVE_S <= again.elapsed_s <= 30


def test_a_resumed_job_decides_what_it_did_before(tmp_path, hands):
    first = Clock(60.0, now=hands)
    first.open(tmp_path)
    assert [first.decide("a", lambda: 1), first.decide("b", lambda: [2], lasting=True)] == [1, [2]]
    same, more = Clock(60.0, now=hands), Clock(90.0, now=hands)
    for clock in (same, more):
        clock.recall(tmp_path)
    assert [same.decide("a", lambda: 3), same.decide("b", lambda: 3)] == [1, [2]]
    assert [more.decide("a", lambda: 3), more.decide("b", lambda: 3, lasting=True)] == [3, [2]]


def test_the_end_of_a_phase_is_an_exception_and_written_down(tmp_path, hands):
    clock = Clock(60.0, now=hands)
    clock.open(tmp_path)
    asked = clock.until(10.0, lambda: False)
    assert not asked() and clock.until(0.0, lambda: True)()
    hands.at += 10
    with pytest.raises(TimeUp, match="over after 10 s"):
        asked()
    assert json.loads((tmp_path / "time.json").read_text())["spent_s"] == 10.0


def test_who_hurries_is_late_for_all_but_the_end(hands):
    clock = Clock(60.0, now=hands)
    clock.hurry(5.0)
    assert clock.late(1e9) and clock.left_s == 5.0
    assert Clock(3.0, now=hands).left_s == 3.0 and Clock(now=hands).left_s == math.inf


def test_a_damaged_record_is_refused_in_words(tmp_path):
    (tmp_path / "time.json").write_text('{"spent_s": -1, "decided": {}}')
    with pytest.raises(ConfigError, match=r"time\.json is damaged, it is no record of a job's time"):
        Clock(60.0).open(tmp_path)


def test_without_a_budget_nothing_is_written(tmp_path):
    clock = Clock()
    assert clock.decide("a", lambda: 1) == 1 and not clock.late(1e9)
    assert not list(tmp_path.iterdir())
