"""Goals: what users type, what is compared, and what is written down."""

import json

import numpy as np
import pytest

from nas.errors import ConfigError
from nas.searchers.goals import Goals, parse_constraint, parse_goals, parse_objective
from nas.types import Constraint, Objective, Trial


def trial(number, **metrics):
    return Trial(number, (number,), state="done", metrics=metrics)


TWO = parse_goals(["val_acc", "-params"])
BOUND = parse_goals(["val_acc"], ["params<=10"])

# -- text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "objective"),
    [
        ("val_acc", Objective("val_acc")),
        (" + val_acc ", Objective("val_acc")),
        ("-latency_ms", Objective("latency_ms", maximize=False)),
        ("val_acc - 0.01*latency_ms", Objective("val_acc", added=(("latency_ms", -0.01),))),
        ("2*val_acc-latency_ms", Objective("val_acc", added=(("latency_ms", -0.5),))),
        ("-loss - .5 * params", Objective("loss", maximize=False, added=(("params", 0.5),))),
        ("-2*loss + 1e-6*params", Objective("loss", maximize=False, added=(("params", -5e-7),))),
        ("a + b + 3.*c", Objective("a", added=(("b", 1.0), ("c", 3.0)))),
    ],
)
def test_objectives_as_typed(text, objective):
    assert parse_objective(text) == objective


@pytest.mark.parametrize(
    "text", ["", "  ", "-", "3", "3*", "val_acc latency", "val_acc + ", "a * b", "a - 2", "val-acc/2", "--a"]
)
def test_what_is_no_sum_of_metrics_is_refused(text):
    with pytest.raises(ConfigError, match=r"objective .* wanted"):
        parse_objective(text)


def test_a_first_weight_of_zero_is_refused():
    with pytest.raises(ConfigError, match="weight other than 0"):
        parse_objective("0*a + b")


@pytest.mark.parametrize(
    "text", ["a - b", "2*a + 3*b", "-a + 0.5*b", "-0.1*a - 7*b + c", "-a", "1e-3*a - 2e2*b", "-b - a"]
)
def test_a_parsed_sum_orders_as_the_typed_one(text):
    draws = np.random.default_rng(0).random((30, 3))
    rows = [dict(zip("abc", map(float, row), strict=True)) for row in draws]
    objective = parse_objective(text)
    typed = [eval(text, {}, row) for row in rows]
    assert np.argsort([objective.score(row) for row in rows]).tolist() == np.argsort(typed).tolist()


@pytest.mark.parametrize("text", ["val_acc", "val_acc - 0.01*latency_ms", "a + 2*b - 1e-07*c", "a - 3e+08*b"])
def test_the_name_of_an_objective_can_be_typed(text):
    objective = parse_objective(text)
    assert parse_objective(objective.name) == objective


def test_the_score_of_a_weighted_sum():
    objective = parse_objective("val_acc - 0.01*latency_ms")
    assert objective.score({"val_acc": 0.9, "latency_ms": 20.0}) == pytest.approx(0.7)
    assert objective.metrics == ("val_acc", "latency_ms")
    falling = parse_objective("-loss - 0.5*params")
    assert falling.value({"loss": 1.0, "params": 4.0}) == 3.0
    assert falling.score({"loss": 1.0, "params": 4.0}) == -3.0


@pytest.mark.parametrize(
    ("text", "constraint"),
    [
        ("params<=3e6", Constraint("params", 3e6)),
        (" val_acc >= 0.9 ", Constraint("val_acc", 0.9, at_most=False)),
        ("gain>=-1.5", Constraint("gain", -1.5, at_most=False)),
    ],
)
def test_constraints_as_typed(text, constraint):
    assert parse_constraint(text) == constraint
    assert parse_constraint(str(constraint)) == constraint


@pytest.mark.parametrize("text", ["", "params", "params<3", "params=3", "3<=params", "params<=x", "a<=1<=2"])
def test_what_is_no_bound_is_refused(text):
    with pytest.raises(ConfigError, match=r"constraint .*METRIC<=NUMBER"):
        parse_constraint(text)


def test_an_accuracy_in_percent_is_refused_as_a_bound():
    with pytest.raises(ConfigError, match=r"'val_acc >= 95': .*at most 1; for percent write 'val_acc>=0.95'"):
        parse_constraint("val_acc >= 95")
    assert parse_constraint("val_acc>=1").limit == 1


def test_goals_of_nothing_are_the_defaults():
    assert parse_goals() == Goals() == Goals((Objective("val_acc"),), ())
    assert str(parse_goals(["val_acc", "-params"], ["macs<=5"])) == "max val_acc, min params, macs <= 5"


@pytest.mark.parametrize("objectives", [["a", "a"], ["a", "-a"]])
def test_an_objective_counts_once(objectives):
    with pytest.raises(ConfigError, match="each once"):
        parse_goals(objectives)
    with pytest.raises(ConfigError, match="at least one"):
        Goals(())


def test_the_metrics_to_measure():
    goals = parse_goals(["val_acc - params", "-latency_ms"], ["params<=3", "macs<=4"])
    assert goals.metrics == ("val_acc", "params", "latency_ms", "macs")


def test_a_single_objective_is_wanted():
    assert Goals().only("evolution") == Objective()
    with pytest.raises(ConfigError, match="evolution has one objective, got val_acc, params; use nsga2"):
        TWO.only("evolution")


# -- comparing ----------------------------------------------------------------------------------------


def test_excess_is_relative_to_the_bound():
    goals = parse_goals(["val_acc"], ["params<=10", "val_acc>=0.5", "gain<=0"])
    assert goals.violation({"params": 10, "val_acc": 0.5, "gain": -1}) == 0
    assert goals.violation({"params": 15, "val_acc": 0.4, "gain": 0.3}) == pytest.approx(0.5 + 0.2 + 0.3)


def test_less_violation_comes_before_a_better_score():
    trials = [trial(0, val_acc=0.9, params=20), trial(1, val_acc=0.1, params=5)]
    trials += [trial(2, val_acc=0.2, params=9), trial(3, val_acc=0.99, params=12)]
    assert [t.number for t in BOUND.ordered(trials)] == [2, 1, 3, 0]
    assert BOUND.fitness(trials[0]) == (-1.0, 0.9)


def test_of_equal_ones_the_earlier_comes_first():
    same = [trial(i, val_acc=0.5, params=1) for i in range(4)]
    assert BOUND.ordered(same) == same


def test_a_minimised_objective_is_turned():
    goals = parse_goals(["-loss"])
    trials = [trial(0, loss=3.0), trial(1, loss=1.0), trial(2, loss=2.0)]
    assert [t.number for t in goals.ordered(trials)] == [1, 2, 0]
    assert [t.number for t in goals.front(trials)] == [1]


def test_the_front_of_two_objectives():
    trials = [trial(0, val_acc=0.5, params=5), trial(1, val_acc=0.9, params=9)]
    trials += [trial(2, val_acc=0.4, params=6), trial(3, val_acc=0.1, params=1)]
    assert [t.number for t in TWO.front(trials)] == [0, 1, 3]
    ordered = [t.number for t in TWO.ordered(trials)]
    assert ordered[-1] == 2
    assert set(ordered[:2]) == {1, 3}
    bounded = Goals(TWO.objectives, (Constraint("params", 8),))
    assert [t.number for t in bounded.front(trials)] == [0, 3]
    assert bounded.ordered(trials)[-1].number == 1


def test_fronts_of_nothing():
    impossible = Goals(TWO.objectives, (Constraint("params", 0.5),))
    assert TWO.front([]) == TWO.ordered([]) == impossible.front([trial(0, val_acc=1.0, params=1)]) == []
    assert Goals().front([]) == Goals().ordered([]) == []


def test_the_table_of_scores_and_violations():
    goals = Goals(TWO.objectives, (Constraint("params", 8),))
    scores, violations = goals.table([trial(0, val_acc=0.5, params=4), trial(1, val_acc=0.9, params=12)])
    assert scores.tolist() == [[0.5, -4], [0.9, -12]]
    assert violations.tolist() == [0, 0.5]
    assert goals.table([])[0].shape == (0, 2)


@pytest.mark.parametrize("missing", ["val_acc", "params"])
def test_a_missing_metric_is_named(missing):
    metrics = {"val_acc": 1.0, "params": 1.0}
    del metrics[missing]
    for ask in (BOUND.table, BOUND.ordered, BOUND.front):
        with pytest.raises(ConfigError, match=f"decides by '{missing}', but trial 3 has"):
            ask([trial(3, **metrics)])


# -- writing down -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "goals",
    [
        Goals(),
        TWO,
        parse_goals(["val_acc - 0.01*latency_ms + params", "-loss"], ["params<=3e6", "val_acc>=0.1"]),
    ],
)
def test_goals_survive_json(goals):
    assert Goals.from_dict(json.loads(json.dumps(goals.to_dict()))) == goals


def test_the_record_of_one_objective_is_still_read():
    assert Goals.from_dict({"objective": ["loss", False]}) == Goals((Objective("loss", maximize=False),))


def test_finished_trials_keep_the_constraints_or_break_them():
    goals = parse_goals(constraints=["params<=10"])
    trials = [
        Trial(0, (0,), state="done", metrics={"val_acc": 0.5, "params": 10.0}),
        Trial(1, (1,), state="done", metrics={"val_acc": 0.9, "params": 11.0}),
        Trial(2, (2,), state="failed", metrics={"params": 1.0}),
        Trial(3, (3,)),
    ]
    assert goals.kept_by(trials) == trials[:1]
    assert goals.broken_by(trials) == {1}


def test_a_trial_knows_what_had_ended_before_it():
    states = ("done", "failed", "done", "done")
    history = [Trial(number, (0,), state=state) for number, state in enumerate(states)]
    later = Trial(3, (0,), beside=(2,))
    assert later.before(history) == history[:2]
    assert later.known(history) == history[:1]
