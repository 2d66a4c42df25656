import dataclasses
import itertools
from contextlib import suppress

import numpy as np
import pytest
import torch

from nas.data.task import load_task
from nas.errors import ConfigError, SpaceError, Stopped
from nas.evaluate.inherited import from_supernet
from nas.evaluate.trained import Trained
from nas.evaluate.weight_inheritance import Grown
from nas.oneshot.supernet import Supernet
from nas.searchers import RegularizedEvolution
from nas.searchers.scheduler import Fixed
from nas.space.loading import load
from nas.space.network_morphism import additions
from nas.study.storage import open_storage
from nas.study.study import Study
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


def done(number, genotype, accuracy, *, fidelity=1, state="done", inherited=-1.0):
    metrics = {"val_acc": accuracy} | ({} if inherited is None else {"inherited_from": inherited})
    return Trial(number, genotype, fidelity, state, metrics)


def evaluated(grown, trial, seed=0):
    """The trial with its metrics, in the history from now on."""
    grown.history.append(dataclasses.replace(trial, state="done", metrics=grown(trial, rng(seed))))
    return grown.history[-1].metrics


def kept(folder):
    return sorted(int(path.name.removeprefix("weights-")) for path in folder.iterdir())


@pytest.fixture
def grown(tmp_path):
    """After one trial, number 0, of the small architecture."""
    grown = Grown(TRAINED, tmp_path, [])
    evaluated(grown, Trial(0, SMALL, 1))
    return grown


# -- growing ----------------------------------------------------------------------------------------------


def test_the_examples_are_additions():
    assert LARGE in additions(CELLS, MIDDLE)
    assert all(MIDDLE in additions(CELLS, parent) for parent in (SMALL, *OTHERS))


def test_without_a_parent_a_trial_begins_from_scratch(tmp_path):
    trial = Trial(3, LARGE, 1)
    assert Grown(TRAINED, tmp_path, [])(trial, rng()) == {**TRAINED(trial, rng()), "inherited_from": -1.0}
    assert kept(tmp_path) == [3]


def test_a_trial_begins_with_the_weights_of_its_parent(grown):
    seen = []
    # A learning rate too small to move a weight of float32.
    still = dataclasses.replace(RECIPE, lr=1e-30)
    trained = dataclasses.replace(TRAINED, recipe=still, judge=lambda trial, network: seen.append(network))
    assert dataclasses.replace(grown, trained=trained)(Trial(1, MIDDLE, 1), rng())["inherited_from"] == 0.0
    weights = Checkpoints(grown.folder / "weights-0").load()[1]["weights"]
    found = dict(seen[0].named_parameters())
    shared = found.keys() & weights.keys()
    assert all(torch.allclose(found[name], weights[name], rtol=0, atol=1e-12) for name in shared)
    conv, norm = "incoming.1.1.1.weight", ("incoming.1.1.2.weight", "incoming.1.1.2.bias")
    assert found.keys() - shared == {f"{cell}.{name}" for cell in (1, 3, 5) for name in (conv, *norm)}
    assert all(found[f"3.{name}"].abs().max() < 1e-12 for name in norm)
    assert found[f"3.{conv}"].abs().max() > 0.01


def test_a_grown_trial_is_better_after_one_epoch_than_one_from_scratch(tmp_path):
    space = load("nasbench201", width=8, cells=1, in_channels=1)
    trained = Trained(space, load_task("digits"), RECIPE)
    for seed in (1, 2):
        grown = Grown(trained, tmp_path / str(seed), [])
        for number, genotype in enumerate((SMALL, MIDDLE, LARGE)):
            last = evaluated(grown, Trial(number, genotype, 1), seed)
        scratch = trained(Trial(2, LARGE, 1), rng(seed))
        assert last["inherited_from"] == 1.0
        assert last["epochs_trained"] == scratch["epochs_trained"] == 1
        assert last["val_acc"] > scratch["val_acc"] + 0.2


def test_what_it_does_by_itself_is_still_done(tmp_path):
    heard = []

    def start(trial, network):
        heard.append(("start", trial.number))
        return network

    trained = dataclasses.replace(TRAINED, start=start, judge=lambda t, _: heard.append(("judge", t.number)))
    grown = Grown(trained, tmp_path, [])
    evaluated(grown, Trial(0, SMALL, 1))
    evaluated(grown, Trial(1, MIDDLE, 1))
    assert heard == [("start", 0), ("judge", 0), ("judge", 1)]


# -- the parent -------------------------------------------------------------------------------------------


def parent(history, tmp_path, *, number=9, genotype=MIDDLE, **settings):
    """Which of some trials, whose weights were kept, is grown from."""
    for past in history:
        if not (tmp_path / f"weights-{past.number}").exists():
            weights = CELLS.network(past.genotype).state_dict()
            Checkpoints(tmp_path / f"weights-{past.number}").save(1, {"weights": weights})
    grown = Grown(TRAINED, tmp_path, history, **settings)
    return grown(Trial(number, genotype, 1), rng())["inherited_from"]


@pytest.mark.parametrize(
    ("accuracies", "best"), [((0.5, 0.6, 0.4), 1), ((0.6, 0.6, 0.1), 0), ((0.1, 0.2, 0.2), 1)]
)
def test_the_best_parent_is_taken_and_the_earliest_of_equal_ones(tmp_path, accuracies, best):
    history = [done(i, g, a) for i, (g, a) in enumerate(zip((SMALL, *OTHERS), accuracies, strict=True))]
    assert parent(history, tmp_path) == best
    assert parent(history[::-1], tmp_path, number=10) == best


@pytest.mark.parametrize(
    "trial",
    [
        done(1, SMALL, 0.9, fidelity=2),
        done(1, SMALL, 0.9, state="failed"),
        done(1, SMALL, 0.9, state="running"),
        done(10, SMALL, 0.9),  # later than the trial
        done(1, SMALL, 0.9, inherited=None),  # of another evaluator, so nothing was kept
        done(1, MIDDLE, 0.9),  # itself
        done(1, (3, 0, 0, 1, 0, 3), 0.9),  # two additions
        done(1, LARGE, 0.9),  # one too many
    ],
)
def test_no_other_trial_is_a_parent(tmp_path, trial):
    assert parent([done(0, SMALL, 0.5), trial], tmp_path) == 0
    assert parent([trial], tmp_path, number=9) == -1


# -- what is kept -----------------------------------------------------------------------------------------


def test_only_the_weights_of_the_best_are_kept(tmp_path):
    accuracies = (0.3, 0.5, 0.4, 0.5, 0.2)
    history = [done(i, SMALL, a) for i, a in enumerate(accuracies)]
    history.append(done(5, SMALL, 0.1, fidelity=7))  # by itself among those of its fidelity
    assert parent(history, tmp_path, keep=2) == 1
    assert kept(tmp_path) == [1, 3, 5, 9]


def test_a_trial_whose_end_was_not_recorded_is_repeated_alike(tmp_path):
    grown = Grown(TRAINED, tmp_path, [], keep=1)
    evaluated(grown, Trial(0, SMALL, 1))
    trial = Trial(1, MIDDLE, 1)
    first = grown(trial, rng())
    before = Checkpoints(tmp_path / "weights-1").load()[1]["weights"]
    assert kept(tmp_path) == [0, 1]
    assert grown(trial, rng()) == first
    assert first["inherited_from"] == 0
    (path,) = (tmp_path / "weights-1").iterdir()
    after = Checkpoints(path.parent).load()[1]["weights"]
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_keeping_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="grown: keep is 0, but must be at least 1"):
        Grown(TRAINED, tmp_path, [], keep=0)


def missing(path):
    path.unlink()


def torn(path):
    path.write_bytes(path.read_bytes()[:-7])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def foreign(path):
    path.unlink()
    Checkpoints(path.parent).save(1, {"weights": CELLS.network(LARGE).state_dict()})


def empty(path):
    path.unlink()
    Checkpoints(path.parent).save(1, {})


def newer(path):
    import hashlib

    data = path.read_bytes().replace(b'"checkpoint":"1"', b'"checkpoint":"2"')
    path.unlink()
    (path.parent / f"step-000000001-{hashlib.sha256(data).hexdigest()[:16]}.safetensors").write_bytes(data)


@pytest.mark.parametrize("damage", [missing, torn, flipped, foreign, empty, newer])
def test_lost_weights_mean_from_scratch_with_a_note(grown, damage, caplog):
    (path,) = (grown.folder / "weights-0").iterdir()
    damage(path)
    trial = Trial(1, MIDDLE, 1)
    assert grown(trial, rng()) == {**TRAINED(trial, rng()), "inherited_from": -1.0}
    assert "weights-0 holds no weights of trial 0" in caplog.text


# -- in a study -------------------------------------------------------------------------------------------


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
    trained = dataclasses.replace(TRAINED, folder=folder / "checkpoint", stop=stop, judge=judge)
    run.run(Grown(trained, folder / "weights", run.history, keep=3), trials=trials)
    return [(t.genotype, t.metrics) for t in run.history]


def test_a_killed_study_ends_like_an_uninterrupted_one(tmp_path):
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


# -- from a supernet --------------------------------------------------------------------------------------


def learnt(space):
    """A supernet whose weights and statistics are no longer fresh."""
    torch.manual_seed(1)
    supernet = Supernet(space).double().train()
    with torch.no_grad():
        for weight in supernet.weights():
            weight.add_(0.2 * torch.randn_like(weight))
        for _ in range(3):
            supernet(images(space))
    return supernet


def images(space):
    return torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("space", [CELLS, load("toy", width=4)], ids=["nasbench201", "toy"])
def test_a_warm_start_computes_what_the_supernet_does(space, mode):
    supernet = learnt(space).train(mode)
    for seed in range(5):
        genotype = space.sample(rng(seed))
        network = from_supernet(supernet)(Trial(0, genotype, 1), space.network(genotype).double()).train(mode)
        with torch.no_grad():
            torch.testing.assert_close(
                network(images(space)), supernet(images(space), genotype), rtol=0, atol=1e-12
            )
        fresh = space.network(genotype)
        assert network.state_dict().keys() == fresh.state_dict().keys()
        assert all(p.requires_grad for p in network.parameters())


def test_a_warm_start_leaves_the_supernet_alone_and_trains_on():
    space = load("toy", width=4)
    supernet = learnt(space).float()
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    trained = Trained(space, TASK, RECIPE, start=from_supernet(supernet))
    trial = Trial(0, (2, 0, 2), 1)
    warm = trained(trial, rng())
    assert warm == trained(trial, rng())
    assert warm["train_loss"] != Trained(space, TASK, RECIPE)(trial, rng())["train_loss"]
    assert all(torch.equal(before[name], value) for name, value in supernet.state_dict().items())


def test_a_supernet_of_another_space_is_refused():
    start = from_supernet(learnt(load("toy", width=4)))
    wide = load("toy", width=8)
    with pytest.raises(
        SpaceError, match=r"from_supernet: the supernet and the trial's network differ in \['0"
    ):
        start(Trial(0, (2, 2, 2), 1), wide.network((2, 2, 2)))


def test_a_start_draws_from_the_stream_of_its_trial():
    def noisy(trial, network):
        torch.nn.init.normal_(network[0].weight)
        return network

    space, trial = load("toy", width=4), Trial(0, (2, 2, 2), 1)
    trained = Trained(space, TASK, RECIPE, start=noisy)
    first = trained(trial, rng())
    torch.manual_seed(99)
    assert trained(trial, rng()) == first != Trained(space, TASK, RECIPE)(trial, rng())
