"""Goals: what users type, and what is compared."""

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
        (" + val_acc ", Objective("val_acc")),
        ("-latency_ms", Objective("latency_ms", maximize=False)),
        ("val_acc - 0.01*latency_ms", Objective("val_acc", added=(("latency_ms", -0.01),))),
        ("2*val_acc-latency_ms", Objective("val_acc", added=(("latency_ms", -0.5),))),
        ("-2*loss + 1e-6*params", Objective("loss", maximize=False, added=(("params", -5e-7),))),
        ("a + b + 3.*c", Objective("a", added=(("b", 1.0), ("c", 3.0)))),
    ],
)
def test_objectives_as_typed(text, objective):
    assert parse_objective(text) == objective
    if objective.maximize:
        assert parse_objective(objective.name) == objective


@pytest.mark.parametrize(
    "text",
    ["", "-", "3", "3*", "val_acc latency", "val_acc + ", "a * b", "a - 2", "val-acc/2", "--a", "0*a + b"],
)
def test_what_is_no_sum_of_metrics_is_refused(text):
    with pytest.raises(ConfigError, match=r"objective .* wanted"):
        parse_objective(text)


@pytest.mark.parametrize("text", ["a - b", "-a + 0.5*b", "-0.1*a - 7*b + c", "1e-3*a - 2e2*b", "-b - a"])
def test_a_parsed_sum_orders_as_the_typed_one(text):
    draws = np.random.default_rng(0).random((30, 3))
    rows = [dict(zip("abc", map(float, row), strict=True)) for row in draws]
    objective = parse_objective(text)
    typed = [eval(text, {}, row) for row in rows]
    assert np.argsort([objective.score(row) for row in rows]).tolist() == np.argsort(typed).tolist()


@pytest.mark.parametrize(
    ("text", "constraint"),
    [
        ("params<=3e6", Constraint("params", 3e6)),
        (" val_acc >= 0.9 ", Constraint("val_acc", 0.9, at_most=False)),
        ("gain>=-1.5", Constraint("gain", -1.5, at_most=False)),
    ],
)
def test_constraints_as_typed(text, constraint):
    assert parse_constraint(text) == constraint == parse_constraint(str(constraint))


def test_an_accuracy_in_percent_is_refused_as_a_bound():
    with pytest.raises(ConfigError, match=r"for percent write 'val_acc>=0.95'"):
        parse_constraint("val_acc >= 95")


@pytest.mark.parametrize("objectives", [["a", "a"], ["a", "-a"]])
def test_an_objective_counts_once(objectives):
    with pytest.raises(ConfigError, match="each once"):
        parse_goals(objectives)


# -- comparing ----------------------------------------------------------------------------------------


def test_excess_is_relative_to_the_bound():
    goals = parse_goals(["val_acc"], ["params<=10", "val_acc>=0.5", "gain<=0"])
    assert goals.violation({"params": 10, "val_acc": 0.5, "gain": -1}) == 0
    assert goals.violation({"params": 15, "val_acc": 0.4, "gain": 0.3}) == pytest.approx(0.5 + 0.2 + 0.3)


def test_the_front_of_two_objectives():
    trials = [trial(0, val_acc=0.5, params=5), trial(1, val_acc=0.9, params=9)]
    trials += [trial(2, val_acc=0.4, params=6), trial(3, val_acc=0.1, params=1)]
    assert [t.number for t in TWO.front(trials)] == [0, 1, 3]
    ordered = [t.number for t in TWO.ordered(trials)]
    assert ordered[-1] == 2 and set(ordered[:2]) == {1, 3}
    bounded = Goals(TWO.objectives, (Constraint("params", 8),))
    assert [t.number for t in bounded.front(trials)] == [0, 3]
    assert bounded.ordered(trials)[-1].number == 1
    impossible = Goals(TWO.objectives, (Constraint("params", 0.5),))
    assert TWO.front([]) == TWO.ordered([]) == Goals().front([]) == impossible.front(trials) == []


@pytest.mark.parametrize("missing", ["val_acc", "params"])
def test_a_missing_metric_is_named(missing):
    metrics = {"val_acc": 1.0, "params": 1.0}
    del metrics[missing]
    for ask in (BOUND.table, BOUND.ordered, BOUND.front):
        with pytest.raises(ConfigError, match=f"decides by '{missing}', but trial 3 has"):
            ask([trial(3, **metrics)])
