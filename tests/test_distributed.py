"""Several ranks train what one process trains: same loss, same alphas, same architecture; or say why not."""

import dataclasses
import itertools
import os
import signal
import time

import numpy as np
import pytest
import torch
from ranks import make_plain_space, make_task, started, together
from trainings import train, train_shared

from nas.errors import ConfigError, DataError
from nas.oneshot.darts_pt import ByPerturbation
from nas.oneshot.methods import METHODS
from nas.oneshot.path_training import SAMPLINGS, uniform
from nas.oneshot.progressive import Progressive
from nas.oneshot.search import search
from nas.oneshot.supernet import Supernet
from nas.seeding import isolated
from nas.space.loading import load
from nas.training import ddp
from nas.training.checkpoint import Checkpoints
from nas.training.ddp import ALONE, Team
from nas.training.recipe import DARTS_SEARCH, Recipe

# What float32 rounds differently when a batch is summed in two parts; a wrong gradient is off by far more.
CLOSE = {"rtol": 2e-4, "atol": 2e-5}
EQUAL = ("darts", "darts2", "gdas", "snas", "sdarts-adv", "oles")


def make_toy():
    return load("toy", width=4, classes=3, in_channels=1)


def searched(team, space, name, *, images=96, data_seed=0, epochs=2, parts=None, **options):
    """The curve of a search, the alphas and weights at its end, and the architecture."""
    task, method = make_task(images=images, seed=data_seed), METHODS[name]()
    weights = dataclasses.replace(DARTS_SEARCH, epochs=epochs, batch=16)
    method = dataclasses.replace(method, weights=weights, **(parts or {}))
    outcome = search(space, task, method, seed=5, team=team, **options)
    supernet = outcome.supernet
    return {
        "loss": [epoch.train_loss for epoch in outcome.epochs],
        "alphas": torch.cat([a.detach().flatten() for a in supernet.architecture()]).numpy(),
        "weights": torch.cat([w.detach().flatten() for w in supernet.weights()]).numpy(),
        "genotype": supernet.genotype(),
        "selected": outcome.selected,
    }


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


# -- what one process does ----------------------------------------------------------------------------


def search_plainly(team, names):
    return {name: searched(team, make_plain_space(), name, epochs=1) for name in names}


def test_two_ranks_search_like_one_process_with_the_whole_batch():
    """Without batch-norm, by methods whose gradients are taken in every way there is."""
    found = together(search_plainly, EQUAL)
    alone = search_plainly(ALONE, EQUAL)
    for name in EQUAL:
        first, second = found[0][name], found[1][name]
        assert_same(first, second)
        for part in ("loss", "alphas", "weights"):
            np.testing.assert_allclose(first[part], alone[name][part], **CLOSE, err_msg=f"{name} {part}")
        assert first["selected"] == alone[name]["selected"]


def retrain_in_parts(team, batch):
    with isolated(0, "init"):
        network = make_plain_space().network((0, 1, 0))
    recipe, task = dataclasses.replace(RETRAIN, batch=batch), make_task()
    curve = train(network, task, recipe, seed=3, evaluate_on=task.val, team=team)
    weights = torch.cat([p.detach().flatten() for p in network.parameters()]).numpy()
    return {"loss": curve.train_loss, "val_acc": curve.val_score, "weights": weights}


RETRAIN = Recipe(epochs=3, batch=16, lr=0.05, weight_decay=1e-3, clip=1.0, mixup=0.2, ema=0.9, cutout=2)


@pytest.mark.parametrize("batch", [16, 13])
def test_two_ranks_train_like_one_process_whether_or_not_the_batch_divides_evenly(batch):
    """With augmentation, mixing of images, clipping and averaged weights."""
    first, second = together(retrain_in_parts, batch)
    alone = retrain_in_parts(ALONE, batch)
    assert first["loss"] == second["loss"] and first["val_acc"] == second["val_acc"]
    np.testing.assert_array_equal(first["weights"], second["weights"])
    np.testing.assert_allclose(first["loss"], alone["loss"], **CLOSE)
    np.testing.assert_allclose(first["weights"], alone["weights"], **CLOSE)


def search_with_batch_norm(team):
    cells = load("nasbench201", width=4, cells=1, classes=3, in_channels=1)
    staged = {"staging": Progressive(keep=(1.0, 0.6), depth=(1.0, 2.0), anew=True)}
    selected = {"selection": ByPerturbation(images=8)}
    return [
        searched(team, cells, "darts", images=32, parts=staged),
        searched(team, cells, "is-darts", images=32, parts=selected),
    ]


def test_ranks_agree_to_the_bit_where_each_normalises_its_own_images():
    """Stages replace the supernet on every rank; what rank 0 selects holds for all."""
    for ours, theirs in zip(*together(search_with_batch_norm), strict=True):
        assert_same(ours, theirs)


# -- what goes wrong ----------------------------------------------------------------------------------


def failures(target, *args, **options):
    """The class and the text of what each rank raised."""
    outcomes = [rank.outcome() for rank in started(target, *args, **options)]
    assert all(kind == "error" for kind, *_ in outcomes), outcomes
    return [(error, text) for _, error, text in outcomes]


def draw_apart(team):
    """Rank 2 takes another path than rank 0 in step 3."""
    steps = itertools.count()

    def stray(space, draw, image_shape):
        (genotype,) = uniform(space, draw, image_shape)
        strays = team.rank == 2 and next(steps) == 3
        return [(1 - min(1, genotype[0]), *genotype[1:])] if strays else [genotype]

    recipe = Recipe(epochs=1, batch=8, lr=0.05, weight_decay=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SAMPLINGS, "uniform", stray)
        train_shared(Supernet(make_toy()), make_task(), recipe, seed=3, team=team)


def learn_apart(team):
    """One bit of one weight of rank 1 is flipped after three steps."""

    def stop():
        if team.rank == 1 and next(steps) == 3:
            bits = next(network.parameters()).data.view(torch.int32).view(-1)
            bits[0] ^= 1
        return False

    steps, network = itertools.count(), make_plain_space().network((0, 1, 0))
    train(network, make_task(), RETRAIN, seed=3, stop=stop, team=team)


def see_other_data(team):
    ddp._GRACE_S = 0.5  # rank 0 has not failed and leaves no word
    searched(team, make_plain_space(), "darts", data_seed=team.rank)


@pytest.mark.parametrize(
    ("target", "size", "words"),
    [
        (draw_apart, 3, "train, step 3: rank 2 does not agree with rank 0"),
        (learn_apart, 2, "train, after step 6: rank 1 does not agree with rank 0"),
    ],
)
def test_a_rank_that_goes_another_way_is_named_by_all(target, size, words):
    (error, _), *others = found = failures(target, size=size)
    assert error == "RankError" and {name for name, _ in others} == {"DismissedError"}
    for _, text in found:
        assert words in text and "the same command goes on from the last checkpoint" in text


def test_other_data_on_another_rank_are_refused_before_the_first_step():
    (_, first), (error, second) = failures(see_other_data)
    assert error == "RankError" and "rank 1 has another data than rank 0" in second
    assert "another of 2 ranks is lost" in first


def refuse(team):
    """Rank 0 finds out what is wrong."""
    if team.leads:
        raise DataError("no such images")
    team.called()


def test_what_rank_0_says_need_not_be_said_again():
    assert failures(refuse) == [("DataError", "no such images"), ("DismissedError", "rank 0: no such images")]


def hang(team, at):
    """Rank 1 is stuck before a step, or where it takes over what rank 0 has at the start."""
    if team.rank == 1 and at == 0:
        time.sleep(60)
    steps = itertools.count(1)
    stop = lambda: bool(team.rank == 1 and next(steps) == at and time.sleep(60))  # noqa: E731
    train(make_plain_space().network((0, 1, 0)), make_task(), RETRAIN, seed=3, stop=stop, team=team)


@pytest.mark.parametrize("at", [0, 2])
def test_a_rank_that_hangs_is_waited_for_no_longer_than_the_limit(at):
    first, second = started(hang, at, limit_s=1)
    kind, error, text = first.outcome()
    second.process.kill()
    assert (kind, error) == ("error", "RankError")
    assert "another of 2 ranks is lost, or has not answered within 1 s" in text


def die(team, folder, victim, at):
    """One rank is killed before one of its steps."""
    ddp._GRACE_S = 0.5  # it leaves no word
    steps = itertools.count()

    def stop():
        if team.rank == victim and next(steps) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    checkpoints = Checkpoints(folder, every_s=0) if team.leads else None
    return searched(team, make_toy(), "darts", checkpoints=checkpoints, stop=stop)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return together(die, tmp_path_factory.mktemp("whole"), 0, -1)[0]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_all_and_the_next_start_ends_where_an_undisturbed_one_does(
    victim, undisturbed, tmp_path
):
    ranks = started(die, tmp_path, victim, 4)
    assert ranks[victim].outcome() == ("exit", -signal.SIGKILL)
    _, error, text = ranks[1 - victim].outcome()
    assert error == "RankError" and "another of 2 ranks is lost" in text
    for found in together(die, tmp_path, victim, -1):
        assert_same(found, undisturbed)


def stop_one(team, folder):
    """Only rank 1 is told to stop."""
    steps = itertools.count()
    checkpoints = Checkpoints(folder) if team.leads else None
    searched(
        team, make_toy(), "darts", checkpoints=checkpoints, stop=lambda: team.rank == 1 and next(steps) == 2
    )


def test_all_stop_after_the_same_step_when_one_is_told_to(tmp_path):
    stopped = ("Stopped", "search stopped after step 2 of 6")
    assert failures(stop_one, tmp_path / "stopped") == [stopped, stopped]
    step, _ = Checkpoints(tmp_path / "stopped").load()
    assert step == 2


def test_a_batch_is_divided_into_parts_of_at_least_two_images():
    for count in (6, 7, 8):
        teams, batch = [Team(rank, 3) for rank in range(3)], torch.arange(count)
        parts = [batch[team.part(count)] for team in teams]
        assert torch.equal(torch.cat(parts), batch)
        assert max(map(len, parts)) == teams[0].images(count) <= min(map(len, parts)) + 1
    with pytest.raises(
        ConfigError, match="a batch of 7 leaves 4 ranks fewer than 2 images each; use a batch"
    ):
        Team(0, 4).images(7)
