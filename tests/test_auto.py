"""The default searcher: it begins around the default architecture and reckons with costs and luck."""

import numpy as np
import pytest
from scipy.stats import spearmanr

import nas
from nas.errors import ConfigError
from nas.searchers.auto import Auto
from nas.space.loading import load

SPACE = load("nasbench201", width=4, cells=1)
DEFAULT = SPACE.default_genotype
PRICES = (0.0, 1.0, 4.0, 9.0, 1.0)
"""Of NAS-Bench-201's operations: none, skip, 1x1, 3x3, pool."""


def macs(genotype):
    return 1.0 + sum(PRICES[option] for option in genotype)


def trial(number, genotype, score):
    return nas.Trial(number, genotype, 8, state="done", metrics={"val_acc": score, "macs": macs(genotype)})


def searched(searcher, score, trials, seed=0):
    history = [trial(0, DEFAULT, score(DEFAULT))]
    while len(history) < trials:
        genotype = searcher.ask(SPACE, history, np.random.default_rng([seed, len(history)]))
        history.append(trial(len(history), genotype, score(genotype)))
    return history


def edits(genotype):
    return sum(a != b for a, b in zip(genotype, DEFAULT, strict=True))


def test_it_begins_with_mutants_of_the_default_and_never_repeats_itself():
    history = searched(Auto(default=DEFAULT), lambda g: float(sum(g)), 30)
    assert all(edits(t.genotype) <= 2 for t in history[1:10:2])
    assert any(edits(t.genotype) > 2 for t in history[2:10:2])
    assert len({SPACE.canonical(t.genotype) for t in history}) == len(history)


def test_the_model_tries_nothing_that_costs_more_than_allowed():
    """Once it knows the costs."""
    history = searched(Auto(default=DEFAULT, dearest=1.2), macs, 40)
    assert max(t.metrics["macs"] for t in history[25:]) <= 1.1 * 1.2 * macs(DEFAULT)  # foretold, not counted
    free = searched(Auto(default=DEFAULT, dearest=100.0), macs, 40)
    assert max(t.metrics["macs"] for t in free) > 1.2 * macs(DEFAULT)


def test_it_finds_what_is_better_than_the_default():
    best = (3, 1, 3, 2, 4, 3)
    scores = [
        max(
            t.metrics["val_acc"] for t in searched(Auto(default=DEFAULT), lambda g: -distance(g, best), 50, s)
        )
        for s in range(3)
    ]
    assert np.mean(scores) >= -1.0  # a random one agrees with one or two of six


def distance(genotype, other):
    return float(sum(a != b for a, b in zip(genotype, other, strict=True)))


def test_its_order_of_noisy_trials_is_nearer_to_the_truth_than_their_own():
    """Scores of a truth that grows with the cost and lies in the options, and as much noise again."""
    gained = []
    for seed in range(5):
        draw = np.random.default_rng(seed)
        genotypes = list(dict.fromkeys(SPACE.sample(draw) for _ in range(40)))
        truth = np.array([np.log(macs(g)) + 0.2 * (g[5] == 3) for g in genotypes])
        seen = truth + truth.std() * draw.standard_normal(len(truth))
        trials = [trial(i, g, float(s)) for i, (g, s) in enumerate(zip(genotypes, seen, strict=True))]
        ranked = Auto(default=DEFAULT).ranked(SPACE, trials, draw)
        place = {t.number: -i for i, t in enumerate(ranked)}
        own = spearmanr([place[i] for i in range(len(trials))], truth)[0]
        gained.append(own - spearmanr(seen, truth)[0])
    assert np.mean(gained) > 0.05


def test_costs_of_what_was_not_trained_are_foretold():
    trials = [trial(i, SPACE.sample(np.random.default_rng(i)), 0.5) for i in range(60)]
    new = [SPACE.sample(np.random.default_rng(i)) for i in range(100, 130)]
    found = Auto().costs(SPACE, trials, [trials[0].genotype, *new])
    assert found[0] == pytest.approx(np.log(trials[0].metrics["macs"]))
    assert spearmanr(found[1:], [macs(g) for g in new])[0] > 0.95


def test_with_several_objectives_or_constraints_it_proposes_what_guided_does():
    for goals in (nas.parse_goals(["val_acc", "-macs"], []), nas.parse_goals(["val_acc"], ["macs<=20"])):
        made = [nas.make_searcher(name, goals=goals) for name in ("auto", "guided")]
        draws = [searched(searcher, lambda g: float(sum(g)), 20) for searcher in made]
        assert draws[0] == draws[1]


def test_bad_settings_are_refused():
    for settings in ({"dearest": 0.5}, {"init": 1}):
        with pytest.raises(ConfigError, match=r"auto|guided"):
            nas.make_searcher("auto", settings)
