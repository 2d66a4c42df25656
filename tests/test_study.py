"""The study: resumption equals no interruption, failures are recorded, and nothing odd is told to Optuna."""

import time

import numpy as np
import optuna
import pytest
import torch
from killing import run_killed

from nas.errors import ConfigError, NoModelError, TrialError
from nas.evaluate.significance import check_metrics
from nas.searchers import RandomSearch, RegularizedEvolution
from nas.searchers.goals import Goals
from nas.searchers.scheduler import Fixed, Listed
from nas.seeding import rng
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
    return Study(space, scheduler, open_storage(path / "study.log"), name="s", **({"seed": 1} | settings))


def timeless(history):
    return [(t.number, t.genotype, t.fidelity, t.state, dict(t.metrics), t.reason) for t in history]


def flaky(trial, stream):
    if trial.number % 4 == 2:
        raise TrialError("oom", "out of memory")
    return scored(trial, stream)


# -- the loop -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("announce", [True, False])
def test_resumed_is_uninterrupted(tmp_path, announce):
    (tmp_path / "whole").mkdir()
    whole = make(tmp_path / "whole", announce=announce)
    assert whole.run(flaky, trials=30) == "30 trials done"
    assert [t.fidelity for t in whole.history] == [2] * 30
    for end in (1, 2, 9, 10, 23, 30):
        part = make(tmp_path, announce=announce)
        part.run(flaky, trials=end)
        assert len(part.history) == end
    assert timeless(part.history) == timeless(make(tmp_path).history) == timeless(whole.history)
    assert part.run(flaky, trials=30) == "30 trials done"
    assert len(part.history) == 30


def test_whether_trials_are_announced_changes_nothing_but_when_they_are_written(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = make(tmp_path / "a"), make(tmp_path / "b", announce=False)
    one.run(flaky, trials=20)
    two.run(flaky, trials=20)
    assert timeless(one.history) == timeless(two.history)
    assert timeless(make(tmp_path / "a").history) == timeless(make(tmp_path / "b").history)


def test_another_seed_or_another_name_is_another_search(tmp_path):
    found = []
    for name, seed in (("s", 1), ("s2", 1), ("s3", 2)):
        study = Study(CELLS, EVOLUTION, open_storage(tmp_path / name), name=name, seed=seed)
        study.run(scored, trials=8)
        found.append([t.genotype for t in study.history])
    assert found[0] != found[1] != found[2] != found[0]


def test_every_trial_has_streams_of_its_own(tmp_path):
    class Drawing:
        def ask(self, space, history, stream):
            asked.append(stream.random())
            return (0,) * 6, 0

    asked, evaluated = [], []

    def evaluate(trial, stream):
        evaluated.append(stream.random())
        return {"val_acc": 0.0}

    make(tmp_path, scheduler=Drawing(), seed=7).run(evaluate, trials=4)
    assert asked == [rng(7, "s", number, "ask").random() for number in range(4)]
    assert evaluated == [rng(7, "s", number, "evaluate").random() for number in range(4)]


def test_a_trial_left_running_is_taken_up_under_its_number(tmp_path):
    study = make(tmp_path)
    study.run(scored, trials=3)
    left = study.ask()
    again = make(tmp_path)
    assert again.history[-1] == left == again.ask() and left.state == "running" and left.number == 3
    assert again.ended == 3
    again.run(scored, trials=6)
    (tmp_path / "whole").mkdir()
    whole = make(tmp_path / "whole")
    whole.run(scored, trials=6)
    assert timeless(again.history) == timeless(whole.history)


def test_an_interrupted_evaluation_leaves_its_trial_running(tmp_path):
    def interrupted(trial, stream):
        if trial.number == 2:
            raise KeyboardInterrupt
        return scored(trial, stream)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path).run(interrupted, trials=5)
    study = make(tmp_path)
    assert [t.state for t in study.history] == ["done", "done", "running"]
    study.run(scored, trials=5)
    assert [t.number for t in study.history] == [0, 1, 2, 3, 4] and study.ended == 5


def test_failed_trials_are_recorded_with_their_reason_and_the_search_goes_on(tmp_path):
    study = make(tmp_path)
    study.run(flaky, trials=8)
    failed = [t for t in make(tmp_path).history if t.state == "failed"]
    assert [t.number for t in failed] == [2, 6]
    assert all(t.reason == "oom: out of memory" and t.metrics == {} and t.cost_s >= 0 for t in failed)
    assert study.ended == 8


def test_too_many_failures_in_a_row_end_the_search_with_counts(tmp_path):
    def failing(trial, stream):
        if trial.number < 2:
            return scored(trial, stream)
        raise TrialError("nan", "loss is nan") if trial.number % 3 else TrialError("build", "shapes differ")

    study = make(tmp_path)
    with pytest.raises(NoModelError) as caught:
        study.run(failing, trials=50, max_failures=6)
    assert "the last 6 trials failed" in str(caught.value)
    assert "4 x nan: loss is nan" in str(caught.value) and "2 x build: shapes differ" in str(caught.value)
    assert study.ended == 8


def test_no_failure_at_all_cannot_be_asked_for(tmp_path):
    with pytest.raises(ConfigError, match="max_failures is 0, but must be at least 1"):
        make(tmp_path).run(scored, trials=1, max_failures=0)


def test_stop_is_asked_before_every_trial(tmp_path):
    told = []
    study = make(tmp_path)
    reason = study.run(scored, trials=9, stop=lambda: len(told) >= 4, on_trial=told.append)
    assert reason == "stopped after 4 trials"
    assert told == study.history and [t.state for t in told] == ["done"] * 4


def test_a_small_space_ends_the_study_and_says_so(tmp_path):
    study = make(tmp_path, space=TOY)
    assert study.run(scored, trials=100) == "all 27 architectures of space 'toy' have been tried"
    assert {t.genotype for t in study.history} == set(TOY.enumerate())


def test_a_list_may_repeat_architectures(tmp_path):
    study = make(tmp_path, space=TOY, scheduler=Listed(((0, 1, 2), (2, 2, 2)), epochs=3, repeats=2))
    assert "evaluated 2 times" in study.run(scored, trials=100)
    assert [t.genotype for t in study.history] == [(0, 1, 2), (2, 2, 2)] * 2
    assert study.history[0].metrics["val_acc"] != study.history[2].metrics["val_acc"]


def test_where_every_trial_failed_there_is_no_best_and_the_reasons_are_told(tmp_path, capfd):
    study = make(tmp_path)
    assert study.best() == []
    study.run(lambda *_: {"val_acc": 1 / 0}, trials=3)
    with pytest.raises(NoModelError, match=r"all 3 trials failed:\n  3 x error: ZeroDivisionError.*\n"):
        study.best()
    assert "A new study" not in capfd.readouterr().err


@pytest.mark.parametrize("maximize", [True, False])
def test_the_best_trials(tmp_path, maximize):
    values = [3.0, 1.0, 2.0, 3.0, 1.0]
    study = make(tmp_path, goals=Goals((Objective("quality", maximize),)))
    study.run(lambda trial, _: {"quality": values[trial.number]}, trials=5)
    assert [t.number for t in study.best(3)] == ([0, 3, 2] if maximize else [1, 4, 2])
    assert study.best()[0].number == study.optuna_study.best_trial.number
    assert study.spent_s == sum(t.cost_s for t in study.history)


# -- what evaluators return ---------------------------------------------------------------------------


def test_numbers_of_other_kinds_are_converted():
    given = {"a": np.float32(0.5), "b": torch.tensor(2), "c": np.array(1.5), "d": 3, "e": np.int64(4)}
    got = check_metrics(given | {"f": torch.tensor(0.25, requires_grad=True)})
    assert got == {"a": 0.5, "b": 2.0, "c": 1.5, "d": 3.0, "e": 4.0, "f": 0.25}
    assert {type(value) for value in got.values()} == {float}


@pytest.mark.parametrize(
    ("metrics", "reason", "message"),
    [
        (None, "metric", "returned NoneType, wanted a dictionary"),
        (0.9, "metric", "returned float, wanted a dictionary"),
        ({"val_acc": None}, "metric", "metric 'val_acc' is a NoneType, wanted a number"),
        ({"val_acc": "1.5"}, "metric", "'val_acc' is a str"),
        ({"val_acc": [0.5]}, "metric", "'val_acc' is a list"),
        ({"val_acc": True}, "metric", "'val_acc' is a bool"),
        ({"val_acc": np.True_}, "metric", "'val_acc' is a bool"),
        ({"val_acc": np.array([0.5])}, "metric", "'val_acc' is a ndarray"),
        ({"val_acc": torch.tensor([0.5])}, "metric", "'val_acc' is a Tensor"),
        ({"val_acc": 1j}, "metric", "'val_acc' is a complex"),
        ({"val_acc": float("nan")}, "nan", "'val_acc' is nan, wanted a finite number"),
        ({"val_acc": 0.5, "loss": torch.tensor(torch.inf)}, "nan", "'loss' is inf"),
        ({"val_acc": -np.inf}, "nan", "'val_acc' is -inf"),
    ],
)
def test_anything_else_fails_the_trial(tmp_path, metrics, reason, message):
    study = make(tmp_path)
    study.run(lambda trial, stream: metrics if trial.number == 1 else scored(trial, stream), trials=3)
    states = [t.state for t in make(tmp_path).history]
    assert states == ["done", "failed", "done"]
    assert study.history[1].reason.startswith(f"{reason}: ") and message in study.history[1].reason


def test_a_number_beyond_floats_fails_the_trial(tmp_path):
    study = make(tmp_path)
    study.run(lambda trial, _: {"val_acc": 10**400 if trial.number else 1.0}, trials=2)
    assert study.history[1].state == "failed"


def test_a_missing_objective_is_an_error_that_lists_what_there_was(tmp_path):
    with pytest.raises(ConfigError, match=r"returned no 'val_acc'; it returned \['acc', 'loss'\]"):
        make(tmp_path).run(lambda trial, stream: {"loss": 1.0, "acc": 0.5}, trials=3)
    study = make(tmp_path)
    study.run(scored, trials=2)
    assert [t.state for t in study.history] == ["done", "done"]


@pytest.mark.parametrize(
    ("metric", "maximize"), [("val_acc", False), ("val_loss", True), ("latency_ms", True)]
)
def test_a_direction_that_looks_wrong_is_warned_about(tmp_path, metric, maximize):
    with pytest.warns(UserWarning, match=f"{metric!r}; is that the right direction"):
        make(tmp_path, goals=Goals((Objective(metric, maximize),)))


def test_usual_directions_are_not_warned_about(tmp_path):
    for i, (metric, maximize) in enumerate([("val_acc", True), ("val_loss", False), ("naswot", True)]):
        (tmp_path / str(i)).mkdir()
        make(tmp_path / str(i), goals=Goals((Objective(metric, maximize),)))


def test_the_study_of_another_space_is_refused(tmp_path):
    make(tmp_path).run(scored, trials=1)
    with pytest.raises(ConfigError, match="made for a space with other decisions than 'toy'"):
        make(tmp_path, space=TOY)
    assert len(make(tmp_path, space=load("nasbench201", width=32)).history) == 1


# -- Optuna -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("announce", [True, False])
def test_optuna_sees_parameters_values_and_failures(tmp_path, announce):
    study = make(tmp_path, announce=announce)
    study.run(flaky, trials=6)
    loaded = optuna.load_study(study_name="s", storage=open_storage(tmp_path / "study.log"))
    assert loaded.direction == optuna.study.StudyDirection.MAXIMIZE
    for ours, theirs in zip(study.history, loaded.trials, strict=True):
        assert theirs.number == ours.number
        assert theirs.params == CELLS.choices(ours.genotype)
        assert theirs.value == ours.metrics.get("val_acc")
        assert theirs.state.name == {"done": "COMPLETE", "failed": "FAIL"}[ours.state]
    assert loaded.best_value == study.best()[0].metrics["val_acc"]
    assert len(optuna.importance.get_param_importances(loaded)) == 6


def test_a_running_trial_is_visible_only_when_announced(tmp_path):
    for announce in (True, False):
        (tmp_path / str(announce)).mkdir()
        study = make(tmp_path / str(announce), announce=announce)
        assert study.ask() == Trial(0, study.ask().genotype, 2) or announce
        others = make(tmp_path / str(announce)).history
        assert [t.state for t in others] == ["running"] * announce


def test_what_a_trial_costs_in_the_store(tmp_path, capsys):
    for announce, trials in ((True, 100), (False, 300)):
        (tmp_path / str(announce)).mkdir()
        study = make(tmp_path / str(announce), scheduler=Fixed(RandomSearch()), announce=announce)
        start = time.perf_counter()
        study.run(scored, trials=trials)
        milliseconds = 1e3 * (time.perf_counter() - start) / trials
        lines = (tmp_path / str(announce) / "study.log").read_text().count("\n")
        with capsys.disabled():
            print(
                f" [announce={announce}: {milliseconds:.2f} ms and {lines / trials:.2f} records a trial]",
                end="",
            )
        assert announce or lines <= trials + 5  # whole trials, written once


# -- SIGKILL ------------------------------------------------------------------------------------------

TRIALS = 250


def slowly(trial, stream):
    time.sleep(0.004)
    return flaky(trial, stream)


def search_killed(folder, announce):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    make(folder, announce=announce).run(slowly, trials=TRIALS)


@pytest.mark.parametrize("announce", [True, False])
def test_killed_at_random_points_the_history_is_the_uninterrupted_one(tmp_path, announce):
    run_killed(search_killed, tmp_path, announce, kills=12, longest_s=0.1, seed=announce)
    (tmp_path / "whole").mkdir()
    whole = make(tmp_path / "whole", announce=announce)
    whole.run(flaky, trials=TRIALS)
    killed = make(tmp_path)
    assert timeless(killed.history) == timeless(whole.history)
    assert [t.number for t in killed.optuna_study.trials] == list(range(TRIALS))


def test_the_objective_is_kept_with_the_study(tmp_path):
    space = load("toy")
    storage = open_storage(tmp_path / "study.log")
    asked = Goals((Objective("score", maximize=False),))
    with pytest.warns(UserWarning, match="right direction"):
        Study(space, Fixed(RandomSearch()), storage, name="s", goals=asked)
    with pytest.warns(UserWarning, match="right direction"):
        assert Study(space, Fixed(RandomSearch()), storage, name="s").goals == asked
    with pytest.raises(ConfigError, match="was made for min score, not for max score"):
        Study(space, Fixed(RandomSearch()), storage, name="s", goals=Goals((Objective("score"),)))


@pytest.mark.parametrize("epochs", [-1, True, 1.5])
def test_epochs_that_are_no_number_of_epochs_are_refused(tmp_path, epochs):
    study = make(tmp_path, space=TOY, scheduler=Listed(((0, 1, 2),), epochs=epochs))
    with pytest.raises(ConfigError, match="wanted a genotype and its epochs"):
        study.ask()


def test_a_searcher_without_a_scheduler_is_named(tmp_path):
    study = Study(load("toy"), RandomSearch(), open_storage(tmp_path / "s.log"), name="s")
    with pytest.raises(ConfigError, match=r"Fixed\(searcher, epochs\)"):
        study.ask()


def test_a_trial_is_told_once(tmp_path):
    study = Study(load("toy"), Fixed(RandomSearch()), open_storage(tmp_path / "s.log"), name="s")
    trial = study.ask()
    study.tell(trial, {"val_acc": 0.5}, 0.0)
    with pytest.raises(ConfigError, match="trial 0 has ended"):
        study.tell(trial, {"val_acc": 0.6}, 0.0)
    assert study.history[0].metrics == {"val_acc": 0.5}


def test_an_evaluator_that_raises_fails_its_trial_with_the_users_line(tmp_path):
    study = Study(load("toy"), Fixed(RandomSearch()), open_storage(tmp_path / "s.log"), name="s")
    study.run(lambda trial, rng: {"val_acc": 1 / trial.number}, trials=2)
    assert [t.state for t in study.history] == ["failed", "done"]
    assert "ZeroDivisionError" in study.history[0].reason
    assert "test_study.py" in study.history[0].reason


def test_a_trial_of_somebody_else_is_named(tmp_path):
    storage = open_storage(tmp_path / "s.log")
    study = Study(load("toy"), Fixed(RandomSearch()), storage, name="s")
    study.optuna_study.ask()
    with pytest.raises(ConfigError, match="trial 0 was not written by this engine"):
        Study(load("toy"), Fixed(RandomSearch()), storage, name="s")
