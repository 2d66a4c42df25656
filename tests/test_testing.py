"""Every mistake a plug-in author can make is named, and what is right passes."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from nas.errors import ExhaustedError, SpaceError
from nas.searchers.evolution import RegularizedEvolution
from nas.searchers.searcher import RandomSearch
from nas.space.choosers import Chooser, Zero
from nas.space.loading import load
from nas.space.space import Space
from nas.testing import SearcherError, check_searcher, check_space

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(kernel=3, c_out=3, stride=1):
    return nn.Conv2d(3, c_out, kernel, stride, padding=kernel // 2)


OPTIONS = {"id": nn.Identity, "conv": conv}


def head(width=3, classes=5):
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


def mine(layers):
    """The space of networks whose layers a function of the chooser gives."""
    return Space("mine", lambda choose: nn.Sequential(*layers(choose)))


def stack(*names, options=OPTIONS, project=None):
    """A chain of decisions of the same options."""

    def build(choose: Chooser) -> nn.Module:
        return nn.Sequential(*(choose.op(name, options) for name in names), *head())

    return Space("mine", build, project) if project else Space("mine", build)


def chain(depths=(1, 2, 3), kernels=(1, 3, 5)):
    def build(choose: Chooser) -> nn.Module:
        width = choose.value("width", [4, 8])
        blocks = [
            nn.Sequential(nn.Conv2d(width, width, k, padding=k // 2), nn.BatchNorm2d(width), nn.ReLU())
            for k in (choose.value(f"kernel{i}", kernels) for i in range(choose.value("depth", depths)))
        ]
        return nn.Sequential(nn.Conv2d(3, width, 1), *blocks, *head(width))

    return Space("chain", build)


def check(space, *, words, **settings):
    """Checks `space`, which must fail with a message that has all `words`."""
    with pytest.raises(SpaceError) as caught:
        check_space(space, X, samples=6, **settings)
    text = str(caught.value)
    assert text.startswith(f"space {space.name!r}")
    for word in words:
        assert word in text, text
    assert "\n" not in text


# -- what is right ------------------------------------------------------------------------------------


def test_a_bundled_space_passes():
    check_space(load("nasbench201", width=4, cells=1), X, samples=4, supernet=True)


def test_spaces_of_values_of_hostile_names_and_with_an_auxiliary_head_pass():
    before = torch.random.get_rng_state()
    check_space(chain(), X, samples=3)
    check_space(chain(depths=(3, 2, 1)), X, samples=3)  # decisions that are asked after the first option
    space = load("darts", width=4, cells=3, image_size=24, auxiliary=True)
    check_space(space, torch.randn(2, 3, 24, 24, generator=torch.Generator()), samples=1, supernet=False)
    names = ("<script>alert(1)</script>", "a'b\"c", "名前 {0} %s \\", "../../x")
    check_space(stack(*names, options={"'; DROP": nn.Identity, "<b>&": conv}), X, samples=3)
    # A dead architecture among living ones is no fault.
    check_space(stack("a", options={"none": lambda: Zero(3), "conv": conv}), X)
    assert torch.equal(before, torch.random.get_rng_state()), "nothing leaks into the global stream"


def test_channels_that_a_space_does_not_take_from_the_task_are_told():
    conv = {str(kernel): lambda k=kernel: nn.Conv2d(3, 3, k, padding="same") for kernel in (1, 3)}
    space = replace(stack("a", "b", options=conv), origin="own.py:make")
    words = "to have 3 channels, but got 1 channels instead; let own.py:make take an argument 'in_channels'"
    with pytest.raises(SpaceError, match=words):
        check_space(space, X[:, :1])


# -- what is wrong ------------------------------------------------------------------------------------


def hidden(choose):
    if choose.value("a", [0, 1]) == choose.value("b", [0, 1]) == 0:
        return [choose.op("kernel", OPTIONS), *head()]
    return head()


def counting():
    count = itertools.count()
    return mine(lambda choose: [choose.op("a", OPTIONS), choose.op(f"b{next(count)}", OPTIONS), *head()])


def widening():
    count = itertools.count()

    def layers(choose):
        width = 3 + next(count) % 2
        return [choose.op("a", OPTIONS), nn.Conv2d(3, width, 1), *head(width)]

    return mine(layers)


def one_module():
    def layers(choose):
        one = conv()
        return [choose.op("a", {"x": lambda: one, "y": lambda: one}), *head()]

    return mine(layers)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


STEM = conv()
ZEROS = {"none": lambda: Zero(3), "nothing": lambda: Zero(3)}
WRONG = {
    "hidden decision": (lambda: mine(hidden), ["decision 'kernel'", "only asked after some choices", "last"]),
    "differs each time": (counting, ["listed twice", "b1", "build must depend on nothing"]),
    "other layers each time": (
        widening,
        ["architecture {'a'", "built twice, it differs in", "pure function"],
    ),
    "project not idempotent": (
        lambda: stack("a", "b", project=lambda ds, scores: tuple(1 - int(row.argmax()) for row in scores)),
        ["project is not idempotent", "{'a':"],
    ),
    "the odd option is the first": (
        lambda: stack("a", options={"none": lambda: Zero(3, 2), **OPTIONS}),
        ["option 'none'", "but option 'id' gave (4, 3, 8, 8)"],
    ),
    "candidate that gives no tensor": (
        lambda: stack("a", options={**OPTIONS, "pair": Pair}),
        ["option 'pair'", "gave tuple", "wanted a tensor"],
    ),
    "candidate that changes its input": (
        lambda: stack("a", options={**OPTIONS, "relu": lambda: nn.ReLU(inplace=True)}),
        ["decision 'a', option 'relu'", "in place"],
    ),
    "value that breaks the network": (
        lambda: mine(lambda choose: [nn.Conv2d(3, 3, choose.value("kernel", [3, 40, 5])), *head()]),
        ["values {'kernel': '40'}", "Kernel size can't be greater"],
    ),
    "classes that vary": (
        lambda: mine(lambda choose: [choose.op("a", OPTIONS), *head(3, choose.value("classes", [2, 5]))]),
        ["[2, 5] logits", "one number of classes"],
    ),
    "zeros only": (
        lambda: stack("a", "b", options=ZEROS),
        ["no gradient reaches any parameter", "zeros"],
    ),
    "one module for two options": (one_module, ["option 'y'", "same module object", "option 'x'"]),
    "layer made outside build": (
        lambda: mine(lambda choose: [STEM, choose.op("a", OPTIONS), *head()]),
        ["both share ['0.weight', '0.bias']", "inside build"],
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_broken_promise_of_a_space_is_named(mistake):
    make, words = WRONG[mistake]
    check(make(), words=words)


def test_a_supernet_of_values_is_refused_where_it_is_demanded():
    check(chain(), words=["no supernet", "depth", "kernel0"], supernet=True)


# -- searchers ----------------------------------------------------------------------------------------


class Wrong(RandomSearch):
    """Random search with one fault."""

    def __init__(self, fault):
        object.__setattr__(self, "fault", fault)

    def ask(self, space, history, rng):
        return self.fault(space, history, rng) or super().ask(space, history, rng)


def drop_metrics(space, history, rng):
    done = [t for t in history if t.state == "done"]
    if done:
        done[0].metrics.clear()


def give_up(space, history, rng):
    if len(history) == 3:
        raise ExhaustedError("enough")


TINY = stack("a", "b", "c")


@pytest.mark.parametrize("space", [TINY, chain()])
def test_a_searcher_passes(space):
    check_searcher(RegularizedEvolution(4, 2), space)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (drop_metrics, "changed the history"),
        (give_up, "gave up after 3 of 8 architectures"),
        (lambda space, history, rng: (1,), "3 decisions, got a genotype of 1"),
        (lambda space, history, rng: tuple(np.zeros(3, int)), "plain ints"),
        (lambda space, history, rng: history[0].genotype, "failed with no trials in the history: IndexError"),
    ],
)
def test_faulty_searchers(fault, words):
    with pytest.raises(SearcherError, match="searcher Wrong") as caught:
        check_searcher(Wrong(fault), TINY, trials=8)
    assert words in str(caught.value)


def test_searcher_that_never_ends():
    def sample(space, history, rng):
        seen = {t.genotype for t in history}
        return next((g for g in space.enumerate() if g not in seen), (0, 0))

    with pytest.raises(SearcherError, match=r"all 4 have been tried; raise nas\.errors\.ExhaustedError"):
        check_searcher(Wrong(sample), chain(), trials=3)
