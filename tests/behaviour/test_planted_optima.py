"""Searchers find what was planted sooner than chance; bounds are kept, fronts hold nothing dominated."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import surface
from small_spaces import OPTIMUM, agreement, chain, planted
from torch import nn

import nas
from nas.spaces import toy

SEARCHERS = ("auto", "random", "evolution", "local", "nsga2", "guided", "tpe")
SETTINGS = {
    "evolution": {"population": 10, "tournament": 5},
    "local": {"init": 5},
    "nsga2": {"population": 10},
    "guided": {"init": 5},
}
"""Of searches so short, whose populations would else never be complete."""


def score(genotype):
    return {"val_acc": agreement(genotype)}


def found_after(history, genotype):
    """The number of evaluations until an architecture was found; one more than all where it was not."""
    return next((t.number + 1 for t in history if t.genotype == genotype), len(history) + 1)


def dominated(point, others):
    """Whether another point is at least as good in all and better in one; larger is better."""
    return any(all(b >= a for a, b in zip(point, o, strict=True)) and o != point for o in others)


# -- one objective ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "trials", "seeds", "least"),
    [
        ("evolution", 60, 10, 0.8),
        ("local", 40, 6, 0.95),
        ("nsga2", 60, 6, 0.85),
        ("guided", 20, 2, 0.8),
        ("auto", 30, 2, 0.8),
        ("tpe", 40, 2, 0.8),
    ],
)
def test_searchers_climb_to_a_planted_optimum_among_4096(name, trials, seeds, least):
    """Well above what chance reaches, by which each of six decisions agrees with odds of 1 to 3."""
    reached = []
    for seed in range(seeds):
        history = surface.searched(planted(), name, score, trials, seed=seed, settings=SETTINGS.get(name))
        reached.append(max(t.metrics["val_acc"] for t in history))
    chances = [math.comb(6, k) * 0.25**k * 0.75 ** (6 - k) for k in range(7)]
    below = np.cumsum(chances) ** trials
    chance = sum(k / 6 * (below[k] - (below[k - 1] if k else 0)) for k in range(7))
    assert chance + 0.08 < least <= np.mean(reached)


@pytest.mark.parametrize(("name", "seeds"), [("local", 20), ("guided", 3)])
def test_the_optimum_of_the_toy_space_is_found_in_half_the_time_of_chance(name, seeds):
    """Chance needs 14 of 27 on average."""
    space, settings = nas.load("toy"), {"local": {"init": 3}, "guided": {"init": 3}}[name]
    needed = []
    for seed in range(seeds):
        history = surface.searched(
            space, name, lambda g: {"val_acc": toy.score(g)}, 14, seed=seed, settings=settings
        )
        needed.append(found_after(history, toy.OPTIMUM))
    assert np.mean(needed) <= 8


def test_random_search_finds_it_as_late_as_chance_says():
    space = nas.load("toy")
    needed = [
        found_after(surface.searched(space, "random", lambda g: {"val_acc": 0.0}, 27, seed=seed), toy.OPTIMUM)
        for seed in range(60)
    ]
    assert abs(np.mean(needed) - 14) < 4 * 7.8 / np.sqrt(60)


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_searcher_tries_every_architecture_once_and_then_ends(name):
    """With the failed ones, which are not tried again either."""
    space = nas.load("toy")

    def evaluate(trial, rng):
        if trial.number % 6 == 4:
            raise nas.TrialError("error", "on purpose")
        return {"val_acc": toy.score(trial.genotype)}

    settings = {"evolution": {"population": 4}, "nsga2": {"population": 4}, "guided": {"init": 22}}.get(name)
    made = surface.study(space, nas.make_searcher(name, settings))
    made.run(evaluate, trials=40)
    assert Counter(t.genotype for t in made.history) == Counter(space.enumerate())
    best = made.best()[0]
    assert best.metrics["val_acc"] == max(t.metrics["val_acc"] for t in made.history if t.state == "done")
    nas.check_searcher(nas.make_searcher(name, settings), space, trials=12)


def test_what_is_minimised_is_minimised():
    goals = nas.parse_goals(["-val_loss"])
    for name in ("evolution", "local"):
        history = surface.searched(
            planted(),
            name,
            lambda g: {"val_loss": 1 - agreement(g)},
            60,
            goals=goals,
            settings=SETTINGS[name],
        )
        assert min(t.metrics["val_loss"] for t in history) < 0.2


def test_local_search_goes_from_better_to_better_neighbour():
    """After its random start, every trial is a neighbour of where it stands, until that has none left."""
    space = planted()
    history = surface.searched(space, "local", score, 60, settings={"init": 5})
    here = max(history[:5], key=lambda t: t.metrics["val_acc"])
    for trial in history[5:]:
        if here.genotype == OPTIMUM:
            break
        assert sum(a != b for a, b in zip(trial.genotype, here.genotype, strict=True)) == 1
        if trial.metrics["val_acc"] > here.metrics["val_acc"]:
            here = trial
    assert here.genotype == OPTIMUM


def test_evolution_mutates_one_of_its_population():
    """Real et al. 2019: every child is one mutation away from one of the last `population` trials."""
    history = surface.searched(planted(), "evolution", score, 60, settings=SETTINGS["evolution"])
    for trial in history[10:]:
        living = history[trial.number - 10 : trial.number]
        assert any(sum(a != b for a, b in zip(trial.genotype, t.genotype, strict=True)) == 1 for t in living)


def test_a_search_in_which_everything_fails_ends_with_its_reasons():
    def evaluate(trial, rng):
        raise nas.TrialError("oom", "as planned")

    made = surface.study(planted(), nas.RandomSearch())
    with pytest.raises(nas.NoModelError, match="oom"):
        made.run(evaluate, trials=50, max_failures=4)
    assert [t.state for t in made.history] == ["failed"] * 4


def test_metrics_that_are_no_numbers_make_a_failed_trial_and_never_the_best():
    def evaluate(trial, rng):
        value = {1: float("nan"), 3: float("inf")}.get(trial.number, agreement(trial.genotype))
        return {"val_acc": value}

    made = surface.study(planted(), nas.RandomSearch())
    made.run(evaluate, trials=8)
    assert [t.number for t in made.history if t.state == "failed"] == [1, 3]
    assert np.isfinite(made.best()[0].metrics["val_acc"])


def test_successive_halving_trains_the_best_third_three_times_as_long():
    """27 architectures for 1 epoch, 9 for 3, 3 for 9, and the planted one is among the last."""
    space = nas.load("toy")
    ladder = nas.Ladder(tuple(nas.Fidelity(epochs) for epochs in (1, 2, 6)))
    made = surface.study(space, nas.RandomSearch(), ladder=ladder)
    asked = []

    def evaluate(trial, rng):
        asked.append((trial.genotype, trial.fidelity))
        return {"val_acc": toy.score(trial.genotype) - 0.2 / trial.fidelity}

    made.run(evaluate, trials=60)
    rungs = Counter(fidelity for _, fidelity in asked)
    assert list(sorted(rungs.values(), reverse=True)) == [27, 9, 3]
    longest = [genotype for genotype, fidelity in asked if fidelity == max(rungs)]
    assert toy.OPTIMUM in longest and made.best()[0].genotype == toy.OPTIMUM
    third = {g for g, f in asked if f == sorted(rungs)[1]}
    assert min(map(toy.score, third)) >= max(toy.score(g) for g in set(space.enumerate()) - third) - 1e-9


# -- bounds and fronts --------------------------------------------------------------------------------------


def priced(genotype):
    return {"val_acc": agreement(genotype), "price": float(sum(genotype))}


@pytest.mark.parametrize("name", ["evolution", "local", "nsga2"])
def test_within_a_bound_searchers_are_better_than_chance(name):
    """The planted optimum has a price of 9; within 4, where a twentieth lies, at most four of six agree.

    Chance reaches 0.35 within it, and keeps it in a twentieth of all trials.
    """
    goals = nas.parse_goals(["val_acc"], ["price<=4"])

    def run(seed):
        """The best accuracy within the bound, and the share of the last trials that keep it."""
        made = nas.make_searcher(name, SETTINGS[name], goals=goals)
        study = surface.study(planted(), made, goals=goals, seed=seed)
        study.run(lambda trial, rng: priced(trial.genotype), trials=90)
        kept = [t.metrics["val_acc"] for t in study.history if t.metrics["price"] <= 4]
        best = study.best()[0].metrics
        # What is best keeps the bound wherever anything does, however much better others are.
        assert not kept or (best["price"] <= 4 and best["val_acc"] == max(kept))
        return max(kept, default=0.0), np.mean([t.metrics["price"] <= 4 for t in study.history[-30:]])

    reached, share = np.mean([run(seed) for seed in range(5)], axis=0)
    assert reached > 0.46 and share > 0.14


def front_of(name, trials):
    """The front of a search for a high agreement at a low price, as pairs; it is what it should be."""
    goals = nas.parse_goals(["val_acc", "-price"])
    history = surface.searched(planted(), name, priced, trials, goals=goals, settings=SETTINGS.get(name))
    points, front = (
        {(round(6 * t.metrics["val_acc"]), -int(t.metrics["price"])) for t in trials}
        for trials in (history, goals.front(history))
    )
    assert front == {point for point in points if not dominated(point, points)}
    return front


def test_nsga2_finds_the_whole_planted_front():
    """By price: what agrees in the cheapest decisions first, up to the planted optimum itself."""
    exact = {(k + 1, -price) for k, price in enumerate(itertools.accumulate(sorted(OPTIMUM)))}
    found = front_of("nsga2", 200)
    assert {(1, 0), (6, -9)} <= found and len(found & exact) >= 5


def test_guided_search_finds_more_of_a_front_than_chance():
    """The share of all pairs of an agreement and a price that some architecture found reaches."""

    def reached(front):
        pairs = [(k, -price) for k in range(1, 7) for price in range(12)]
        return np.mean([any(a >= k and b >= price for a, b in front) for k, price in pairs])

    assert reached(front_of("guided", 25)) > 0.45 > reached(front_of("random", 25))


def test_a_pareto_search_leaves_its_front_and_trains_its_best_in_the_first_objective(tmp_path):
    settings = {"trials": 6, "epochs": 1, "objective": ["val_acc", "-macs"], "constraint": ["params<=700"]}
    result = surface.search(tmp_path, "nsga2", **settings)
    front = surface.read(tmp_path / "front.json")["front"]
    points = [(m["metrics"]["val_acc"], -m["metrics"]["macs"]) for m in front]
    kept = [t for t in result.history if t.state == "done" and t.metrics["params"] <= 700]
    everything = [(t.metrics["val_acc"], -t.metrics["macs"]) for t in kept]
    assert points and set(points) == {p for p in everything if not dominated(p, everything)}
    assert [t.number for t in result.front] == [m["trial"] for m in front]
    chosen = next(m for m in front if tuple(m["genotype"]) == result.genotype)
    assert chosen["metrics"]["val_acc"] == max(accuracy for accuracy, _ in points)


@pytest.mark.parametrize("method", ["evolution", "spos", "darts"])
def test_what_a_search_delivers_keeps_its_bound(tmp_path, method):
    """Four of thirty-six networks keep it: those without a convolution."""
    space = chain()
    counts = sorted(surface.parameters(space.network(g)) for g in space.enumerate())
    bound = counts[3]
    given = {"trials": 3, "epochs": 1} if method in ("evolution", "spos") else {"alphas": {"lr": 0.1}}
    result = surface.search(tmp_path, method, space=space, constraint=f"params<={bound}", **given)
    assert sum(count <= bound for count in counts) == 4
    assert result.metrics["params"] <= bound
    assert surface.parameters(result.network) == result.metrics["params"]
    if method in ("evolution", "spos"):
        kept = [t for t in result.history if t.state == "done" and t.metrics["params"] <= bound]
        assert result.genotype in {t.genotype for t in kept}


def test_a_weighed_objective_decides_the_choice(tmp_path):
    """Accuracy hardly counts where a parameter costs so much; the smallest of all networks is trained."""

    def build(choose):
        options = {f"{k}": lambda k=k: nn.Conv2d(1, 2, k, padding=k // 2) for k in (1, 3, 5, 7)}
        return nn.Sequential(
            choose.op("kernel", options), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)
        )

    result = surface.search(
        tmp_path, "random", space=nas.Space("kernels", build), trials=4, objective="val_acc - 1*params"
    )
    assert result.space.choices(result.genotype) == {"kernel": "1"}
