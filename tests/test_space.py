"""Spaces: what is valid, how it is drawn and varied, what is the same, how much there is, and bad input."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from nas.errors import SpaceError
from nas.space.loading import load
from nas.space.space import Size, Space

CONVS = {"one": lambda: nn.Conv2d(3, 3, 1), "three": lambda: nn.Conv2d(3, 3, 3, padding=1)}


def ring(decisions, scores):
    """Valid are the genotypes whose options sum to a multiple of three."""
    valid = [g for g in itertools.product(*(range(len(d.options)) for d in decisions)) if sum(g) % 3 == 0]
    return max(valid, key=lambda g: sum(row[i] for row, i in zip(scores, g, strict=True)))


def flat(*sizes, project):
    """A space of decisions with so many options each, of which `project` says what is valid."""

    def build(choose):
        options = [{f"o{i}": nn.Identity for i in range(size)} for size in sizes]
        return nn.Sequential(*(choose.op(f"d{k}", offered) for k, offered in enumerate(options)))

    return Space("flat", build, project)


def deep(depths=(1, 2, 3), options=2):
    """A depth, and a kernel for each layer of that depth."""

    def build(choose):
        kernels = {f"k{i}": (lambda i=i: nn.Conv2d(3, 3, 2 * i + 1, padding=i)) for i in range(options)}
        return nn.Sequential(
            *(choose.op(f"kernel{i}", kernels) for i in range(choose.value("depth", depths)))
        )

    return Space("deep", build)


def nested():
    """Two places whose second option asks one shared further decision."""

    def build(choose):
        def inner():
            return choose.op("inner", CONVS)

        return nn.Sequential(*(choose.op(name, {"id": nn.Identity, "in": inner}) for name in ("a", "b")))

    return Space("nested", build)


SPACES = {
    "toy": load("toy"),
    "nasbench201": load("nasbench201", width=4, cells=1),
    "darts": load("darts", width=4, cells=3),
    "ring": flat(3, 4, 2, project=ring),
    "deep": deep(),
    "nested": nested(),
}
each_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


# -- listing ------------------------------------------------------------------------------------------


def test_decisions_come_in_the_order_they_are_asked_and_once():
    def build(choose):
        layers = [choose.op(name, CONVS) for name in ("z", "a", "z", "m", "a")]
        return nn.Sequential(*layers[: choose.value("cut", (2, 5))])

    decisions = Space("s", build).decisions
    assert [d.name for d in decisions] == ["z", "a", "m", "cut"]
    assert [d.mixable for d in decisions] == [True, True, True, False]
    assert decisions[0].options == ("one", "three") and decisions[3].options == ("2", "5")


def test_listing_takes_no_memory_and_draws_no_random_numbers():
    before = torch.get_rng_state()
    space = Space("wide", lambda choose: choose.op("x", {"big": lambda: nn.Linear(10**6, 10**6)}))
    assert len(space.decisions) == 1
    assert space.network((0,), meta=True).weight.is_meta
    assert torch.equal(torch.get_rng_state(), before)


def is_valid(space, genotype):
    return space.nearest(space.one_hot(genotype)) == genotype or space.is_conditional


@each_space
def test_everything_drawn_is_valid_and_canonical(space):
    rng = np.random.default_rng(0)
    for genotype in space.neighbours(space.sample(rng)):
        assert is_valid(space, genotype)
    for _ in range(60):
        parent, other = space.sample(rng), space.sample(rng)
        found = [parent, space.mutate(parent, rng), space.cross(parent, other, rng)]
        assert found[1] != parent
        for genotype in found:
            space.check(genotype)
            assert is_valid(space, genotype)
            assert space.canonical(genotype) == genotype


# -- sameness and size --------------------------------------------------------------------------------


def test_unasked_decisions_do_not_tell_architectures_apart():
    space = SPACES["deep"]
    assert [d.name for d in space.decisions] == ["depth", "kernel0", "kernel1", "kernel2"]
    assert space.canonical((0, 1, 1, 1)) == space.canonical((0, 1, 0, 1)) == (0, 1, 0, 0)
    assert space.canonical((1, 1, 1, 1)) == (1, 1, 1, 0)
    assert space.canonical((2, 1, 1, 1)) == (2, 1, 1, 1)
    assert list(space.asked((1, 1, 1, 1))) == ["depth", "kernel0", "kernel1"]
    assert list(space.asked((2, 1, 1, 1))) == list(space.choices((2, 1, 1, 1)))
    assert space.size == Size(2 + 4 + 8, exact=True)
    assert len(set(space.enumerate())) == 14


def test_sizes():
    assert str(Size(123_456 * 10**400, exact=True)) == "1.23e+405"
    assert str(Size(7, exact=False)) == "at most 7"
    assert dataclasses.replace(SPACES["darts"], count=None).size == Size(8**28, exact=False)
    assert SPACES["toy"].size == Size(27, exact=True)
    assert SPACES["nasbench201"].size == Size(15_625, exact=True)
    assert str(SPACES["nasbench201"].size) == "15,625"
    assert SPACES["darts"].size.exact and str(SPACES["darts"].size) == "1.08e+18"
    assert (
        SPACES["ring"].size == Size(len(list(SPACES["ring"].enumerate())), exact=True) == Size(8, exact=True)
    )


# -- faults of an author ------------------------------------------------------------------------------


def listed(build):
    return Space("mine", build).decisions


def twice(choose):
    return nn.Sequential(choose.op("x", CONVS), choose.op("x", {"one": CONVS["one"]}))


def both(choose):
    return nn.Sequential(choose.op("x", CONVS), choose.value("x", ("one", "three")))


def recursive(choose):
    return nn.Sequential(recursive(choose))


def endless(choose):
    for i in itertools.count():
        choose.op(f"d{i}", {"id": nn.Identity})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda choose: choose.op("x", {}), "decision 'x' has no options"),
        (lambda choose: nn.Linear(1, choose.value("d", ())), "decision 'd' has no options"),
        (lambda choose: choose.value("d", "345"), "'d': the options of value are of type str, wanted a list"),
        (lambda choose: choose.value("d", {1, 2}), "'d': the options of value are of type set"),
        (lambda choose: choose.value("d", (1, "1")), r"two options have the same name in \('1', '1'\)"),
        (lambda choose: choose.op("x", [nn.ReLU]), "'x': the options of op are a list, wanted a mapping"),
        (
            lambda choose: choose.op("x", {"bad": lambda: 3}),
            "option 'bad': building it gave int, wanted an nn",
        ),
        (lambda choose: choose.op("x", {"bad": nn.ReLU()}), r"is a module that is built already \(ReLU\)"),
        (lambda choose: choose.op("x", CONVS)(torch.zeros(1)), "build ran the network while it was being"),
        (lambda choose: None, "build returned NoneType, wanted an nn.Module"),
        (twice, r"first asked with options \('one', 'three'\), now with \('one',\); one name must mean one"),
        (both, "one name must mean one decision"),
        (recursive, "build failed: RecursionError"),
        (endless, "asked more than 20000 times, the last time for 'd20000'"),
    ],
)
def test_a_build_that_breaks_a_promise_is_told_which(build, message):
    with pytest.raises(SpaceError, match=message):
        listed(build)


def test_a_build_that_fails_is_reported_with_its_own_line():
    def build(choose):
        return nn.Sequential(choose.op("x", CONVS), nn.Linear(3, 1 // 0))

    line = build.__code__.co_firstlineno + 1
    with pytest.raises(SpaceError, match=rf"build failed: ZeroDivisionError.*test_space.py, line {line}: "):
        listed(build)


def test_decisions_that_are_asked_after_any_value_are_listed():
    def build(choose):
        if choose.value("kind", ("conv", "plain", "deep")) == "conv":
            return nn.Sequential(choose.op("kernel", CONVS))
        widths = [choose.value(f"width{i}", (4, 8)) for i in range(choose.value("depth", (2, 1)))]
        if widths[0] == 4:
            choose.value("more", (1, 2))
        return nn.Sequential()

    space = Space("branches", build)
    assert [d.name for d in space.decisions] == ["kind", "depth", "width0", "kernel", "width1", "more"]
    assert isinstance(space.network((0, 0, 0, 1, 0, 0))[0], nn.Conv2d)
    assert space.asked((0, 1, 1, 1, 1, 1)) == {"kind": "conv", "kernel": "three"}
    drawn = {space.sample(np.random.default_rng(seed)) for seed in range(300)}
    # Of the convolution 2, of each other kind 3 of depth 1 (one without `more`), and 6 of depth 2.
    assert drawn == set(space.enumerate()) and len(drawn) == 2 + 2 * (3 + 6)
