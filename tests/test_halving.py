"""Successive halving and Hyperband on histories made by hand and on whole simulated searches."""

import dataclasses
from collections import Counter

import pytest

from nas.errors import ConfigError, ExhaustedError
from nas.searchers import RandomSearch, RegularizedEvolution
from nas.searchers.fidelity import Fidelity, Ladder, geometric
from nas.searchers.goals import Goals, parse_goals
from nas.searchers.halving import (
    Hyperband,
    SuccessiveHalving,
    bracketed,
    comparable,
    epochs_granted,
    finalists,
    longest,
    promotion,
)
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


def test_nothing_is_due_before_eta_trials_have_ended():
    assert due(history()) is None
    assert due(history((0, 1, 0.5), (1, 1, 0.6))) is None
    assert due(history((0, 1, 0.5), (1, 1, 0.6), (2, 1, 0.4))) == (1, 3)
    assert due(history((0, 1, 0.5), (1, 1, 0.6)), eta=2) == (1, 3)


def test_a_rung_of_six_promotes_two_best_first():
    first = [(i, 1, accuracy) for i, accuracy in enumerate([0.1, 0.5, 0.3, 0.6, 0.2, 0.4])]
    assert due(history(*first)) == (3, 3)
    assert due(history(*first, (3, 3, 0.7))) == (1, 3)
    assert due(history(*first, (3, 3, 0.7), (1, 3, 0.6))) is None


@pytest.mark.parametrize("result", [0.9, "running", "failed"])
def test_a_promotion_in_any_state_is_not_repeated(result):
    trials = history((0, 1, 0.5), (1, 1, 0.6), (2, 1, 0.4), (1, 3, result))
    assert due(trials) is None


def test_the_highest_rung_comes_first():
    low = [(i, 1, 0.5 + i / 100) for i in range(9)]
    high = [(8, 3, 0.6), (7, 3, 0.8), (6, 3, 0.7)]
    assert due(history(*low, *high)) == (7, 9)
    assert due(history(*low, *high, (7, 9, 0.9))) is None
    assert due(history(*low, (9, 1, 0.9), (10, 1, 0.1), (11, 1, 0.1), *high, (7, 9, 0.9))) == (9, 3)


def test_a_failed_trial_counts_but_never_climbs():
    assert due(history((0, 1, "failed"), (1, 1, 0.2), (2, 1, "failed"))) == (1, 3)
    assert due(history((0, 1, "failed"), (1, 1, "failed"), (2, 1, "failed"))) is None


def test_a_running_trial_does_not_count():
    assert due(history((0, 1, 0.1), (1, 1, 0.2), (2, 1, "running"))) is None


def test_of_equals_the_earlier_climbs():
    assert due(history((4, 1, 0.5), (2, 1, 0.5), (3, 1, 0.5))) == (4, 3)


def test_a_loss_is_minimised():
    goals = parse_goals(["-val_acc"])
    assert due(history((0, 1, 0.5), (1, 1, 0.6), (2, 1, 0.4)), goals=goals) == (2, 3)


def test_what_breaks_a_constraint_climbs_last():
    goals = parse_goals(["val_acc"], ["params<=100"])
    sizes = (300, 90, 100)
    rows = [(i, 1, 0.9 - i / 10, {"params": size}) for i, size in enumerate(sizes)]
    trials = [trial(n, a, f, r, **more) for n, (a, f, r, more) in enumerate(rows)]
    assert due(trials, goals=goals) == (1, 3)


def test_with_two_objectives_the_front_climbs():
    goals = parse_goals(["val_acc", "-params"])
    points = [(0.5, 50), (0.9, 90), (0.4, 60), (0.1, 10), (0.4, 95), (0.3, 80)]
    trials = [trial(n, n, 1, accuracy, params=size) for n, (accuracy, size) in enumerate(points)]
    # The front is 0, 1 and 3; its ends have infinite crowding distance and so come first.
    assert due(trials, goals=goals) == (1, 3)
    after = [*trials, trial(6, 1, 3, 0.9, params=90)]
    assert due(after, goals=goals) == (3, 3)
    assert due([*after, trial(7, 3, 3, 0.2, params=10)], goals=goals) is None


def test_a_metric_that_is_missing_is_named():
    with pytest.raises(ConfigError, match="decides by 'params', but trial 0 has"):
        due(history((0, 1, 0.1), (1, 1, 0.2), (2, 1, 0.3)), goals=parse_goals(["-params"]))


# -- successive halving ---------------------------------------------------------------------------------


def test_ask_promotes_before_it_asks_the_searcher():
    scheduler = SuccessiveHalving(fixed(5, 6), LADDER)
    trials = history((0, 1, 0.5), (1, 1, 0.6), (2, 1, 0.4))
    assert scheduler.ask(TOY, trials, rng(0)) == (GENOTYPES[1], 3)
    trials = history((0, 1, 0.5), (1, 1, 0.6), (2, 1, 0.4), (1, 3, "running"))
    assert scheduler.ask(TOY, trials, rng(0)) == (GENOTYPES[5], 1)


def test_ask_promotes_also_when_the_searcher_has_nothing_left():
    scheduler = SuccessiveHalving(fixed(), LADDER)
    trials = history((0, 1, 0.5), (1, 1, 0.6), (2, 1, 0.4))
    assert scheduler.ask(TOY, trials, rng(0)) == (GENOTYPES[1], 3)
    with pytest.raises(ExhaustedError, match="the pool is empty"):
        scheduler.ask(TOY, history((0, 1, 0.5), (1, 1, 0.6)), rng(0))


@pytest.mark.parametrize("shuffled", [False, True])
def test_27_architectures_leave_9_and_3(shuffled):
    """Best first, the counts are those of the synchronous rule; else some are promoted too early."""
    numbers = rng(1).permutation(27) if shuffled else range(26, -1, -1)
    found, why = simulate(SuccessiveHalving(fixed(*numbers), LADDER), lambda g, f: GENOTYPES.index(g) / 100)
    counts = Counter(t.fidelity for t in found)
    assert why == "the pool is empty"
    assert counts[1] == 27
    if not shuffled:
        assert (counts[3], counts[9]) == (9, 3)
    assert 9 <= counts[3] <= 14 and 3 <= counts[9] <= 6
    assert finalists(found, BEST)[0].genotype == GENOTYPES[26]
    assert len({(t.genotype, t.fidelity) for t in found}) == len(found)
    spent = epochs_granted(found, LADDER.granted)
    assert spent == counts[1] + 2 * counts[3] + 6 * counts[9]
    assert spent < 0.4 * 27 * 9


def test_one_rung_is_no_halving():
    found, _ = simulate(SuccessiveHalving(RandomSearch(), geometric(4, 4)), lambda g, f: 0.0)
    assert Counter(t.fidelity for t in found) == {4: 27}


def test_ask_depends_on_its_arguments_alone():
    trials, _ = simulate(SuccessiveHalving(RandomSearch(), LADDER), lambda g, f: sum(g), trials=20)
    again, _ = simulate(SuccessiveHalving(RandomSearch(), LADDER), lambda g, f: sum(g), trials=20)
    assert trials == again


def test_a_history_of_another_ladder_is_refused():
    for scheduler in (SuccessiveHalving(RandomSearch(), LADDER), Hyperband(RandomSearch(), LADDER)):
        with pytest.raises(ConfigError, match="no rung ends after 5 epochs; its rungs end after 1, 3, 9"):
            scheduler.ask(TOY, history((0, 5, 0.5)), rng(0))


@pytest.mark.parametrize("make", [SuccessiveHalving, Hyperband])
def test_impossible_settings_are_refused(make):
    with pytest.raises(ConfigError, match="eta is 1 and enough 20, but must be at least 2 and 1"):
        make(RandomSearch(), LADDER, eta=1)
    with pytest.raises(ConfigError, match="eta is 3 and enough 0"):
        make(RandomSearch(), LADDER, enough=0)


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


def test_a_promotion_that_fails_or_runs_leaves_the_lower_result():
    trials = history((0, 1, 0.5), (1, 1, 0.6), (0, 3, "failed"), (1, 3, "running"))
    assert seen(trials, enough=5) == [(0, 1, 0.5), (1, 1, 0.6)]


def test_a_searcher_never_proposes_what_was_tried_at_any_rung():
    scheduler = SuccessiveHalving(RegularizedEvolution(4, 4), LADDER, enough=4)
    found, why = simulate(scheduler, lambda g, f: sum(g) + f)
    assert "all 27 architectures" in why
    assert sorted(t.genotype for t in found if t.fidelity == 1) == GENOTYPES


def test_a_searcher_learns_through_the_halving():
    """Evolution finds better architectures than random search when both are halved alike."""

    def mean(searcher):
        scheduler = SuccessiveHalving(searcher, LADDER)
        found, _ = simulate(scheduler, lambda g, f: g.count(3) + f / 100, trials=120, space=CELLS)
        lowest = [t.metrics["val_acc"] for t in found if t.fidelity == 1]
        return sum(lowest[-20:]) / 20

    assert mean(RegularizedEvolution()) > mean(RandomSearch()) + 1


# -- hyperband ------------------------------------------------------------------------------------------


def test_brackets_are_told_by_the_first_fidelity():
    trials = history((0, 1, 0.5), (1, 3, 0.6), (2, 9, 0.4), (0, 3, 0.5), (1, 9, 0.7), (0, 9, 0.6))
    found = bracketed(trials, LADDER.granted)
    assert [[t.number for t in bracket] for bracket in found] == [[0, 3, 5], [1, 4], [2]]
    assert [epochs_granted(bracket, LADDER.granted) for bracket in found] == [9, 9, 9]


def test_promotions_stay_within_their_bracket():
    scheduler = Hyperband(fixed(20), LADDER)
    # Six trials at the middle rung, but only two of either bracket and so none due.
    trials = history(
        (0, 1, 0.1), (1, 1, 0.2), (0, 3, 0.1), (1, 3, 0.2), (2, 3, 0.3), (3, 3, 0.4), (4, 9, 0.5)
    )
    genotype, fidelity = scheduler.ask(TOY, trials, rng(0))
    assert genotype == GENOTYPES[20]
    assert fidelity == 1
    trials = [*trials, trial(7, 5, 3, 0.2)]
    assert scheduler.ask(TOY, trials, rng(0)) == (GENOTYPES[3], 9)


def test_a_new_architecture_goes_to_the_bracket_that_spent_least():
    scheduler = Hyperband(fixed(20), LADDER)
    assert scheduler.ask(TOY, [], rng(0)) == (GENOTYPES[20], 1)
    assert scheduler.ask(TOY, history((0, 1, 0.5)), rng(0)) == (GENOTYPES[20], 3)
    assert scheduler.ask(TOY, history((0, 1, 0.5), (1, 3, 0.5)), rng(0)) == (GENOTYPES[20], 9)
    running = history((0, 1, "running"), (1, 3, "running"), (2, 9, "running"))
    assert scheduler.ask(TOY, running, rng(0)) == (GENOTYPES[20], 1)


def test_every_bracket_gets_its_share_of_the_budget():
    found, _ = simulate(Hyperband(RandomSearch(), LADDER), lambda g, f: sum(g), trials=400, space=CELLS)
    brackets = bracketed(found, LADDER.granted)
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


def test_hyperband_promotes_what_is_due_before_it_ends():
    found, why = simulate(Hyperband(RandomSearch(), LADDER), lambda g, f: sum(g))
    assert "all 27 architectures" in why
    for first, bracket in enumerate(bracketed(found, LADDER.granted)):
        assert promotion(bracket, LADDER.granted[first:], eta=3, goals=BEST) is None
    assert {t.genotype for t in found} == set(GENOTYPES)


# -- results --------------------------------------------------------------------------------------------


def test_finalists_are_ordered_by_rung_and_then_by_the_goals():
    trials = history(
        (0, 1, 0.9), (1, 1, 0.8), (2, 1, 0.7), (0, 3, 0.4), (1, 3, 0.5), (3, 1, "failed"), (1, 9, "failed")
    )
    found = [(GENOTYPES.index(t.genotype), t.fidelity) for t in finalists(trials, BEST)]
    assert found == [(1, 3), (0, 3), (2, 1)]
    assert finalists([], BEST) == []


def test_what_breaks_a_constraint_is_no_finalist_before_what_keeps_all():
    goals = parse_goals(["val_acc"], ["params<=100"])
    rows = [(0, 1, 0.9, 300), (0, 3, 0.95, 300), (1, 1, 0.5, 90), (2, 1, 0.6, 80)]
    trials = [trial(n, a, f, accuracy, params=size) for n, (a, f, accuracy, size) in enumerate(rows)]
    assert [t.number for t in finalists(trials, goals)] == [3, 2, 1]
    assert [t.number for t in longest(trials, goals)] == [2, 3]


def test_the_longest_training_is_that_of_the_highest_finished_rung():
    trials = history((0, 1, 0.5), (1, 1, 0.6), (1, 3, 0.7), (0, 3, 0.4), (1, 9, "running"), (0, 9, "failed"))
    assert [t.number for t in longest(trials, BEST)] == [2, 3]
    assert longest([], BEST) == []


def test_epochs_are_those_of_the_rungs():
    ladder = Ladder((Fidelity(2), Fidelity(5)))
    trials = [Trial(0, (0, 0, 0), 2), Trial(1, (0, 0, 0), 7), Trial(2, (1, 0, 0), 7)]
    assert epochs_granted(trials, ladder.granted) == 2 + 5 + 7
