"""Searchers: each against its published algorithm, and the promises that all keep."""

import numpy as np
import pytest
from torch import nn

from nas.errors import ConfigError, ExhaustedError
from nas.searchers.evolution import Generational, Nsga2, RegularizedEvolution
from nas.searchers.factory import SEARCHERS as NAMES
from nas.searchers.factory import make_searcher
from nas.searchers.goals import Goals, parse_goals
from nas.searchers.optuna_search import OptunaSearch
from nas.searchers.pareto import hypervolume
from nas.searchers.predictor_guided import Guided
from nas.searchers.searcher import Bounded, LocalSearch, RandomSearch
from nas.seeding import rng
from nas.space.loading import load
from nas.space.space import Space
from nas.spaces.toy import score
from nas.testing import check_searcher
from nas.types import Trial

TOY, CELLS, DARTS = load("toy"), load("nasbench201"), load("darts")
TWO = parse_goals(["near", "-far"])
SEARCHERS = {
    "random": RandomSearch(),
    "evolution": RegularizedEvolution(population=5, tournament=3),
    "local": LocalSearch(init=2),
    "nsga2": Nsga2(population=4),
    "nsga2-front": Nsga2(population=4, goals=TWO),
    "generational": Generational(population=4, parents=2),
    "guided": Guided(init=2),
    "guided-front": Guided(init=2, goals=TWO),
    "tpe": OptunaSearch(),
    "tpe-front": OptunaSearch(goals=TWO),
    "nsga3": OptunaSearch("NSGAIIISampler", {"population_size": 4}),
    "bounded": Bounded(RandomSearch(), lambda genotype, _: sum(genotype) % 2 == 0),
}
each_searcher = pytest.mark.parametrize("searcher", SEARCHERS.values(), ids=SEARCHERS)
FAR = (0, 2, 4, 1, 3, 2)


def planted(genotype, optimum=(3, 1, 2, 3, 0, 3)):
    """How many decisions are as in the optimum."""
    return float(sum(a == b for a, b in zip(genotype, optimum, strict=True)))


def simulate(searcher, space, evaluate, *, trials, seed=0, fail=lambda number: False):
    history = []
    for number in range(trials):
        genotype = searcher.ask(space, history, rng(seed, number))
        state = "failed" if fail(number) else "done"
        value = evaluate(genotype) + 100 * (state == "failed")
        far = planted(genotype, FAR) if space is CELLS else value
        metrics = {"val_acc": value, "near": value, "far": -far, "params": far}
        history.append(Trial(number, genotype, state=state, metrics=metrics))
    return history


def volume(history):
    """Of what is near the planted optimum and of what is near another one that shares nothing with it."""
    return hypervolume(np.array([[t.metrics["near"], -t.metrics["far"]] for t in history]), np.full(2, -0.5))


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


@pytest.mark.parametrize(("population", "tournament", "failing"), [(10, 10, 0), (2, 1, 3), (25, 5, 3)])
def test_evolution_is_the_published_algorithm(population, tournament, failing):
    """Failed trials never enter the population."""

    def fail(number):
        return failing and number % failing == 1

    searcher = RegularizedEvolution(population, tournament)
    found = [t.genotype for t in simulate(searcher, CELLS, planted, trials=80, seed=4, fail=fail)]
    settings = {"population": population, "tournament": tournament, "trials": 80, "seed": 4, "fail": fail}
    assert found == ageing_evolution(CELLS, planted, **settings)


# -- local search -------------------------------------------------------------------------------------


def test_a_walk_moves_to_better_neighbours_and_restarts_where_there_are_none():
    fail = lambda number: number % 3 == 1  # noqa: E731
    history = simulate(LocalSearch(init=5), CELLS, planted, trials=120, seed=1, fail=fail)
    done = [t for t in history if t.state == "done"][:5]
    place = max(done, key=lambda t: t.metrics["val_acc"])
    restarts = 0
    for trial in history[done[-1].number + 1 :]:
        tried = {t.genotype for t in history[: trial.number]}
        if place is not None and not set(CELLS.neighbours(place.genotype)) - tried:
            place, restarts = None, restarts + 1
        if place is not None:
            assert trial.genotype in CELLS.neighbours(place.genotype)
        if trial.state == "done" and (place is None or trial.metrics["val_acc"] > place.metrics["val_acc"]):
            place = trial
    assert restarts > 0
    assert max(t.metrics["val_acc"] for t in history if t.state == "done") >= 5


# -- NSGA-II ------------------------------------------------------------------------------------------


def test_parents_are_the_best_by_front_and_crowding():
    """With two parents and no crossover, every child is a mutation of an end of the front."""
    history = simulate(RandomSearch(), CELLS, planted, trials=60)
    parents = [t.genotype for t in TWO.ordered(history)[:2]]
    searcher = Nsga2(population=2, crossover=0.0, goals=TWO)
    for seed in range(30):
        child = searcher.ask(CELLS, history, rng(seed))
        assert any(sum(a != b for a, b in zip(child, parent, strict=True)) == 1 for parent in parents)


# -- guided -------------------------------------------------------------------------------------------


def test_guided_search_uses_what_describes_an_architecture():
    """The score is noise, which a description alone can foretell."""

    def noise(genotype):
        return float(rng(0, *genotype).random())

    def early(searcher):
        histories = [simulate(searcher, CELLS, noise, trials=15, seed=seed) for seed in range(3)]
        return np.mean([t.metrics["val_acc"] for history in histories for t in history[10:]])

    assert early(Guided(describe=lambda genotype: (1.0, np.exp(9 * noise(genotype))))) > 0.75
    assert early(Guided()) < 0.6


# -- Optuna's samplers --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TPESampler", "NSGAIIISampler"])
def test_optunas_samplers_with_several_objectives_and_bounds(name):
    nsga = name == "NSGAIIISampler"
    trials = 60 if nsga else 20
    goals = Goals(TWO.objectives, parse_goals(["near"], ["params<=3"]).constraints)
    searcher = OptunaSearch(name, {"population_size": 10} if nsga else {}, goals)
    found = simulate(searcher, CELLS, planted, trials=trials)
    assert len({t.genotype for t in found}) == trials
    if nsga:
        assert volume(found) > volume(simulate(RandomSearch(), CELLS, planted, trials=trials))


# -- bounds that are known beforehand -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["random", "evolution", "local", "tpe"])
def test_nothing_outside_the_bounds_is_proposed_while_something_is_inside(name):
    inside = {genotype for genotype in TOY.enumerate() if sum(genotype) == 3}
    searcher = Bounded(SEARCHERS[name], lambda genotype, _: genotype in inside)
    history = simulate(searcher, TOY, score, trials=len(inside) + 1)
    assert {t.genotype for t in history[:-1]} == inside
    assert history[-1].genotype not in inside, "all inside have been tried"


# -- by name ------------------------------------------------------------------------------------------

LOSS = parse_goals(["-loss"])


@pytest.mark.parametrize(
    ("name", "searcher"),
    [
        ("evolution", RegularizedEvolution(goals=LOSS)),
        ("tpe", OptunaSearch("TPESampler", goals=LOSS)),
        ("optuna:NSGAIISampler", OptunaSearch("NSGAIISampler", goals=LOSS)),
    ],
)
def test_searchers_by_name(name, searcher):
    assert make_searcher(name, goals=LOSS) == searcher


@pytest.mark.parametrize("name", NAMES)
def test_every_name_gives_a_searcher(name):
    assert make_searcher(name).ask(TOY, [], rng(0)) in TOY.enumerate()


def test_settings_come_as_numbers_or_text():
    assert make_searcher("guided", {"init": "4", "parents": 2.0}) == Guided(init=4, parents=2)
    assert make_searcher("tpe", {"n_startup_trials": 3}) == OptunaSearch(options={"n_startup_trials": 3})
    assert make_searcher("evolution", {"population": 4}) == RegularizedEvolution(4, 4)
    assert make_searcher("evolution", {"population": 40}) == RegularizedEvolution(40, 10)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("optuna:", {}, "no Optuna sampler ''"),
        ("optuna:TPESampler", {"gama": 1}, "did you mean 'gamma'"),
        ("optuna:TPESampler", {"seed": 1}, "no setting 'seed'"),
        ("optuna:NSGAIISampler", {"population_size": 1}, "population_size"),
        ("optuna:GridSampler", {}, "search_space"),
        ("optuna:CmaEsSampler", {}, "CmaEsSampler"),
        *(("nsga2", {"population": value}, "population") for value in ("many", 2.5, True, None)),
        *(("nsga2", {"crossover": value}, "crossover") for value in ("half", "nan")),
        ("guided", {"parents": 0}, "parents"),
        ("guided", {"init": 1}, "init"),
        ("local", {"init": 0}, "init"),
        ("evolution", {"tournament": 0}, "tournament"),
        ("spos", {"mutations": 0.7}, "mutations"),
        ("spos", {"rate": 0.0}, "rate"),
        ("spos", {"parents": 0}, "parents"),
    ],
)
def test_wrong_names_and_values_are_refused(name, settings, words):
    with pytest.raises(ConfigError) as caught:
        make_searcher(name, settings)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["evolution", "local", "spos"])
def test_one_objective_searchers_refuse_several(name):
    with pytest.raises(ConfigError, match="use nsga2 or guided for a Pareto front"):
        make_searcher(name, goals=TWO)


# -- all searchers ------------------------------------------------------------------------------------


def deep():
    """A depth and a kernel for each layer: architectures that differ in a layer that is not there are one."""

    def build(choose):
        depth = choose.value("depth", (1, 2))
        kernels = {"one": lambda: nn.Conv2d(3, 3, 1), "three": lambda: nn.Conv2d(3, 3, 3)}
        return nn.Sequential(*(choose.op(f"kernel{i}", kernels) for i in range(depth)))

    return Space("deep", build)


@each_searcher
def test_every_searcher_keeps_its_promises_until_a_space_is_exhausted(searcher):
    check_searcher(searcher, CELLS, trials=12)
    check_searcher(searcher, deep(), trials=2 + 4 + 1)
    check_searcher(searcher, Space("one", lambda choose: choose.op("x", {"id": nn.Identity})), trials=2)


@pytest.mark.parametrize("name", ["random", "evolution", "local", "nsga2", "nsga2-front", "generational"])
def test_a_proposal_depends_on_the_stream(name):
    """What a model of the history finds best is often the same for any stream."""
    history = simulate(SEARCHERS[name], CELLS, planted, trials=20)
    assert len({SEARCHERS[name].ask(CELLS, history, rng(9, i)) for i in range(8)}) >= 3


def test_a_large_space_whose_projection_is_stuck_ends_instead_of_hanging():
    def build(choose):
        options = {f"o{i}": nn.Identity for i in range(10)}
        return nn.Sequential(*(choose.op(f"d{i}", options) for i in range(5)))

    stuck = Space("stuck", build, lambda decisions, scores: (0,) * 5, count=10**5)
    with pytest.raises(ExhaustedError, match="no new architecture of space 'stuck' in 200 draws"):
        RandomSearch().ask(stuck, [Trial(0, (0,) * 5, state="done")], rng(0))
