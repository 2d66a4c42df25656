"""Fidelities and ladders: their text forms, their rules, and what they make of spaces and tasks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nas.data.loading import load_task
from nas.errors import ConfigError, SpaceError
from nas.evaluate.multi_fidelity import scaled_space, scaled_task
from nas.searchers.fidelity import Fidelity, Ladder, geometric, parse_fidelity, parse_ladder
from nas.space.loading import load
from nas.space.space import Space

SHARES = st.floats(0.0, 1.0, exclude_min=True)
FIDELITIES = st.builds(Fidelity, st.integers(1, 999), SHARES, SHARES, SHARES, SHARES)
CELLS = load("nasbench201", width=8, cells=4)


@given(FIDELITIES)
def test_a_fidelity_reads_back_from_its_text(fidelity):
    assert parse_fidelity(str(fidelity)) == fidelity


def test_what_a_user_writes():
    ladder = parse_ladder("epochs=1,width=0.5; epochs = 3; epochs=9")
    assert ladder == Ladder((Fidelity(1, width=0.5), Fidelity(3), Fidelity(9)))
    assert str(ladder) == "epochs=1,width=0.5; epochs=3; epochs=9"
    assert parse_ladder(str(ladder)) == ladder


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("width=0.5", "epochs is missing"),
        ("epochs=1.5", "whole number"),
        ("epochs=1,images=half", "'images=half'"),
        ("epochs=1; epochs=1; epochs=9,width=0.5", "width falls from 1.0 to 0.5 at rung 3"),
    ],
)
def test_errors_in_a_text_are_named(text, words):
    with pytest.raises(ConfigError) as caught:
        parse_ladder(text)
    assert words in str(caught.value)


@pytest.mark.parametrize("wrong", [{"epochs": True}, {"epochs": 2.0}, {"epochs": "3"}, {"width": True}])
def test_epochs_are_integers_and_shares_numbers(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is"):
        Fidelity(**{"epochs": 1} | wrong)


def test_the_epochs_granted_add_up_and_name_the_rung():
    ladder = parse_ladder("epochs=1; epochs=2; epochs=6")
    assert ladder.granted == (1, 3, 9)
    assert [ladder.rung(granted) for granted in ladder.granted] == [0, 1, 2]
    with pytest.raises(ConfigError, match="no rung ends after 2 epochs; its rungs end after 1, 3, 9"):
        ladder.rung(2)


@pytest.mark.parametrize(
    ("least", "most", "eta", "granted"),
    [
        (1, 9, 3, (1, 3, 9)),
        (1, 81, 3, (1, 3, 9, 27, 81)),
        (2, 16, 2, (2, 4, 8, 16)),
        (3, 200, 4, (3, 12, 49, 200)),
        (1, 2, 3, (1, 2)),
        (5, 5, 3, (5,)),
    ],
)
def test_geometric_rungs(least, most, eta, granted):
    assert geometric(least, most, eta).granted == granted


# -- what a rung means ----------------------------------------------------------------------------------


def test_a_space_is_made_at_another_size():
    scaled = scaled_space(CELLS, Fidelity(1, width=0.3, cells=0.5, images=0.1))
    assert scaled.settings == {**CELLS.settings, "width": 2, "cells": 2}
    assert scaled.decisions == CELLS.decisions
    assert scaled_space(CELLS, Fidelity(1, cells=0.01)).settings["cells"] == 1
    assert scaled_space(CELLS, Fidelity(7, images=0.5, image_size=0.5)) is CELLS


def test_spaces_that_have_no_other_size_are_refused(tmp_path):
    file = tmp_path / "grows.py"
    file.write_text(
        "from torch import nn\n"
        "from nas.space.space import Space\n"
        "def grows(cells=2):\n"
        "    def build(choose):\n"
        "        makes = {'a': nn.Identity, 'b': nn.ReLU}\n"
        "        return nn.Sequential(*(choose.op(f'op {i}', makes) for i in range(cells)))\n"
        "    return Space('grows', build)\n"
    )
    by_hand = Space("by hand", lambda choose: nn.Identity())
    for space, words in [
        (by_hand, "made by hand"),
        (load("toy"), "no whole number 'cells'"),
        (load(f"{file}:grows"), "other decisions at cells=1"),
    ]:
        with pytest.raises(SpaceError, match=words):
            scaled_space(space, Fidelity(1, cells=0.5))


def test_a_task_with_fewer_and_smaller_images():
    task = load_task("digits")
    scaled = scaled_task(task, Fidelity(1, images=0.5, image_size=0.75))
    assert scaled.image_shape == (1, 6, 6)
    assert (len(scaled.train), len(scaled.val)) == (round(len(task.train) / 2), len(task.val))
    assert scaled_task(task, Fidelity(3, width=0.5, cells=0.5)) is task


def test_space_and_task_agree_on_the_size_of_the_images():
    task = load_task("digits")
    space = load("darts", width=4, cells=3, image_size=task.image_shape[1])
    for share in (0.1, 0.44):
        rung = Fidelity(1, image_size=share)
        assert scaled_space(space, rung).settings["image_size"] == scaled_task(task, rung).image_shape[1]
