"""How time is divided, what fits into it, and the clock that holds a job to it."""

import json

import pytest

from nas.errors import ConfigError
from nas.run.budget import BASELINES, FRESH, RETRAIN, SEARCH, BudgetPlan, Steps, applied, divided, shortened
from nas.run.config import make_config
from nas.run.job import SAVE_S, Clock, TimeUp
from nas.run.preparation import prepare
from nas.run.step_timing import sized
from nas.space.cost import count_params
from nas.training.recipe import learning_rate, preset


class Hands:
    """A clock's time, moved by hand."""

    def __init__(self):
        self.at = 100.0

    def __call__(self):
        return self.at


@pytest.fixture
def hands():
    return Hands()


def job(tmp_path, **settings):
    values = {"space": "convnet", "task": "digits", "method": "random", "baselines": False, **settings}
    return prepare(make_config(values), tmp_path, clock=Clock(settings.get("budget")))


STEPS = Steps(trial=0.01, search=0.01, final=0.01)
"""Eleven steps make an epoch of the search."""


@pytest.mark.parametrize("method", ["random", "darts", "spos"])
def test_without_time_for_a_search_all_of_it_goes_to_the_last_training(tmp_path, method):
    found = divided(job(tmp_path, method=method), STEPS, 5.0, places=1)
    assert found == BudgetPlan({RETRAIN: 5.0}, limited=True)


@pytest.mark.parametrize("places", [1, 2])
@pytest.mark.parametrize("usable_s", [80.0, 3000.0])
def test_the_last_training_gets_half_or_more_and_a_trial_six_epochs(tmp_path, usable_s, places):
    for baselines in (True, False):
        made = job(tmp_path, method="evolution", baselines=baselines)
        found = divided(made, STEPS, usable_s, places=places)
        assert found.trials >= 12 and found.epochs >= 6 and found.seconds[RETRAIN] >= usable_s / 2
        assert sum(found.seconds.values()) == pytest.approx(usable_s)
        assert found.seconds[SEARCH] > 0 and found.seconds[FRESH] > 0
        assert applied(made, found).plan.ladder.granted == (found.epochs,)
        compares = BASELINES in found.seconds
        assert compares <= baselines and (usable_s < 300 or compares == baselines)


def test_what_the_user_has_set_stays(tmp_path):
    found = divided(job(tmp_path, trials=5, epochs=2), STEPS, 300.0, places=1)
    assert (found.trials, found.epochs) == (5, 2)


def test_a_supernet_is_trained_for_fewer_epochs_by_its_whole_schedule(tmp_path):
    made = job(tmp_path, method="spos", epochs=50)
    found = divided(made, STEPS, 90.0, places=1)
    assert 6 <= found.epochs < 50
    shared = applied(made, found).plan.supernet
    assert (shared.epochs, shared.schedule) == (found.epochs, "step")


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_training_that_is_cut_ends_at_a_low_rate(epochs):
    """The published cosine of 600 epochs looks at the epoch alone; of two, the second has half the rate."""
    recipe = shortened(preset("standard"), epochs)
    assert (recipe.epochs, recipe.auxiliary, recipe.cutout) == (epochs, 0.4, 16)
    assert learning_rate(recipe, 100 * epochs - 1, steps_per_epoch=100) < 0.01 * recipe.lr


def test_the_last_network_is_the_largest_that_is_fast_enough(tmp_path, monkeypatch):
    """A step that takes a microsecond for each parameter, half of it in bfloat16 where that is tried."""

    def pace(at, genotype, **_):
        params = count_params(at.final.network(genotype, meta=True))
        return params * (0.5e-6 if at.recipe.precision == "bfloat16" else 1e-6)

    monkeypatch.setattr("nas.run.step_timing.final_pace", pace)
    made = job(tmp_path, budget=600.0)
    genotype = made.space.default_genotype
    steps = min(2200, 28 * (1438 // 64))
    for step_s in (0.01, 0.02, 0.1):
        made.clock._decided.clear()
        at, took_s = sized(made, genotype, steps * step_s)
        assert at.recipe.precision == "bfloat16" and took_s == pace(at, genotype) <= step_s
        wider = at.final.settings["width"] * 1.4
        assert took_s * 4 > step_s or wider > 4 * 16
    fixed = job(tmp_path, final_settings={"width": 5, "stem_stride": 1})
    assert sized(fixed, genotype, 1e9)[0].final.settings["width"] == 5


def test_a_size_keeps_the_constraints(tmp_path):
    made = job(tmp_path, budget=600.0, constraint=["params<=30000"])
    at, _ = sized(made, made.space.default_genotype, 1e9)
    assert 10_000 < count_params(at.final.network(made.space.default_genotype, meta=True)) <= 30_000


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


def test_a_damaged_record_is_refused_in_words(tmp_path):
    (tmp_path / "time.json").write_text('{"spent_s": -1, "decided": {}}')
    with pytest.raises(ConfigError, match=r"time\.json is damaged, it is no record of a job's time"):
        Clock(60.0).open(tmp_path)
