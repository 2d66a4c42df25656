"""Evaluations as CUDA graphs: replays tell what they stand for, and Python does next to nothing for them."""

import dataclasses

import pytest
import torch
from one_stage import one_stage
from tape import Calls, Refusing, Still, Tape

import nas
from nas.oneshot import health, methods
from nas.oneshot.bilevel import BilevelLoop
from nas.oneshot.paths import accuracies
from nas.oneshot.supernet import Supernet
from nas.seeding import rng
from nas.training import loop as training
from nas.training.accuracy import WORTH, Evaluation, Replayed, evaluate
from nas.training.recipe import Recipe
from nas.training.train import train

BATCH = 9
"""Images of a portion, of which there are enough to be captured; the last one is smaller."""


@pytest.fixture(scope="module")
def task():
    found = nas.load_task("digits", seed=0).reduced(400)
    assert len(found.val) >= (WORTH + 1) * BATCH and len(found.val) % BATCH
    return found


def counting(monkeypatch, network):
    """Counts how often Python runs a network."""
    calls, forward = [], network.forward

    def noting(*args, **settings):
        calls.append(1)
        return forward(*args, **settings)

    monkeypatch.setattr(network, "forward", noting)
    return calls


def test_one_graph_serves_all_portions_and_later_evaluations(monkeypatch, task):
    """The last portion is smaller than the others; weights and alphas move in place between evaluations."""
    torch.manual_seed(0)
    supernet, tape = Supernet(one_stage(4)), Tape()
    evaluation = Evaluation(supernet, task, batch=BATCH, record=tape, form=lambda: tuple(supernet.alive))
    for number in range(3):
        expected = evaluate(supernet, task, task.val, batch=BATCH)
        calls = counting(monkeypatch, supernet)
        assert evaluation.of(task.val) == expected
        # Once as it is, once to be captured, once to be compared; after that there are replays only.
        assert (len(calls), tape.captured) == (0 if number else 3, 1)
        monkeypatch.undo()
        with torch.no_grad():
            for parameter in supernet.parameters():
                parameter.mul_(0.9).add_(0.01)


def test_options_that_drop_out_are_captured_anew(task):
    torch.manual_seed(0)
    supernet, tape = Supernet(one_stage(4)), Tape()
    evaluation = Evaluation(supernet, task, batch=BATCH, record=tape, form=lambda: tuple(supernet.alive))
    for kept in (5, 3):
        supernet.keep([options[:kept] for options in supernet.alive])
        assert evaluation.of(task.val) == evaluate(supernet, task, task.val, batch=BATCH)
    assert tape.captured == 2


def test_few_portions_are_not_captured(task):
    tape = Tape()
    network = one_stage(4).network(one_stage(4).sample(rng(0)))
    Evaluation(network, task, batch=len(task.val), record=tape).of(task.val)
    assert tape.captured == 0


def test_portions_halve_where_memory_runs_out(task):
    """What was set up for larger ones is not asked of the device again."""
    network, tape, sizes = one_stage(4).network(one_stage(4).sample(rng(0))).eval(), Tape(), []
    forward = network.forward

    def scarce(x):
        sizes.append(len(x))
        if len(x) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(x)

    expected = evaluate(network, task, task.val, batch=4)
    network.forward = scarce
    loss, share = Evaluation(network, task, batch=BATCH, record=tape).of(task.val)
    assert sizes[:2] == [9, 4] and tape.captured == 1
    assert share == expected[1] and loss == pytest.approx(expected[0])


def test_an_error_of_the_network_is_raised(task):
    def broken(_):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Replayed(broken, Tape())(task.val.x[:4])


def test_architectures_on_shared_weights_by_replays(task):
    torch.manual_seed(0)
    space = one_stage(4)
    supernet, tape = Supernet(space).train(), Tape()
    for genotypes in ([space.sample(rng(0))], [space.sample(rng(n)) for n in range(2)]):
        settings = {"calibration": 8, "seed": 1, "images": 16 * len(genotypes)}
        plain = accuracies(supernet, genotypes, task, **settings)
        assert accuracies(supernet, genotypes, task, record=tape, **settings) == plain
    assert tape.captured == 2
    assert supernet.training


@pytest.fixture
def small_portions(monkeypatch):
    """Evaluations of trainings in portions of a few images."""
    made = Evaluation.__init__

    def small(evaluation, network, task, **settings):
        made(evaluation, network, task, **{**settings, "batch": BATCH})

    monkeypatch.setattr(Evaluation, "__init__", small)


@pytest.mark.usefixtures("small_portions")
def test_a_training_evaluates_by_replays(monkeypatch, task):
    """On averaged weights, which take the place of the others for the time."""
    found, tape, space = [], Tape(), one_stage(4)
    recipe = Recipe(epochs=3, batch=32, lr=0.05, weight_decay=1e-3, ema=0.9)
    for record in (Refusing(), tape):
        monkeypatch.setattr(training, "recorder", lambda _, record=record: record)
        torch.manual_seed(0)
        network = space.network(space.sample(rng(0)))
        found.append(train(network, task, recipe, seed=1, evaluate_on=task.val))
    assert tape.captured == 2  # the step, and the evaluation
    assert dataclasses.replace(found[0], seconds=()) == dataclasses.replace(found[1], seconds=())


@pytest.mark.usefixtures("small_portions")
def test_a_search_is_validated_by_replays(monkeypatch, task):
    monkeypatch.setattr(training, "recorder", lambda _: Still())
    monkeypatch.setattr(BilevelLoop, "images_at_once", BATCH)
    recipe = Recipe(epochs=4, batch=16, lr=0.05, weight_decay=1e-3)
    supernet = Supernet(one_stage(4))
    loop = BilevelLoop(supernet, task, dataclasses.replace(methods.darts(), weights=recipe), seed=0)
    loop.evaluation.of(task.val)
    calls = counting(monkeypatch, supernet)
    with Calls() as counted:
        loop.evaluation.of(task.val)
    assert not calls
    # Images in, and loss and hits of the logits; 2 begin, 2 are read back.
    portions = -(-len(task.val) // BATCH)
    assert counted.counts.total() <= 9 * portions + 6, counted.counts
    assert counted.counts["aten::_local_scalar_dense"] == 2
    mixes = []
    monkeypatch.setattr(supernet, "mix", lambda *args: mixes.append(1) or Supernet.mix(supernet, *args))
    health.preferred_accuracy(loop, supernet.genotype(), 0)
    assert len(mixes) == 5  # of the portion that leads; of another, captured, and twice to be compared
