"""Every mistake a plug-in author can make is named, and what is right passes."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from nas.errors import ConfigError, ExhaustedError, SpaceError
from nas.searchers import RandomSearch, RegularizedEvolution
from nas.space.choosers import Chooser
from nas.space.loading import bundled, load
from nas.space.ops import Zero, candidates
from nas.space.space import Space
from nas.testing import SearcherError, check_searcher, check_space

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(kernel=3, c_out=3, stride=1):
    return nn.Conv2d(3, c_out, kernel, stride, padding=kernel // 2)


OPTIONS = {"id": nn.Identity, "conv": conv}


def head(width=3, classes=5):
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


def stack(*names, options=OPTIONS, project=None, space=Space):
    """A chain of decisions of the same options."""

    def build(choose: Chooser) -> nn.Module:
        return nn.Sequential(*(choose.op(name, options) for name in names), *head())

    return space("mine", build, project) if project else space("mine", build)


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


@pytest.mark.parametrize("name", bundled())
def test_bundled_spaces_pass(name):
    small = {
        "darts": {"width": 4, "cells": 3},
        "nasbench101": {"width": 5, "stacks": 2, "cells": 1},
        "nasbench201": {"width": 4, "cells": 1},
    }
    space = load(name, {"in_channels": 3, "image_size": 8}, **small.get(name, {}))
    check_space(space, X, samples=4, supernet=name != "nasbench101")


def test_a_chain_of_values_passes():
    check_space(chain(), X, samples=5)


def test_an_auxiliary_head_passes():
    space = load("darts", width=4, cells=3, image_size=24, auxiliary=True)
    check_space(space, torch.randn(2, 3, 24, 24), samples=1, supernet=False)


def test_hostile_names_pass():
    names = ("<script>alert(1)</script>", "a'b\"c", "名前 {0} %s \\", "../../x")
    check_space(stack(*names, options={"'; DROP": nn.Identity, "<b>&": conv}), X, samples=3)


def test_nothing_leaks_into_the_global_stream():
    before = torch.random.get_rng_state()
    check_space(stack("a", "b"), X, samples=2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_one_image_is_refused():
    with pytest.raises(ConfigError, match="1 images"):
        check_space(stack("a", "b"), X[:1])


def test_channels_that_a_space_does_not_take_from_the_task_are_told():
    conv = {str(kernel): lambda k=kernel: nn.Conv2d(3, 3, k, padding="same") for kernel in (1, 3)}
    space = replace(stack("a", "b", options=conv), origin="own.py:make")
    words = "to have 3 channels, but got 1 channels instead; let own.py:make take an argument 'in_channels'"
    with pytest.raises(SpaceError, match=words):
        check_space(space, X[:, :1])


# -- decisions ----------------------------------------------------------------------------------------


def test_asks_nothing():
    check(
        Space("mute", lambda choose: nn.Sequential(*head())), words=["asked the chooser nothing", "choose.op"]
    )


def test_one_option():
    check(stack("a", options={"id": nn.Identity}), words=["decision 'a'", "single option 'id'"])


def test_one_name_with_two_option_lists():
    def build(choose: Chooser) -> nn.Module:
        return nn.Sequential(choose.op("a", OPTIONS), choose.op("a", {"id": nn.Identity, "c": conv}), *head())

    check(Space("mine", build), words=["decision 'a'", "('id', 'conv')", "('id', 'c')", "one decision"])


def test_hidden_decision():
    def build(choose: Chooser) -> nn.Module:
        if choose.value("a", [0, 1]) == choose.value("b", [0, 1]) == 0:
            return nn.Sequential(choose.op("kernel", OPTIONS), *head())
        return nn.Sequential(*head())

    check(Space("mine", build), words=["decision 'kernel'", "only asked after some choices", "last"])


def test_decisions_asked_after_the_first_option():
    check_space(chain(depths=(3, 2, 1)), X, samples=6)


def test_unknown_primitive():
    def build(choose: Chooser) -> nn.Module:
        return nn.Sequential(choose.op("a", candidates(["skip_connect", "nor_conv_3z3"], 3, 3)), *head())

    check(Space("mine", build), words=["primitive 'nor_conv_3z3'", "did you mean 'nor_conv_3x3'"])


@pytest.mark.parametrize("slip", ["nromal", "norml", "normmal", "nermal", "normanl"])
def test_misspelt_name(slip):
    space = stack("normal/0->2", "normal/1->2", f"{slip}/0->2")
    check(space, words=[f"decision '{slip}/0->2'", "did you mean 'normal/0->2'", "one name is one decision"])


@pytest.mark.parametrize(
    "names",
    [
        ("conv1", "conv2"),
        ("normal/0->2", "normal/2->0"),
        ("x", "y"),
        ("qproj", "kproj"),
        ("kernelh", "kernelw"),
        ("normal/a", "reduce/a"),
        ("encoder", "decoder"),
    ],
)
def test_names_that_differ_on_purpose(names):
    check_space(stack(*names), X, samples=2)


def test_misspelt_name_with_other_options_is_another_decision():
    def build(choose: Chooser) -> nn.Module:
        first = choose.op("width", OPTIONS)
        return nn.Sequential(first, choose.op("wdith", {"a": conv, "b": lambda: conv(5)}), *head())

    check_space(Space("mine", build), X, samples=2)


def test_build_that_differs_each_time():
    count = itertools.count()

    def build(choose: Chooser) -> nn.Module:
        return nn.Sequential(choose.op("a", OPTIONS), choose.op(f"b{next(count)}", OPTIONS), *head())

    check(Space("mine", build), words=["listed twice", "b1", "build must depend on nothing"])


def test_build_in_a_random_order():
    source = random.Random(0)

    def build(choose: Chooser) -> nn.Module:
        names = source.sample(["a", "b", "c", "d"], 4)
        return nn.Sequential(*(choose.op(name, OPTIONS) for name in names), *head())

    check(Space("mine", build), words=["another order"])


def test_layers_that_differ_each_time():
    count = itertools.count()

    def build(choose: Chooser) -> nn.Module:
        width = 3 + next(count) % 2
        return nn.Sequential(choose.op("a", OPTIONS), nn.Conv2d(3, width, 1), *head(width))

    check(Space("mine", build), words=["architecture {'a'", "built twice, it differs in", "pure function"])


# -- projections and genotypes ------------------------------------------------------------------------


def test_project_not_idempotent():
    space = stack("a", "b", project=lambda ds, scores: tuple(1 - int(row.argmax()) for row in scores))
    check(space, words=["project is not idempotent", "{'a':"])


def test_project_of_wrong_length():
    check(stack("a", "b", project=lambda ds, scores: (0,)), words=["project returned (0,)", "2 decisions"])


def test_project_out_of_range():
    check(stack("a", "b", project=lambda ds, scores: (0, 7)), words=["project returned (0, 7)"])


def test_project_that_ignores_its_scores():
    check(stack("a", "b", project=lambda ds, scores: (0, 1)), words=["project ignores its scores", "'conv'"])


def test_project_that_raises():
    check(
        stack("a", project=lambda ds, s: (int(s[9].argmax()),)), words=["project failed", "test_testing.py"]
    )


def test_mutate_that_returns_its_parent():
    class Stubborn(Space):
        def mutate(self, genotype, rng):
            return genotype

    check(stack("a", "b", space=Stubborn), words=["mutate returned its parent {'a'"])


def test_genotypes_that_are_not_plain():
    class Numpy(Space):
        def sample(self, rng):
            return tuple(rng.integers(2, size=2))

    check(stack("a", "b", space=Numpy), words=["sample gave", "plain ints"])


def test_canonical_that_drifts():
    class Drifting(Space):
        def canonical(self, genotype):
            return (1 - genotype[0], *genotype[1:])

    check(stack("a", "b", space=Drifting), words=["canonical is not idempotent"])


# -- networks -----------------------------------------------------------------------------------------


def test_shapes_that_disagree():
    options = {**OPTIONS, "half": lambda: conv(stride=2)}
    check(
        stack("normal/0->2", options=options),
        words=["decision 'normal/0->2'", "option 'half'", "(4, 3, 8, 8) gave (4, 3, 4, 4)", "must agree"],
    )


def test_the_odd_option_is_blamed_even_when_it_is_the_first():
    options = {"none": lambda: Zero(3, 2), **OPTIONS}
    check(stack("a", options=options), words=["option 'none'", "but option 'id' gave (4, 3, 8, 8)"])


class Broken(nn.Module):
    def forward(self, x):
        raise ValueError("I cannot go on")


def test_candidate_that_raises():
    check(
        stack("a", "b", options={**OPTIONS, "broken": Broken}),
        words=[
            "decision 'a', option 'broken'",
            "(4, 3, 8, 8) failed",
            "I cannot go on",
            "test_testing.py, line",
        ],
    )


def test_candidate_that_gives_no_tensor():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    check(
        stack("a", options={**OPTIONS, "pair": Pair}),
        words=["option 'pair'", "gave tuple", "wanted a tensor"],
    )


def test_candidate_that_changes_its_input():
    relu = {**OPTIONS, "relu": lambda: nn.ReLU(inplace=True)}
    check(stack("a", options=relu), words=["decision 'a', option 'relu'", "in place"])


@pytest.mark.parametrize("kernels", [[3, 40, 5], [3, 5, 40]])
def test_values_that_break_the_network(kernels):
    space = Space(
        "mine",
        lambda choose: nn.Sequential(nn.Conv2d(3, 3, choose.value("kernel", kernels)), *head()),
    )
    check(space, words=["values {'kernel': '40'}", "Kernel size can't be greater"])


@pytest.mark.parametrize(
    ("tail", "got"),
    [
        ([], "(4, 3, 8, 8)"),
        ([nn.Flatten(0, 1), nn.Flatten(), nn.Linear(64, 5)], "(12, 5)"),
    ],
)
def test_output_that_is_no_logits(tail, got):
    space = Space("mine", lambda choose: nn.Sequential(choose.op("a", OPTIONS), *tail))
    check(space, words=["images (4, 3, 8, 8)", f"gave {got}", "wanted logits (4, classes)"])


def test_classes_that_vary():
    space = Space(
        "mine",
        lambda choose: nn.Sequential(choose.op("a", OPTIONS), *head(3, choose.value("classes", [2, 5]))),
    )
    check(space, words=["[2, 5] logits", "one number of classes"])


def test_logits_that_are_not_finite():
    class Explode(nn.Module):
        def forward(self, x):
            return x * 1e30 * 1e30

    check(stack("a", options={**OPTIONS, "boom": Explode}), words=["'boom'", "not finite"])


def test_zeros_only():
    options = {"none": lambda: Zero(3), "nothing": lambda: Zero(3)}
    check(stack("a", "b", options=options), words=["no gradient reaches any parameter", "zeros"])


def test_nothing_to_train():
    space = Space(
        "mine",
        lambda choose: nn.Sequential(
            choose.op("a", {"id": nn.Identity, "relu": nn.ReLU}), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ),
    )
    check(space, words=["no gradient reaches any parameter"])


def test_dead_architectures_among_living_ones_pass():
    check_space(stack("a", options={"none": lambda: Zero(3), "conv": conv}), X)


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
def test_candidate_made_once(names):
    once = conv()
    space = stack(*names, options={**OPTIONS, "once": lambda: once})
    check(space, words=["option 'once' gave the same module object as decision 'a', option 'once'"])


def test_one_module_for_two_options():
    def build(choose: Chooser) -> nn.Module:
        one = conv()
        return nn.Sequential(choose.op("a", {"x": lambda: one, "y": lambda: one}), *head())

    check(Space("mine", build), words=["option 'y'", "same module object", "option 'x'"])


def test_layer_made_outside_build():
    stem = conv()
    space = Space("mine", lambda choose: nn.Sequential(stem, choose.op("a", OPTIONS), *head()))
    check(space, words=["both share ['0.weight', '0.bias']", "inside build"])


# -- supernets ----------------------------------------------------------------------------------------


def test_a_supernet_of_values_is_refused_where_it_is_demanded():
    check(chain(), words=["no supernet", "depth", "kernel0"], supernet=True)


def test_supernet_that_is_not_the_network():
    class Doubled(nn.Module):
        def __init__(self, op):
            super().__init__()
            self.op = op

        def forward(self, x):
            return 2 * self.op(x) if isinstance(self.op, nn.Identity | nn.Conv2d) else self.op(x)

    space = Space("mine", lambda choose: nn.Sequential(Doubled(choose.op("a", OPTIONS)), *head()))
    check(space, words=["the supernet and the network of {'a'", "differ by"])
    check_space(space, X, samples=2, supernet=False)


# -- searchers ----------------------------------------------------------------------------------------


class Wrong(RandomSearch):
    """Random search with one fault."""

    def __init__(self, fault):
        object.__setattr__(self, "fault", fault)

    def ask(self, space, history, rng):
        return self.fault(space, history, rng) or super().ask(space, history, rng)


def clear(space, history, rng):
    history.clear()


def drop_metrics(space, history, rng):
    done = [t for t in history if t.state == "done"]
    if done:
        done[0].metrics.clear()


def give_up(space, history, rng):
    if len(history) == 3:
        raise ExhaustedError("enough")


COUNT = itertools.count()
TINY = stack("a", "b", "c")


@pytest.mark.parametrize("searcher", [RandomSearch(), RegularizedEvolution(), RegularizedEvolution(4, 2)])
@pytest.mark.parametrize("space", [TINY, chain(), load("nasbench201", width=4, cells=1)])
def test_searchers_pass(searcher, space):
    check_searcher(searcher, space)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (clear, "changed the history"),
        (drop_metrics, "changed the history"),
        (give_up, "gave up after 3 of 8 architectures"),
        (lambda space, history, rng: (next(COUNT) % 2, 0, 0)[: len(space.decisions)], "to the same question"),
        (lambda space, history, rng: (0,) * len(space.decisions), "again in trial 1, though there are new"),
        (lambda space, history, rng: (9,) * len(space.decisions), "decision 'a' got option 9"),
        (lambda space, history, rng: (1,), "3 decisions, got a genotype of 1"),
        (lambda space, history, rng: tuple(np.zeros(3, int)), "plain ints"),
        (lambda space, history, rng: [0, 0, 0], "plain ints"),
        (lambda space, history, rng: history[0].genotype, "failed with no trials in the history: IndexError"),
        (lambda s, history, rng: [t.metrics["val_acc"] for t in history] and None, "KeyError: 'val_acc'"),
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


def test_searcher_that_leaves_the_valid_ones():
    def one_conv(decisions, scores):
        best = max(range(len(scores)), key=lambda i: scores[i][1])
        return tuple(int(i == best) for i in range(len(scores)))

    space = stack("a", "b", "c", project=one_conv)
    check_searcher(RandomSearch(), space)
    with pytest.raises(SearcherError, match="not valid in space 'mine'"):
        check_searcher(Wrong(lambda *_: (1, 1, 1)), space)
