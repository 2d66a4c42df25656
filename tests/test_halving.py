"""Successive halving and Hyperband on histories made by hand and on whole simulated searches."""

import dataclasses
from collections import Counter

import pytest

from nas.errors import ConfigError, ExhaustedError
from nas.searchers.fidelity import geometric
from nas.searchers.goals import Goals, longest, parse_goals
from nas.searchers.scheduler import (
    Hyperband,
    SuccessiveHalving,
    comparable,
    epochs_granted,
    finalists,
    promotion,
)
from nas.searchers.searcher import RandomSearch
from nas.seeding import rng
from nas.space.loading import load
from nas.types import Trial

TOY, CELLS = load("toy"), load("nasbench201", width=4, cells=1)
LADDER = geometric(1, 9, 3)
GENOTYPES = sorted(TOY.enumerate())
BEST = Goals()


def history(*rows):
    """Trials in order: (architecture's number, fidelity, accuracy | "failed" | "running", more metrics)."""
    return [trial(number, *row) for number, row in enumerate(rows)]


def trial(number, architecture, fidelity, result, **metrics):
    state = result if isinstance(result, str) else "done"
    measured = {} if state != "done" else {"val_acc": result, **metrics}
    return Trial(number, GENOTYPES[architecture], fidelity, state, measured)


def due(trials, *, eta=3, goals=BEST):
    found = promotion(trials, LADDER.granted, eta=eta, goals=goals)
    return None if found is None else (GENOTYPES.index(found[0]), found[1])


def fixed(*numbers):
    """A searcher that lists architectures by number."""

    @dataclasses.dataclass(frozen=True)
    class Pool:
        def ask(self, space, history, rng):
            seen = {t.genotype for t in history}
            for number in numbers:
                if GENOTYPES[number] not in seen:
                    return GENOTYPES[number]
            raise ExhaustedError("the pool is empty")

    return Pool()


def simulate(scheduler, score, *, trials=10_000, space=TOY):
    """A search by one worker without any training; (history, why it ended)."""
    found = []
    while len(found) < trials:
        try:
            genotype, fidelity = scheduler.ask(space, found, rng(0, len(found)))
        except ExhaustedError as error:
            return found, str(error)
        metrics = {"val_acc": score(genotype, fidelity)}
        found.append(Trial(len(found), genotype, fidelity, "done", metrics))
    return found, ""


# -- the rule -------------------------------------------------------------------------------------------

SIX = [(i, 1, accuracy) for i, accuracy in enumerate([0.1, 0.5, 0.3, 0.6, 0.2, 0.4])]
NINE = [(i, 1, 0.5 + i / 100) for i in range(9)]
HIGH = [(8, 3, 0.6), (7, 3, 0.8), (6, 3, 0.7)]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], None),
        ([(0, 1, 0.5), (1, 1, 0.6)], None),  # fewer than eta have ended
        ([(0, 1, 0.5), (1, 1, 0.6), (2, 1, 0.4)], (1, 3)),
        (SIX, (3, 3)),
        ([*SIX, (3, 3, 0.7)], (1, 3)),  # two of six, the best first
        ([*SIX, (3, 3, 0.7), (1, 3, 0.6)], None),
        *(([(0, 1, 0.5), (1, 1, 0.6), (2, 1, 0.4), (1, 3, r)], None) for r in (0.9, "running", "failed")),
        ([*NINE, *HIGH], (7, 9)),  # from the highest rung possible
        ([*NINE, *HIGH, (7, 9, 0.9)], None),
        ([*NINE, (9, 1, 0.9), (10, 1, 0.1), (11, 1, 0.1), *HIGH, (7, 9, 0.9)], (9, 3)),
        ([(0, 1, "failed"), (1, 1, 0.2), (2, 1, "failed")], (1, 3)),  # a failure counts but never climbs
        ([(0, 1, "failed"), (1, 1, "failed"), (2, 1, "failed")], None),
        ([(0, 1, 0.1), (1, 1, 0.2), (2, 1, "running")], None),
        ([(4, 1, 0.5), (2, 1, 0.5), (3, 1, 0.5)], (4, 3)),  # of equals the earlier
    ],
)
def test_who_is_promoted(rows, expected):
    assert due(history(*rows)) == expected


def test_goals_decide_who_is_promoted():
    three = history((0, 1, 0.5), (1, 1, 0.6), (2, 1, 0.4))
    assert due(three, goals=parse_goals(["-val_acc"])) == (2, 3)
    assert due(three[:2], eta=2) == (1, 3)
    sizes = (300, 90, 100)
    trials = [trial(i, i, 1, 0.9 - i / 10, params=size) for i, size in enumerate(sizes)]
    assert due(trials, goals=parse_goals(["val_acc"], ["params<=100"])) == (1, 3)
    with pytest.raises(ConfigError, match="decides by 'params', but trial 0 has"):
        due(three, goals=parse_goals(["-params"]))


# -- successive halving ---------------------------------------------------------------------------------


def test_ask_promotes_before_it_asks_the_searcher():
    ended = [(0, 1, 0.5), (1, 1, 0.6), (2, 1, 0.4)]
    scheduler = SuccessiveHalving(fixed(5, 6), LADDER)
    assert scheduler.ask(TOY, history(*ended), rng(0)) == (GENOTYPES[1], 3)
    assert scheduler.ask(TOY, history(*ended, (1, 3, "running")), rng(0)) == (GENOTYPES[5], 1)
    # Also when that has nothing left.
    assert SuccessiveHalving(fixed(), LADDER).ask(TOY, history(*ended), rng(0)) == (GENOTYPES[1], 3)
    with pytest.raises(ExhaustedError, match="the pool is empty"):
        SuccessiveHalving(fixed(), LADDER).ask(TOY, history(*ended[:2]), rng(0))


@pytest.mark.parametrize("make", [SuccessiveHalving, Hyperband])
def test_other_ladders_and_impossible_settings_are_refused(make):
    with pytest.raises(ConfigError, match="no rung ends after 5 epochs; its rungs end after 1, 3, 9"):
        make(RandomSearch(), LADDER).ask(TOY, history((0, 5, 0.5)), rng(0))
    for wrong in ({"eta": 1}, {"enough": 0}):
        with pytest.raises(ConfigError, match="must be at least 2 and 1"):
            make(RandomSearch(), LADDER, **wrong)


# -- what a searcher sees -------------------------------------------------------------------------------


def seen(trials, *, enough):
    return [
        (GENOTYPES.index(t.genotype), t.fidelity, t.metrics.get("val_acc", t.state))
        for t in comparable(trials, LADDER.granted, enough=enough)
    ]


def test_a_searcher_sees_one_fidelity_and_every_architecture_once():
    trials = history((0, 1, 0.5), (1, 1, 0.6), (2, 1, "failed"), (1, 3, 0.8), (3, 1, "running"), (0, 3, 0.7))
    lowest = [(0, 1, 0.5), (1, 1, 0.6), (2, 1, "failed"), (3, 1, "running")]
    assert seen(trials, enough=3) == lowest
    assert seen(trials, enough=2) == [(2, 1, "failed"), (1, 3, 0.8), (3, 1, "running"), (0, 3, 0.7)]
    assert seen([*trials, trial(6, 4, 1, 0.4)], enough=2)[-1] == (4, 1, "failed")
    # A promotion that fails or runs leaves the lower result.
    trials = history((0, 1, 0.5), (1, 1, 0.6), (0, 3, "failed"), (1, 3, "running"))
    assert seen(trials, enough=5) == [(0, 1, 0.5), (1, 1, 0.6)]


# -- hyperband ------------------------------------------------------------------------------------------


def test_a_new_architecture_goes_to_the_bracket_that_spent_least():
    scheduler = Hyperband(fixed(20), LADDER)
    assert scheduler.ask(TOY, [], rng(0)) == (GENOTYPES[20], 1)
    assert scheduler.ask(TOY, history((0, 1, 0.5)), rng(0)) == (GENOTYPES[20], 3)
    assert scheduler.ask(TOY, history((0, 1, 0.5), (1, 3, 0.5)), rng(0)) == (GENOTYPES[20], 9)
    running = history((0, 1, "running"), (1, 3, "running"), (2, 9, "running"))
    assert scheduler.ask(TOY, running, rng(0)) == (GENOTYPES[20], 1)


def test_every_bracket_gets_its_share_of_the_budget():
    scheduler = Hyperband(RandomSearch(), LADDER)
    found, _ = simulate(scheduler, lambda g, f: sum(g), trials=400, space=CELLS)
    brackets = scheduler.brackets(found)
    spent = [epochs_granted(bracket, LADDER.granted) for bracket in brackets]
    assert sum(spent) == epochs_granted(found, LADDER.granted)
    assert max(spent) - min(spent) <= 9
    started = [len({t.genotype for t in bracket}) for bracket in brackets]
    assert started[0] > 2 * started[1] > 2 * started[2]
    climbed = [Counter(t.fidelity for t in bracket) for bracket in brackets]
    assert climbed[2] == {9: started[2]}
    assert climbed[1] == {3: started[1], 9: pytest.approx(started[1] / 3, rel=0.3)}
    assert climbed[0] == {1: started[0], 3: pytest.approx(started[0] / 3, rel=0.3), 9: climbed[0][9]}
    assert climbed[0][9] == pytest.approx(started[0] / 9, rel=0.5)


# -- results --------------------------------------------------------------------------------------------


def test_finalists_are_ordered_by_rung_and_then_by_the_goals():
    trials = history(
        (0, 1, 0.9), (1, 1, 0.8), (2, 1, 0.7), (0, 3, 0.4), (1, 3, 0.5), (3, 1, "failed"), (1, 9, "failed")
    )
    found = [(GENOTYPES.index(t.genotype), t.fidelity) for t in finalists(trials, BEST)]
    assert found == [(1, 3), (0, 3), (2, 1)]
    assert [t.number for t in longest(trials, BEST)] == [3, 4]
    assert finalists([], BEST) == longest([], BEST) == []


def test_what_breaks_a_constraint_is_no_finalist_before_what_keeps_all():
    goals = parse_goals(["val_acc"], ["params<=100"])
    rows = [(0, 1, 0.9, 300), (0, 3, 0.95, 300), (1, 1, 0.5, 90), (2, 1, 0.6, 80)]
    trials = [trial(n, a, f, accuracy, params=size) for n, (a, f, accuracy, size) in enumerate(rows)]
    assert [t.number for t in finalists(trials, goals)] == [3, 2, 1]
    assert [t.number for t in longest(trials, goals)] == [2, 3]
