"""Few-shot splitting: as many supernets as options, each trained on its own architectures only."""

import pytest
import torch
from one_stage import one_stage

from nas.data.task import load_task
from nas.errors import ConfigError, Stopped
from nas.oneshot import fewshot
from nas.oneshot.path_training import Sharing
from nas.oneshot.supernet import Supernet
from nas.space.loading import load
from nas.training.checkpoint import Checkpoints
from nas.training.recipe import Recipe

SPACE = one_stage()
TASK = load_task("digits").reduced(96)
RECIPE = Recipe(epochs=4, batch=32, lr=0.05, weight_decay=1e-4)


def supernet(space=SPACE):
    torch.manual_seed(0)
    return Supernet(space).train()


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def test_without_splits_there_is_one_supernet():
    net = supernet()
    shared = fewshot.train(net, TASK, RECIPE, Sharing(), seed=0)
    assert shared.split == () and shared.of((3,) * 6) is net and shared.seconds > 0


def test_a_split_makes_a_supernet_for_each_option():
    epochs = []
    shared = fewshot.train(supernet(), TASK, RECIPE, Sharing(splits=1), seed=0, on_epoch=epochs.append)
    assert len(shared.split) == 1 and len(shared.supernets) == 5
    assert len(epochs) == 2 + 5  # half of the epochs together, and at least one for each part
    decision = shared.split[0]
    nets = {option: shared.of((*(0,) * decision, option, *(0,) * (5 - decision))) for option in range(5)}
    assert len({id(net) for net in nets.values()}) == 5


def test_each_part_trains_its_own_option_only():
    trained = {}

    def until_split(net):
        return fewshot.train(net, TASK, RECIPE, Sharing(splits=1), seed=0)

    shared = until_split(supernet())
    name = SPACE.decisions[shared.split[0]].name
    for option in (2, 3):
        part = shared.supernets[(option,)]
        trained[option] = [
            [p.detach().clone() for p in mixed.ops[o].parameters()]
            for mixed in part.mixed()
            if mixed.decision == name
            for o in (2, 3)
        ]
    # In the part of option 2 the weights of option 3 are as they were at the split, and so in that of 4.
    at_split = [
        [p for p in mixed.ops[o].parameters()]
        for mixed in shared.supernets[(4,)].mixed()
        if mixed.decision == name
        for o in (2, 3)
    ]
    for i, (two, three, common) in enumerate(zip(trained[2], trained[3], at_split, strict=True)):
        same_two = all(torch.equal(a, b) for a, b in zip(two, common, strict=True))
        same_three = all(torch.equal(a, b) for a, b in zip(three, common, strict=True))
        assert (same_two, same_three) == ((False, True) if i % 2 == 0 else (True, False))


def test_the_decision_that_disagrees_most_is_split():
    net = supernet()
    scores = [fewshot.disagreement(net, TASK, i, seed=0) for i in range(6)]
    assert fewshot.choose_split(net, TASK, 1, seed=0) == (scores.index(max(scores)),)
    assert all(0 <= s <= 2 for s in scores) and len(set(scores)) > 1
    two = fewshot.choose_split(net, TASK, 2, seed=0)
    assert len(two) == 2 and set(two) == {i for i in range(6) if scores[i] >= sorted(scores)[-2]}


def test_options_that_are_the_same_do_not_disagree():
    from torch import nn

    from nas.space.cell import Cell
    from nas.space.ops import candidates
    from nas.space.space import Space

    def build(choose):
        same = candidates(["skip_connect"], 4, 4)["skip_connect"]

        def edge(i, j):
            options = (
                {"a": same, "b": same}
                if (i, j) == (0, 1)
                else candidates(["nor_conv_1x1", "nor_conv_3x3"], 4, 4)
            )
            return choose.op(f"{i}->{j}", options)

        cell = Cell("cell", 1, 2, edge)
        return nn.Sequential(
            nn.Conv2d(1, 4, 1), cell, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
        )

    net = supernet(Space("same", build))
    assert fewshot.disagreement(net, TASK, 0, seed=0) == pytest.approx(0, abs=1e-4)
    assert fewshot.choose_split(net, TASK, 1, seed=0) != (0,)


def test_stopped_and_resumed_is_uninterrupted(tmp_path):
    whole = fewshot.train(supernet(), TASK, RECIPE, Sharing(splits=1), seed=0)

    def folder(name):
        return Checkpoints(tmp_path / name)

    for steps in (1, 3, 1):
        asked = iter([False] * steps + [True] * 1000)
        with pytest.raises(Stopped):
            fewshot.train(
                supernet(),
                TASK,
                RECIPE,
                Sharing(splits=1),
                seed=0,
                checkpoints=folder,
                stop=lambda a=asked: next(a),
            )
    resumed = fewshot.train(supernet(), TASK, RECIPE, Sharing(splits=1), seed=0, checkpoints=folder)
    assert resumed.split == whole.split
    for chosen, net in whole.supernets.items():
        found = resumed.supernets[chosen].state_dict()
        for name, value in state(net).items():
            assert torch.equal(value, found[name]), (chosen, name)


def test_parts_are_saved_by_what_they_were_split_by(tmp_path):
    fewshot.train(
        supernet(), TASK, RECIPE, Sharing(splits=1), seed=0, checkpoints=lambda n: Checkpoints(tmp_path / n)
    )
    split = fewshot.train(supernet(), TASK, RECIPE, Sharing(splits=1), seed=0).split[0]
    assert {p.name for p in tmp_path.iterdir()} == {"supernet"} | {f"part-{split}.{o}" for o in range(5)}


def test_what_cannot_be_split_is_refused_before_anything_is_trained():
    told = []
    with pytest.raises(ConfigError, match="splits is 7, but space 'one_stage' has 6 decisions"):
        fewshot.train(supernet(), TASK, RECIPE, Sharing(splits=7), seed=0, on_epoch=told.append)
    assert told == []


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ConfigError, match=r"forbids some combinations; set sharing\.splits to 0"):
        fewshot.choose_split(supernet(load("darts", width=4, cells=3, in_channels=1)), TASK, 1, seed=0)
    with pytest.raises(ConfigError, match="splits is 7, but space 'one_stage' has 6 decisions"):
        fewshot.choose_split(supernet(), TASK, 7, seed=0)
