"""The study: resumption equals no interruption, failures are recorded, and nothing odd is told to Optuna."""

import time

import optuna
import pytest
from killing import run_killed

from nas.errors import ConfigError, NoModelError, TrialError
from nas.searchers.evolution import RegularizedEvolution
from nas.searchers.goals import Goals
from nas.searchers.scheduler import Fixed, Listed
from nas.space.loading import load
from nas.study.storage import open_storage
from nas.study.study import Study
from nas.types import Objective, Trial

TOY, CELLS = load("toy"), load("nasbench201")
EVOLUTION = Fixed(RegularizedEvolution(5, 3), epochs=2)


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def scored(trial, stream):
    """Depends on the architecture and on the trial's own stream."""
    return {"val_acc": sum(trial.genotype) / 30 + 0.01 * stream.random(), "params": 10.0 + trial.number}


def make(path, *, space=CELLS, scheduler=EVOLUTION, **settings):
    path.mkdir(exist_ok=True)
    return Study(space, scheduler, open_storage(path / "study.log"), name="s", **({"seed": 1} | settings))


def timeless(history):
    return [(t.number, t.genotype, t.fidelity, t.state, dict(t.metrics), t.reason) for t in history]


def flaky(trial, stream):
    if trial.number % 4 == 2:
        raise TrialError("oom", "out of memory")
    return scored(trial, stream)


# -- the loop -----------------------------------------------------------------------------------------


def test_resumed_is_uninterrupted(tmp_path):
    whole = make(tmp_path / "whole", announce=False)
    assert whole.run(flaky, trials=30) == "30 trials done"
    assert [t.fidelity for t in whole.history] == [2] * 30
    for end in (1, 2, 9, 10, 23, 30):
        part = make(tmp_path, announce=True)
        part.run(flaky, trials=end)
        assert len(part.history) == end
    assert timeless(part.history) == timeless(make(tmp_path).history) == timeless(whole.history)
    assert part.run(flaky, trials=30) == "30 trials done"
    assert len(part.history) == 30


def test_an_interrupted_trial_is_taken_up_under_its_number(tmp_path):
    def interrupted(trial, stream):
        if trial.number == 2:
            raise KeyboardInterrupt
        return scored(trial, stream)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path).run(interrupted, trials=5)
    study = make(tmp_path)
    assert [t.state for t in study.history] == ["done", "done", "running"]
    assert study.ended == 2
    study.run(scored, trials=5)
    whole = make(tmp_path / "whole")
    whole.run(scored, trials=5)
    assert timeless(study.history) == timeless(whole.history)


def test_stop_is_asked_before_every_trial(tmp_path):
    told = []
    study = make(tmp_path)
    reason = study.run(scored, trials=9, stop=lambda: len(told) >= 4, on_trial=told.append)
    assert reason == "stopped after 4 trials"
    assert told == study.history and [t.state for t in told] == ["done"] * 4


def test_where_every_trial_failed_there_is_no_best_and_the_reasons_are_told(tmp_path):
    study = make(tmp_path)
    assert study.best() == []
    study.run(lambda *_: {"val_acc": 1 / 0}, trials=3)
    with pytest.raises(NoModelError, match=r"all 3 trials failed:\n  3 x error: ZeroDivisionError"):
        study.best()


@pytest.mark.parametrize("maximize", [True, False])
def test_the_best_trials(tmp_path, maximize):
    values = [3.0, 1.0, 2.0, 3.0, 1.0]
    study = make(tmp_path, goals=Goals((Objective("quality", maximize),)))
    study.run(lambda trial, _: {"quality": values[trial.number]}, trials=5)
    assert [t.number for t in study.best(3)] == ([0, 3, 2] if maximize else [1, 4, 2])
    assert study.best()[0].number == study.optuna_study.best_trial.number
    assert study.spent_s == sum(t.cost_s for t in study.history)


def test_what_was_measured_before_is_answered_from_the_history(tmp_path):
    """Isomorphic architectures count as one, also in another study, at the same fidelity alone."""
    asked = []

    def evaluate(trial, stream):
        asked.append((trial.genotype, trial.fidelity))
        return scored(trial, stream)

    listed = Listed(((0, 1, 2), (0, 2, 1), (1, 1, 1), (2, 2, 2)), epochs=3)
    others = [
        Trial(9, (2, 2, 2), 3, "done", {"val_acc": 0.7}),
        Trial(8, (1, 1, 1), 1, "done", {"val_acc": 0.1}),
    ]
    study = make(tmp_path, space=TOY, scheduler=listed, alike=lambda g: tuple(sorted(g)), others=others)
    study.run(evaluate, trials=4)
    assert asked == [((0, 1, 2), 3), ((1, 1, 1), 3)]
    assert study.history[1].metrics == study.history[0].metrics
    assert study.history[3].metrics == {"val_acc": 0.7} and study.history[3].cost_s == 0


# -- what a study is for ------------------------------------------------------------------------------


def test_the_space_and_the_goals_are_kept_with_the_study(tmp_path):
    asked = Goals((Objective("quality", maximize=False),))
    make(tmp_path, goals=asked).run(lambda *_: {"quality": 1.0}, trials=1)
    assert make(tmp_path).goals == asked
    assert len(make(tmp_path, space=load("nasbench201", width=32)).history) == 1
    with pytest.raises(ConfigError, match="made for a space with other decisions than 'toy'"):
        make(tmp_path, space=TOY)
    with pytest.raises(ConfigError, match="was made for min quality, not for max quality"):
        make(tmp_path, goals=Goals((Objective("quality"),)))


# -- Optuna -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("announce", [True, False])
def test_optuna_sees_parameters_values_and_failures(tmp_path, announce):
    study = make(tmp_path, announce=announce)
    study.run(flaky, trials=20)
    loaded = optuna.load_study(study_name="s", storage=open_storage(tmp_path / "study.log"))
    assert loaded.direction == optuna.study.StudyDirection.MAXIMIZE
    for ours, theirs in zip(study.history, loaded.trials, strict=True):
        assert theirs.number == ours.number
        assert theirs.params == CELLS.choices(ours.genotype)
        assert theirs.value == ours.metrics.get("val_acc")
        assert theirs.state.name == {"done": "COMPLETE", "failed": "FAIL"}[ours.state]
    assert loaded.best_value == study.best()[0].metrics["val_acc"]
    assert len(optuna.importance.get_param_importances(loaded)) == 6
    lines = (tmp_path / "study.log").read_text().count("\n")
    assert lines <= (2 if announce else 1) * 20 + 5, "whole trials, written once"
    study.optuna_study.ask()
    with pytest.raises(ConfigError, match="trial 20 was not written by this engine"):
        make(tmp_path)


TRIALS = 120


def slowly(trial, stream):
    time.sleep(0.004)
    return flaky(trial, stream)


def search_killed(folder, announce):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    make(folder, announce=announce).run(slowly, trials=TRIALS)


@pytest.mark.parametrize("announce", [True, False])
def test_killed_at_random_points_the_history_is_the_uninterrupted_one(tmp_path, announce):
    run_killed(search_killed, tmp_path, announce, kills=5, longest_s=0.1, seed=announce)
    whole = make(tmp_path / "whole", announce=announce)
    whole.run(flaky, trials=TRIALS)
    killed = make(tmp_path)
    assert timeless(killed.history) == timeless(whole.history)
    assert [t.number for t in killed.optuna_study.trials] == list(range(TRIALS))
