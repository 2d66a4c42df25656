"""Spaces: what is valid, how it is drawn and varied, what is the same, how much there is, and bad input."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from nas.errors import SpaceError
from nas.space.loading import load
from nas.space.space import Size, Space

CONVS = {"one": lambda: nn.Conv2d(3, 3, 1), "three": lambda: nn.Conv2d(3, 3, 3, padding=1)}


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


def test_sizes():
    assert str(Size(123_456 * 10**400, exact=True)) == "1.23e+405"
    assert str(Size(7, exact=False)) == "at most 7"
    assert str(load("nasbench201").size) == "15,625"
    darts = load("darts", width=4, cells=3)
    assert darts.size.exact and str(darts.size) == "1.08e+18"
    assert dataclasses.replace(darts, count=None).size == Size(8**28, exact=False)


# -- faults of an author ------------------------------------------------------------------------------


def both(choose):
    return nn.Sequential(choose.op("x", CONVS), choose.value("x", ("one", "three")))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda choose: choose.value("d", "345"), "'d': the options of value are of type str, wanted a list"),
        (lambda choose: choose.value("d", {1, 2}), "'d': the options of value are of type set"),
        (lambda choose: choose.value("d", (1, "1")), r"two options have the same name in \('1', '1'\)"),
        (lambda choose: choose.op("x", [nn.ReLU]), "'x': the options of op are a list, wanted a mapping"),
        (lambda choose: choose.op("x", {"bad": nn.ReLU()}), r"is a module that is built already \(ReLU\)"),
        (lambda choose: choose.op("x", CONVS)(torch.zeros(1)), "build ran the network while it was being"),
        (both, "one name must mean one decision"),
    ],
)
def test_a_build_that_breaks_a_promise_is_told_which(build, message):
    with pytest.raises(SpaceError, match=message):
        Space("mine", build).decisions  # noqa: B018 - listed when it is read


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
