"""Searchers: evolution against a hand-written one, no repeats, exhaustion, and the published figures."""

import csv
import gzip

import numpy as np
import pytest
from published import table
from torch import nn

from nas.errors import ConfigError, ExhaustedError
from nas.goals import Goals
from nas.registry import load
from nas.searchers import RandomSearch, RegularizedEvolution
from nas.seeding import rng
from nas.space import Space
from nas.types import Objective, Trial
from spaces.nasbench201 import to_string

TOY, CELLS = load("toy"), load("nasbench201")
SEARCHERS = {"random": RandomSearch(), "evolution": RegularizedEvolution(population=5, tournament=3)}
each_searcher = pytest.mark.parametrize("searcher", SEARCHERS.values(), ids=SEARCHERS)


def planted(genotype, optimum=(3, 1, 2, 3, 0, 3)):
    """How many decisions are as in the optimum."""
    return float(sum(a == b for a, b in zip(genotype, optimum, strict=True)))


def simulate(searcher, space, evaluate, *, trials, seed=0, fail=lambda number: False):
    history = []
    for number in range(trials):
        genotype = searcher.ask(space, history, rng(seed, number))
        state = "failed" if fail(number) else "done"
        metrics = {"val_acc": evaluate(genotype) + 100 * (state == "failed")}
        history.append(Trial(number, genotype, state=state, metrics=metrics))
    return history


# -- evolution ----------------------------------------------------------------------------------------


def ageing_evolution(space, evaluate, *, population, tournament, trials, seed, fail=lambda number: False):
    """Algorithm 1 of Real et al. 2019 as a queue; a child that was seen before is drawn again."""
    queue, history = [], []
    for number in range(trials):
        stream = rng(seed, number)
        if len(queue) == population:
            rivals = [queue[i] for i in stream.choice(population, tournament, replace=False)]
            parent = max(rivals, key=lambda entry: entry[1])[0]
        genotype = None
        while genotype is None or genotype in history:
            filled = len(queue) == population
            genotype = space.mutate(parent, stream) if filled else space.sample(stream)
        history.append(genotype)
        if not fail(number):
            queue.append((genotype, evaluate(genotype)))
            queue = queue[-population:]
    return history


@pytest.mark.parametrize(("population", "tournament"), [(10, 10), (10, 3), (2, 1), (25, 5)])
def test_evolution_is_the_published_algorithm(population, tournament):
    searcher = RegularizedEvolution(population, tournament)
    found = [t.genotype for t in simulate(searcher, CELLS, planted, trials=80, seed=4)]
    settings = {"population": population, "tournament": tournament, "trials": 80, "seed": 4}
    assert found == ageing_evolution(CELLS, planted, **settings)


def test_failed_trials_never_enter_the_population():
    def fail(number):
        return number % 3 == 1

    searcher = RegularizedEvolution(6, 3)
    found = [t.genotype for t in simulate(searcher, CELLS, planted, trials=60, seed=2, fail=fail)]
    settings = {"population": 6, "tournament": 3, "trials": 60, "seed": 2, "fail": fail}
    assert found == ageing_evolution(CELLS, planted, **settings)


def test_evolution_climbs_to_a_planted_optimum():
    history = simulate(RegularizedEvolution(), CELLS, planted, trials=120)
    assert max(t.metrics["val_acc"] for t in history) == 6.0
    blind = simulate(RandomSearch(), CELLS, planted, trials=120)
    means = [np.mean([t.metrics["val_acc"] for t in h[60:]]) for h in (history, blind)]
    assert means[0] > means[1] + 2


def test_evolution_minimises_where_it_should():
    searcher = RegularizedEvolution(goals=Goals((Objective("loss", maximize=False),)))
    history = []
    for number in range(120):
        genotype = searcher.ask(CELLS, history, rng(0, number))
        history.append(
            Trial(number, genotype, state="done", metrics={"loss": -planted(genotype), "val_acc": 0})
        )
    upwards = simulate(RegularizedEvolution(), CELLS, planted, trials=120)
    assert [t.genotype for t in history] == [t.genotype for t in upwards]


def test_a_running_trial_is_not_a_parent_but_is_not_proposed_again():
    history = simulate(RegularizedEvolution(2, 2), TOY, sum, trials=25)
    running = [Trial(t.number, t.genotype) for t in history[:20]]
    for number in range(200):
        genotype = RegularizedEvolution(2, 2).ask(TOY, [*running, *history[20:]], rng(1, number))
        assert genotype not in {t.genotype for t in history}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"population": 1}, "population is 1, but must be at least 2"),
        ({"population": 50, "tournament": 60}, "tournament is 60, but must be .* at most population, 50"),
        ({"tournament": 0}, "tournament is 0, but must be at least 1"),
        ({"population": 5}, "tournament is 10, but must be .* at most population, 5"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        RegularizedEvolution(**settings)


def test_the_defaults():
    goals = Goals((Objective("val_acc", maximize=True),))
    assert RegularizedEvolution() == RegularizedEvolution(10, 10, goals)


# -- all searchers ------------------------------------------------------------------------------------


@each_searcher
def test_nothing_is_proposed_twice_and_the_space_is_exhausted_exactly(searcher):
    history = simulate(searcher, TOY, sum, trials=27)
    assert {t.genotype for t in history} == set(TOY.enumerate())
    with pytest.raises(ExhaustedError, match="all 27 architectures of space 'toy' have been tried"):
        searcher.ask(TOY, history, rng(0, 27))


@each_searcher
def test_a_space_of_one_architecture_is_tried_once(searcher):
    space = Space("one", lambda choose: choose.op("x", {"id": nn.Identity}))
    history = simulate(searcher, space, sum, trials=1)
    with pytest.raises(ExhaustedError, match="all 1 architectures"):
        searcher.ask(space, history, rng(0, 1))


@each_searcher
def test_architectures_that_mean_the_same_count_once(searcher):
    def build(choose):
        depth = choose.value("depth", (1, 2))
        kernels = {"one": lambda: nn.Conv2d(3, 3, 1), "three": lambda: nn.Conv2d(3, 3, 3)}
        return nn.Sequential(*(choose.op(f"kernel{i}", kernels) for i in range(depth)))

    space = Space("deep", build)
    aliased = [Trial(0, (0, 1, 1), state="done", metrics={"val_acc": 0.0})]
    history = list(aliased)
    for number in range(1, 6):
        genotype = searcher.ask(space, history, rng(0, number))
        history.append(Trial(number, genotype, state="done", metrics={"val_acc": 0.0}))
    assert len({space.canonical(t.genotype) for t in history}) == 6
    with pytest.raises(ExhaustedError):
        searcher.ask(space, history, rng(0, 6))


@each_searcher
def test_a_proposal_depends_on_the_history_and_the_stream_alone(searcher):
    history = simulate(searcher, CELLS, planted, trials=30)
    assert searcher.ask(CELLS, history, rng(9)) == searcher.ask(CELLS, tuple(history), rng(9))
    assert len({searcher.ask(CELLS, history, rng(9, i)) for i in range(10)}) > 3


def test_a_large_space_whose_projection_is_stuck_ends_instead_of_hanging():
    def build(choose):
        options = {f"o{i}": nn.Identity for i in range(10)}
        return nn.Sequential(*(choose.op(f"d{i}", options) for i in range(5)))

    stuck = Space("stuck", build, lambda decisions, scores: (0,) * 5, count=10**5)
    with pytest.raises(ExhaustedError, match="no new architecture of space 'stuck' in 200 draws"):
        RandomSearch().ask(stuck, [Trial(0, (0,) * 5, state="done")], rng(0))


# -- the real table -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("searcher", "published"),
    [(RegularizedEvolution(10, 10), 94.17), (RandomSearch(), 93.80)],
    ids=["evolution", "random"],
)
def test_published_figures_on_nasbench201(searcher, published):
    """Mean test accuracy of what 100 evaluations select on validation, over 50 repeats."""
    with gzip.open(table("nasbench201.csv.gz"), "rt") as file:
        accuracies = {
            row["arch"]: (float(row["c10_valid_200"]), float(row["c10_test_200_nats"]))
            for row in csv.DictReader(file)
        }
    tested = []
    for seed in range(50):
        history = simulate(searcher, CELLS, lambda g: accuracies[to_string(g)][0], trials=100, seed=seed)
        best = max(history, key=lambda t: t.metrics["val_acc"])
        tested.append(accuracies[to_string(best.genotype)][1])
    assert np.mean(tested) == pytest.approx(published, abs=0.15)


def test_an_objective_that_trials_do_not_have_is_named():
    searcher = RegularizedEvolution(2, 2, goals=Goals((Objective("loss", maximize=False),)))
    history = [Trial(i, (i, 0, 0), state="done", metrics={"val_acc": 0.5}) for i in range(2)]
    with pytest.raises(ConfigError, match=r"decides by 'loss', but trial \d has"):
        searcher.ask(load("toy"), history, rng(0))
