"""Captured steps: replayed, they are the steps themselves."""

import copy
import dataclasses
import warnings

import pytest
import torch
from one_stage import PATH, one_stage
from tape import Calls, Refusing, Still, Tape

import nas
from nas.errors import TrialError
from nas.oneshot import methods
from nas.oneshot.bilevel import BilevelLoop
from nas.oneshot.course import Course
from nas.oneshot.differentiable import search
from nas.oneshot.method import Method
from nas.oneshot.regularizers import ZeroOne
from nas.oneshot.relaxations import Dirichlet
from nas.oneshot.stages import Progressive
from nas.oneshot.supernet import Supernet
from nas.seeding import rng
from nas.training import loop as training
from nas.training.captured import Captured, tensors_in
from nas.training.loop import Loop
from nas.training.recipe import Recipe
from nas.training.train import train


def counting(record):
    """A step that adds its input to a total, and does it for the given inputs."""
    total, x = torch.zeros(3), torch.zeros(3)

    def step():
        total.add_(x * 2)

    captured = Captured(step, lambda: [total], record)
    return total, lambda key, value: captured.run(key, lambda: x.fill_(value)), captured


def test_a_step_is_run_captured_compared_and_replayed():
    tape = Tape()
    total, run, _ = counting(tape)
    for number in range(1, 7):
        run("key", number)
        assert total.tolist() == [number * (number + 1.0)] * 3
    assert (tape.captured, tape.replayed) == (1, 4)


def test_a_capture_that_succeeds_does_not_look_through_all_objects_of_the_process(monkeypatch):
    """Half a second, once or twice in every epoch."""
    monkeypatch.setattr("nas.devices.gc.collect", lambda: pytest.fail("looked through all objects"))
    _, run, _ = counting(Tape())
    for number in range(4):
        run("key", number)


def test_another_key_is_captured_anew_and_none_is_not_captured():
    tape = Tape()
    total, run, _ = counting(tape)
    for key in ("a", "a", "b", "b", "b", None, None):
        run(key, 1)
    assert total.tolist() == [14.0] * 3
    assert tape.captured == 2


def test_without_a_recorder_steps_run_as_they_are():
    total, run, captured = counting(None)
    run("key", 1)
    assert total.tolist() == [2.0] * 3
    assert not captured.captures


def nothing():
    """A step that begins with nothing set."""


def test_a_step_that_waits_for_the_device_runs_as_it_is():
    total, x = torch.zeros(()), torch.ones(2)
    captured = Captured(lambda: total.add_(x.sum().item()), lambda: [total], Tape())
    captured.run("key", nothing)
    with pytest.warns(UserWarning, match="without a CUDA graph: it cannot be captured: aten::_local_scalar"):
        captured.run("key", nothing)
    captured.run("key", nothing)
    assert total == 6


def test_a_replay_that_differs_is_found_and_leaves_the_state_of_the_step():
    total, x, factor = torch.zeros(()), torch.ones(2), [1.0]

    def step():
        total.add_(x.sum() * factor[0])
        factor[0] *= 2

    captured = Captured(step, lambda: [total], Tape())
    captured.run("key", nothing)
    captured.run("key", nothing)
    assert total == 6
    with pytest.warns(UserWarning, match="its replay differs by 5.0e-01 of what it changes"):
        captured.run("key", nothing)
    assert total == 14
    assert not captured.captures


def test_the_streams_of_a_step_begin_where_they_are_set():
    seen, at = torch.zeros(6, 2), torch.zeros(1, dtype=torch.int64)
    own = torch.Generator()

    def step():
        seen.index_copy_(0, at, torch.cat([torch.rand(1), torch.rand(1, generator=own)])[None])

    def begin(number):
        torch.manual_seed(number % 2)
        own.manual_seed(7 + number % 2)
        at.fill_(number)

    captured = Captured(step, lambda: [seen], Tape(), [own])
    for number in range(6):
        captured.run("key", lambda number=number: begin(number))
    assert seen[::2].tolist() == [seen[0].tolist()] * 3
    assert seen[1::2].tolist() == [seen[1].tolist()] * 3
    assert len(set(seen[:2].flatten().tolist())) == 4


# -- whole trainings -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task():
    return nas.load_task("digits", seed=0).reduced(400)


def losses_and_state(loop, advance, steps):
    for _ in range(steps):
        advance()
    return [tensor.clone() for tensor in loop.moved()]


def assert_equal(one, other):
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["nasbench201", "darts"])
def test_a_captured_training_is_the_training(monkeypatch, task, name):
    """With everything that changes on the way: rate, drop-path, cutout, mixup, clipping, averages."""
    space = nas.load(name, in_channels=1, classes=10, width=4, cells=3 if name == "darts" else 1)
    recipe = Recipe(
        epochs=3, batch=32, lr=0.05, weight_decay=1e-3, warmup_epochs=0.5, clip=1.0, mixup=0.3, ema=0.9,
        drop_path=0.3 if name == "darts" else 0.0, cutout=2, label_smoothing=0.1,
    )  # fmt: skip
    found = []
    for record in (Refusing(), Tape()):
        monkeypatch.setattr(training, "recorder", lambda _, record=record: record)
        torch.manual_seed(0)
        network = space.network(space.sample(rng(0)))
        train(network, task, recipe, seed=1)
        found.append(list(network.state_dict().values()))
    assert record.captured == (2 if name == "darts" else 1)
    assert record.replayed > record.captured
    assert_equal(*found)


METHODS = {
    "darts": methods.darts, "snas": methods.snas, "drnas": methods.drnas, "pcdarts": methods.pcdarts,
    "fairdarts": methods.fairdarts, "beta-darts": methods.beta_darts, "gaea": methods.gaea,
    "is-darts": methods.is_darts, "darts2": methods.darts2, "sdarts-rs": methods.sdarts_rs,
    "sdarts-adv": lambda: methods.sdarts_adv(steps=2), "oles": lambda: methods.oles(steps=2),
}  # fmt: skip


def bilevel(task, method, space=None):
    torch.manual_seed(0)
    parts = 2 if method.edge_norm else 1
    supernet = Supernet(
        space or one_stage(8), relaxation=method.relaxation, parts=parts, edge_norm=method.edge_norm
    )
    return BilevelLoop(supernet, task, method, seed=3)


def with_recipe(method, recipe):
    return dataclasses.replace(method, weights=recipe)


@pytest.mark.parametrize("name", METHODS)
def test_a_captured_search_is_the_search(monkeypatch, task, name):
    recipe = Recipe(epochs=4, batch=32, lr=0.05, weight_decay=1e-3, clip=5.0)
    method, found = with_recipe(METHODS[name](), recipe), []
    for record in (Refusing(), Tape()):
        monkeypatch.setattr(training, "recorder", lambda _, record=record: record)
        loop = bilevel(task, method)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for step in range(8):
                if step == 6:
                    loop.supernet.keep([options[:-1] for options in loop.supernet.alive])
                loop.advance()
        found.append(list(loop._moved_by_both()))
    # Once before the options are fewer and once after, the steps of alphas and weights in one.
    assert record.captured == 2
    assert record.replayed == 4
    assert_equal(*found)


@pytest.mark.parametrize("name", ["darts", "darts2", "sdarts-adv", "oles"])
def test_a_replayed_step_looks_through_no_modules(monkeypatch, task, name):
    """Of a supernet there are thousands, which takes Python longer than a GPU takes for the step."""
    monkeypatch.setattr(training, "recorder", lambda _: Tape())
    recipe = Recipe(epochs=4, batch=32, lr=0.05, weight_decay=1e-3)
    loop = bilevel(task, with_recipe(METHODS[name](), recipe))
    for _ in range(3):
        loop.advance()

    for walk in ("named_modules", "named_parameters", "named_buffers", "state_dict"):
        monkeypatch.setattr(torch.nn.Module, walk, refuse)
    loop.advance()


STEPS_ALONE = {"aten::fill_", "aten::copy_"}
"""What a step sets for its graph: rate, progress, share of an average; images, architectures."""


def refuse(*_, **__):
    raise AssertionError("modules were looked through")


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_replayed_step_of_a_training_is_little_but_its_graph(monkeypatch, task, ema):
    """Whatever the network is made of: no walk through its modules, a few launches, nothing that waits."""
    monkeypatch.setattr(training, "recorder", lambda _: Still())
    space = nas.load("darts", in_channels=1, classes=10, width=4, cells=3)
    network = space.network(space.sample(rng(0)))
    recipe = Recipe(
        epochs=2, batch=16, lr=0.05, weight_decay=1e-3, clip=1.0, mixup=0.3, drop_path=0.2, cutout=2, ema=ema
    )  # fmt: skip
    loop = Loop(
        network, task, recipe, seed=0, split=task.train, forward=lambda n, x, _: n(x), form=lambda: ()
    )
    for _ in range(3):
        loop.advance()
    for walk in ("named_modules", "named_parameters", "named_buffers", "state_dict"):
        monkeypatch.setattr(torch.nn.Module, walk, refuse)
    with Calls() as calls:
        loop.advance()
    assert set(calls.counts) <= STEPS_ALONE
    assert calls.counts.total() <= 3, calls.counts


@pytest.mark.parametrize("name", METHODS)
def test_a_replayed_step_of_a_search_is_little_but_its_graph(monkeypatch, task, name):
    monkeypatch.setattr(training, "recorder", lambda _: Still())
    loop = bilevel(task, with_recipe(METHODS[name](), Recipe(epochs=4, batch=16, lr=0.05, weight_decay=1e-3)))
    for _ in range(3):
        loop.advance()
    with Calls() as calls:
        loop.advance()
    assert set(calls.counts) <= STEPS_ALONE
    assert calls.counts.total() <= 4 + (METHODS[name]().order == 2), calls.counts


def test_a_captured_search_goes_on_where_it_was_restored(monkeypatch, task):
    monkeypatch.setattr(training, "recorder", lambda _: Tape())
    method = with_recipe(methods.darts(), Recipe(epochs=4, batch=32, lr=0.05, weight_decay=1e-3))
    loop = bilevel(task, method)
    for _ in range(4):
        loop.advance()
    state = copy.deepcopy(loop.state())
    for _ in range(4):
        loop.advance()
    other = bilevel(task, method)
    for _ in range(5):
        other.advance()
    other.restore(4, state)
    for _ in range(4):
        other.advance()
    assert_equal(list(loop._moved_by_both()), list(other._moved_by_both()))


class Apart(Tape):
    """Refuses to capture what draws two batches."""

    def capture(self, run, generators=()):
        if run.__name__ == "_move_both":
            raise RuntimeError("too much at once")
        return super().capture(run, generators)


def test_steps_that_are_not_captured_in_one_are_captured_apart(monkeypatch, task):
    method, found = with_recipe(methods.drnas(), Recipe(epochs=4, batch=32, lr=0.05, weight_decay=1e-3)), []
    for record in (Refusing(), Apart()):
        monkeypatch.setattr(training, "recorder", lambda _, record=record: record)
        loop = bilevel(task, method)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(8):
                loop.advance()
        found.append(list(loop._moved_by_both()))
    assert ["captured apart, not in one CUDA graph: it" in str(w.message) for w in said] == [True]
    assert (record.captured, record.replayed) == (2, 8)
    assert_equal(*found)


@pytest.mark.parametrize("drop_path", [0.0, 0.4])
def test_streams_in_graphs_give_the_numbers_of_steps_as_they_are(monkeypatch, task, drop_path):
    """Mixtures are drawn in three places; dropout of paths and of identities, crops and mixup."""
    recipe = Recipe(epochs=4, batch=32, lr=0.05, weight_decay=1e-3, mixup=0.3, drop_path=drop_path)
    method, found = Method("m", recipe, relaxation=Dirichlet(), regularizers=(ZeroOne(1.0),)), []
    # A share that is a tensor draws other numbers than one that is not.
    for record in (Refusing(), Tape()):
        monkeypatch.setattr(training, "recorder", lambda _, record=record: record)
        loop = bilevel(task, method)
        loop.supernet.drop_skips(0.3)
        for _ in range(9):
            loop.advance()
        found.append(list(loop.supernet.parameters()))
    assert record.replayed > 3
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_one_capture_serves_while_the_dropout_of_identities_fades(monkeypatch, task):
    """As in P-DARTS, from epoch to epoch; not where it begins or ends, or options drop out."""
    method, found = with_recipe(methods.pdarts(), Recipe(epochs=4, batch=32, lr=0.05, weight_decay=1e-3)), []
    for record in (Refusing(), Tape()):
        monkeypatch.setattr(training, "recorder", lambda _, record=record: record)
        loop = bilevel(task, method)
        for step in range(16):
            if step % 4 == 0:
                loop.supernet.drop_skips(0.7 if step == 0 else 0.7 / step)
            if step == 12:
                loop.supernet.keep([options[:-1] for options in loop.supernet.alive])
            loop.advance()
        found.append(list(loop._moved_by_both()))
    assert (record.captured, record.replayed) == (2, 12 - 2 + 4 - 2)
    assert_equal(*found)


def test_a_search_in_stages_is_captured_once_for_each_of_its_forms(monkeypatch, task):
    """A stage has two: while the weights move alone, and after that; validation is captured, too."""
    forms, tape = [], Tape()
    monkeypatch.setattr(training, "recorder", lambda _: tape)
    recipe = Recipe(epochs=12, batch=32, lr=0.05, weight_decay=1e-3)
    progressive = Progressive(keep=(1.0, 0.6), depth=(1.0, 2.0), skip_dropout=(0.3, 0.6), anew=True)
    method = dataclasses.replace(methods.pdarts(), weights=recipe, staging=progressive, warmup=0.4)
    begin = Course.begin_epoch

    def beginning(course):
        begin(course)
        forms.append((course.stage, course.loop.alphas_move))

    monkeypatch.setattr(Course, "begin_epoch", beginning)
    search(nas.load(PATH), task, method, seed=0)
    assert len(forms) > 12 and len(set(forms)) == 4
    assert tape.captured == 4


def freezing(monkeypatch, task, record):
    """A search that freezes a few operations in every second step."""
    monkeypatch.setattr(training, "recorder", lambda _: record)
    recipe = Recipe(epochs=4, batch=32, lr=0.05, weight_decay=1e-3, clip=5.0)
    space = nas.load("nasbench201", in_channels=1, classes=10, width=8, cells=1)
    return bilevel(task, with_recipe(methods.oles(steps=2, threshold=-0.02), recipe), space)


def test_one_capture_serves_while_more_and_more_operations_are_frozen(monkeypatch, task):
    found, frozen = [], []
    for record in (Refusing(), Tape()):
        loop, counts = freezing(monkeypatch, task, record), []
        for _ in range(8):
            loop.advance()
            counts.append(loop.frozen)
        found.append([*loop._moved_by_both()])
        frozen.append(counts)
    assert (record.captured, record.replayed) == (1, 6)
    assert frozen[0] == frozen[1]
    assert frozen[1][2] < frozen[1][3] < frozen[1][5]  # by replays
    assert_equal(*found)


def test_a_freezing_search_goes_on_where_it_was_restored(monkeypatch, task):
    """In the middle of a window, before and after steps were captured."""
    whole = freezing(monkeypatch, task, Tape())
    for step in range(8):
        if step == 5:
            state = copy.deepcopy(whole.state())
        whole.advance()
    assert len(state["freezer"]["frozen"]) < whole.frozen and state["freezer"]["steps"] == 1
    for earlier in (0, 4):
        other = freezing(monkeypatch, task, Tape())
        for _ in range(earlier):
            other.advance()
        other.restore(5, copy.deepcopy(state))
        for _ in range(3):
            other.advance()
        assert other.state()["freezer"]["frozen"] == whole.state()["freezer"]["frozen"]
        assert_equal(list(tensors_in(whole.state())), list(tensors_in(other.state())))


def test_a_freezing_search_whose_steps_are_not_captured_in_one_counts_right(monkeypatch, task):
    found = []
    for record in (Refusing(), Apart()):
        loop = freezing(monkeypatch, task, record)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for step in range(8):
                loop.alphas_move = step not in (5, 6)
                loop.advance()
        found.append([*loop._moved_by_both()])
    assert ["captured apart, not in one CUDA graph: it" in str(w.message) for w in said] == [True]
    assert_equal(*found)


def test_what_reads_numbers_back_is_not_captured(monkeypatch, task):
    tape = Tape()
    monkeypatch.setattr(training, "recorder", lambda _: tape)
    method = with_recipe(methods.gdas(), Recipe(epochs=4, batch=32, lr=0.05, weight_decay=1e-3))
    loop = bilevel(task, method)
    for _ in range(4):
        loop.advance()
    assert tape.captured == 0


def test_a_recipe_can_refuse(monkeypatch, task):
    monkeypatch.setattr(training, "recorder", lambda _: pytest.fail("asked to capture"))
    space = nas.load("nasbench201", in_channels=1, classes=10, width=4, cells=1)
    network = space.network(space.sample(rng(0)))
    train(network, task, Recipe(epochs=1, batch=32, lr=0.05, weight_decay=0.0, graph=False), seed=1)


def test_an_error_of_the_step_is_not_taken_for_one_of_capturing():
    def step():
        raise TrialError("nan", "no")

    captured = Captured(step, lambda: [], Tape())
    with pytest.raises(TrialError, match="no"):
        captured.run("key", nothing)
