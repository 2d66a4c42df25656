"""Trials that begin with the weights of an earlier trial or of a supernet."""

import dataclasses
import itertools
from contextlib import suppress

import numpy as np
import pytest
import torch

from nas.data.loading import load_task
from nas.errors import SpaceError, Stopped
from nas.evaluate.inherited import from_supernet
from nas.evaluate.trained import Trained
from nas.oneshot.supernet import Supernet
from nas.searchers.evolution import RegularizedEvolution
from nas.searchers.scheduler import Fixed
from nas.space.loading import load
from nas.space.network_morphism import additions
from nas.study.storage import open_storage
from nas.study.study import Study
from nas.study.workers import Measure
from nas.training.checkpoint import Checkpoints
from nas.training.recipe import Recipe
from nas.types import Trial

TASK = load_task("digits").reduced(96)
CELLS = load("nasbench201", width=2, cells=1, in_channels=1)
RECIPE = Recipe(epochs=1, batch=32, lr=0.05, weight_decay=1e-4)
TRAINED = Trained(CELLS, TASK, RECIPE)
# Each is one addition to the one before.
SMALL, MIDDLE, LARGE = (3, 3, 0, 1, 0, 3), (3, 3, 3, 1, 0, 3), (3, 3, 3, 1, 3, 3)
# As the small one, two that the middle one is an addition to.
OTHERS = ((3, 0, 3, 1, 0, 3), (3, 3, 3, 1, 0, 0))


def rng(seed=0):
    return np.random.default_rng(seed)


def growing(weights, trained=TRAINED, **settings):
    return dataclasses.replace(trained, weights=weights, **settings)


def done(number, genotype, accuracy, *, fidelity=1, inherited=-1.0):
    metrics = {"val_acc": accuracy} | ({} if inherited is None else {"inherited_from": inherited})
    return Trial(number, genotype, fidelity, "done", metrics)


def told(trained, trial, known, seed=0):
    """The metrics of a trial that is told of those known."""
    return trained(trial, rng(seed), **trained.hints(trial, known))


def kept(folder):
    return sorted(int(path.name.removeprefix("weights-")) for path in folder.iterdir())


@pytest.fixture
def small(tmp_path):
    """One trial of the small architecture, number 0, whose weights were kept."""
    metrics = growing(tmp_path)(Trial(0, SMALL, 1), rng())
    return Trial(0, SMALL, 1, "done", metrics)


# -- an earlier trial -------------------------------------------------------------------------------------


def test_without_a_parent_a_trial_begins_from_scratch(tmp_path):
    assert LARGE in additions(CELLS, MIDDLE)
    assert all(MIDDLE in additions(CELLS, parent) for parent in (SMALL, *OTHERS))
    trial = Trial(3, LARGE, 1)
    assert told(growing(tmp_path), trial, []) == {**TRAINED(trial, rng()), "inherited_from": -1.0}
    assert kept(tmp_path) == [3]
    assert TRAINED.hints(trial, []) == {}


def test_a_trial_begins_with_the_weights_of_its_parent(small, tmp_path):
    seen = []
    # A learning rate too small to move a weight of float32.
    still = dataclasses.replace(RECIPE, lr=1e-30)
    trained = growing(tmp_path, recipe=still, judge=lambda trial, network: seen.append(network))
    assert told(trained, Trial(1, MIDDLE, 1), [small])["inherited_from"] == 0.0
    weights = Checkpoints(tmp_path / "weights-0").load()[1]["weights"]
    found = dict(seen[0].named_parameters())
    shared = found.keys() & weights.keys()
    assert all(torch.allclose(found[name], weights[name], rtol=0, atol=1e-12) for name in shared)
    conv, norm = "incoming.1.1.1.weight", ("incoming.1.1.2.weight", "incoming.1.1.2.bias")
    assert found.keys() - shared == {f"{cell}.{name}" for cell in (1, 3, 5) for name in (conv, *norm)}
    assert all(found[f"3.{name}"].abs().max() < 1e-12 for name in norm)
    assert found[f"3.{conv}"].abs().max() > 0.01


def parent(known, tmp_path):
    """Which of some trials, whose weights were kept, is grown from; -1 for none."""
    for past in known:
        if not (tmp_path / f"weights-{past.number}").exists():
            weights = CELLS.network(past.genotype).state_dict()
            Checkpoints(tmp_path / f"weights-{past.number}").save(1, {"weights": weights})
    found = growing(tmp_path).hints(Trial(9, MIDDLE, 1), known)["parent"]
    return -1 if found is None else found.number


@pytest.mark.parametrize(
    ("accuracies", "best"), [((0.5, 0.6, 0.4), 1), ((0.6, 0.6, 0.1), 0), ((0.1, 0.2, 0.2), 1)]
)
def test_the_best_parent_is_taken_and_the_earliest_of_equal_ones(tmp_path, accuracies, best):
    known = [done(i, g, a) for i, (g, a) in enumerate(zip((SMALL, *OTHERS), accuracies, strict=True))]
    assert parent(known, tmp_path) == parent(known[::-1], tmp_path) == best


@pytest.mark.parametrize(
    "trial",
    [
        done(1, SMALL, 0.9, fidelity=2),
        done(1, SMALL, 0.9, inherited=None),  # of another evaluator, so nothing was kept
        done(1, MIDDLE, 0.9),  # itself
        done(1, (3, 0, 0, 1, 0, 3), 0.9),  # two additions
        done(1, LARGE, 0.9),  # one too many
    ],
)
def test_no_other_trial_is_a_parent(tmp_path, trial):
    assert parent([done(0, SMALL, 0.5), trial], tmp_path) == 0
    assert parent([trial], tmp_path) == -1


def missing(path):
    path.unlink()


def flipped(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def foreign(path):
    path.unlink()
    Checkpoints(path.parent).save(1, {"weights": CELLS.network(LARGE).state_dict()})


@pytest.mark.parametrize("damage", [missing, flipped, foreign])
def test_lost_weights_mean_from_scratch_with_a_note(small, tmp_path, damage, caplog):
    (path,) = (tmp_path / "weights-0").iterdir()
    damage(path)
    trial = Trial(1, MIDDLE, 1)
    assert told(growing(tmp_path), trial, [small]) == {**TRAINED(trial, rng()), "inherited_from": -1.0}
    assert "weights-0 holds no weights of trial 0" in caplog.text


class Killed(BaseException):
    pass


def study(folder, *, stop=None, dies=lambda number: False, trials=9):
    """The genotypes and metrics of a small evolution, its weights growing."""

    def judge(trial, network):
        if dies(trial.number):
            raise Killed

    folder.mkdir(exist_ok=True)
    scheduler = Fixed(RegularizedEvolution(3, 2, morphism=0.8), 1)
    run = Study(CELLS, scheduler, open_storage(folder / "study.log"), name="search", seed=6)
    trained = growing(folder / "weights", folder=folder / "checkpoint", stop=stop, judge=judge)
    run.run(Measure(trained, hints=trained.hints), trials=trials)
    return [(t.genotype, t.metrics) for t in run.history]


def test_a_killed_study_ends_like_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr("nas.evaluate.trained.KEPT", 3)
    whole = study(tmp_path / "whole")
    assert sum(metrics["inherited_from"] >= 0 for _, metrics in whole) >= 2
    asked, deaths, attempts = itertools.count(), {3, 7}, []

    def dies(number):
        if number in deaths:
            deaths.remove(number)
            return True
        return False

    found = []
    while len(found) < len(whole):
        attempts.append(len(found))
        with suppress(Stopped, Killed):
            found = study(tmp_path / "killed", stop=lambda: next(asked) % 5 == 4, dies=dies)
    assert len(attempts) >= 5
    assert found == whole
    assert kept(tmp_path / "killed" / "weights") == kept(tmp_path / "whole" / "weights")
    assert len(kept(tmp_path / "whole" / "weights")) <= 3 + 1


# -- a supernet -------------------------------------------------------------------------------------------


def learnt(space):
    """A supernet whose weights and statistics are no longer fresh."""
    torch.manual_seed(1)
    supernet = Supernet(space).double().train()
    with torch.no_grad():
        for weight in supernet.weights():
            weight.add_(0.2 * torch.randn_like(weight))
        for _ in range(3):
            supernet(images())
    return supernet


def images():
    return torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("space", [CELLS, load("toy", width=4)], ids=["nasbench201", "toy"])
def test_a_warm_start_computes_what_the_supernet_does(space, mode):
    supernet = learnt(space).train(mode)
    for seed in range(2):
        genotype = space.sample(rng(seed))
        network = from_supernet(supernet)(Trial(0, genotype, 1), space.network(genotype).double()).train(mode)
        with torch.no_grad():
            torch.testing.assert_close(network(images()), supernet(images(), genotype), rtol=0, atol=1e-12)
        assert network.state_dict().keys() == space.network(genotype).state_dict().keys()
        assert all(p.requires_grad for p in network.parameters())


def test_a_supernet_of_another_space_is_refused():
    start = from_supernet(learnt(load("toy", width=4)))
    wide = load("toy", width=8)
    with pytest.raises(SpaceError, match=r"the supernet and the trial's network differ in \['0"):
        start(Trial(0, (2, 2, 2), 1), wide.network((2, 2, 2)))
