"""Random search at equal cost and the largest network, next to real searches of a second."""

from jobs import SMALL

from nas.data.loading import load_task
from nas.evaluate.trained import Trained
from nas.files.folder import prepare_folder
from nas.results.run_record import RANDOM
from nas.run.black_box import search_by_trials as find
from nas.run.comparison import LARGEST
from nas.run.comparison import random_search as run_baselines
from nas.run.config import make_config
from nas.run.job import SearchOutcome as Found
from nas.run.preparation import prepare
from nas.run.supernet_phase import shared_weights
from nas.searchers.scheduler import epochs_granted
from nas.space.cost import cost
from nas.space.loading import load
from nas.study.study import Study
from nas.types import Trial

TASK = load_task("digits")
COMPARED = {"baselines": True}
LEARNING = {"epochs": 8, "supernet": {"batch": 10, "lr": 0.2}}
"""Shared weights that are better than guessing."""


def job(folder, method="evolution", **settings):
    values = {"space": "toy", "task": "digits", "method": method, **SMALL, **COMPARED, **settings}
    return prepare(make_config(values), prepare_folder(folder), task=TASK)


def trial(number, genotype, accuracy, *, epochs=1, **metrics):
    return Trial(number, genotype, epochs, "done", {"val_acc": accuracy, "macs": 1, **metrics}, 0.01)


# -- equal cost ------------------------------------------------------------------------------------------


def test_random_search_gets_as_many_trials_and_the_choices_are_the_best_and_the_largest(tmp_path):
    made = job(tmp_path, trials=4)
    baselines = run_baselines(made, find(made))
    assert len(baselines.history) == len({t.genotype for t in baselines.history}) == 4
    assert {t.fidelity for t in baselines.history} == {2}
    best = max(baselines.history, key=lambda t: t.metrics["val_acc"])
    assert baselines.choices[RANDOM] == best.genotype
    sizes = {t.genotype: cost(made.space, t.genotype, TASK.image_shape).macs for t in baselines.history}
    assert sizes[baselines.choices[LARGEST]] == max(sizes.values())


def test_random_search_gets_as_many_epochs_where_trials_got_different_ones(tmp_path):
    made = job(tmp_path, epochs=3, eta=2, trials=6, scheduler="successive-halving")
    found = find(made)
    baselines = run_baselines(made, found)
    granted = made.plan.ladder.granted
    assert len(granted) > 1
    spent = epochs_granted(found.history, granted)
    assert abs(len(baselines.history) * granted[-1] - spent) <= granted[-1] / 2
    assert {t.fidelity for t in baselines.history} == {granted[-1]}


def test_random_search_pays_for_what_early_stopping_saves(tmp_path):
    made = job(tmp_path, trials=5, epochs=4, early_stop=0.9)
    found = find(made)
    trained = sum(t.metrics["epochs_trained"] for t in found.history)
    assert trained < 5 * 4
    assert len(run_baselines(made, found).history) == round(trained / 4)


def test_shared_weights_are_shared_with_random_search(tmp_path):
    made = job(tmp_path, evaluator="shared", **LEARNING)
    found = find(made, shared=shared_weights)
    baselines = run_baselines(made, found)
    assert {t.fidelity for t in baselines.history} == {0}
    both = {t.genotype: t.metrics for t in found.history}
    assert [t.metrics == both[t.genotype] for t in baselines.history if t.genotype in both].count(False) == 0


# -- what is not measured twice --------------------------------------------------------------------------


def test_what_the_search_did_not_measure_is_measured_once(tmp_path, monkeypatch):
    made = job(tmp_path, trials=27)
    known = list(made.space.enumerate())[:24]
    found = Found(
        [known[0]],
        [trial(i, g, 0.5) for i, g in enumerate(known)] * 2,
        1.0,
        Trained(made.space, made.search_task, made.plan.trial),
        1,
    )
    asked, plain = [], Trained.__call__
    monkeypatch.setattr(
        Trained, "__call__", lambda self, t, rng: asked.append(t.genotype) or plain(self, t, rng)
    )
    history = run_baselines(made, found).history
    assert sorted(asked) == sorted({t.genotype for t in history} - set(known))


def test_random_search_is_its_own_baseline_unless_a_scheduler_promotes(tmp_path):
    made = job(tmp_path / "a", "random")
    found = find(made)
    assert run_baselines(made, found).history is found.history
    assert Study.read(tmp_path / "a", RANDOM, made.space) == []
    made = job(tmp_path / "b", "random", epochs=3, scheduler="successive-halving", trials=4)
    found = find(made)
    assert run_baselines(made, found).history is not found.history
    assert Study.read(tmp_path / "b", RANDOM, made.space) != []


# -- choices ---------------------------------------------------------------------------------------------


def test_baselines_keep_the_constraints(tmp_path):
    space = load("toy", width=4)
    sizes = sorted(cost(space, g, TASK.image_shape).params for g in space.enumerate())
    limit = sizes[len(sizes) // 3]
    made = job(tmp_path, constraint=f"params<={limit}", trials=5)
    found = find(made)
    baselines = run_baselines(made, found)
    for t in [*found.history, *baselines.history]:
        assert t.metrics["params"] <= limit
    assert cost(made.space, baselines.choices[LARGEST], TASK.image_shape).params <= limit


def test_what_breaks_a_constraint_that_only_training_shows_is_no_choice(tmp_path):
    made = job(tmp_path, "random", constraint="train_loss<=2.0")
    history = [
        trial(0, (2, 2, 2), 0.9, train_loss=3, macs=99),
        trial(1, (1, 1, 1), 0.5, train_loss=1, macs=1),
    ]
    assert set(run_baselines(made, Found([(2, 2, 2)], history, 1.0)).choices.values()) == {(1, 1, 1)}


def test_failures_of_random_search_do_not_end_the_job(tmp_path, monkeypatch):
    made = job(tmp_path, trials=5)
    found = find(made)

    def fails(self, trial, rng):
        raise ValueError("broken")

    monkeypatch.setattr(Trained, "__call__", fails)
    baselines = run_baselines(made, found)
    known = {t.genotype for t in found.history}
    assert {t.state for t in baselines.history if t.genotype not in known} == {"failed"}
