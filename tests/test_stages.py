"""Stages: the published schedules, few epochs, and what cannot be."""

import math

import pytest

from nas.errors import ConfigError
from nas.oneshot.stages import OneByOne, Progressive, Stage, Whole, ends, evenly, fading


def test_one_stage_is_the_whole_search():
    assert Whole(4).stages(50, 8) == [Stage(50, parts=4)]


def test_is_darts_drops_options_after_the_published_epochs():
    """Its code: after epochs 23, 25, 27 and 29 of 30 with 5 options, 31, 34, ..., 49 of 50 with 8."""
    stages = OneByOne().stages(30, 5)
    assert ends(stages) == [23, 25, 27, 29, 30]
    assert [s.options(5) for s in stages] == [5, 4, 3, 2, 1]
    longer = OneByOne().stages(50, 8)
    assert ends(longer) == [31, 34, 37, 40, 43, 46, 49, 50]
    assert [s.options(8) for s in longer] == [8, 7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("epochs", range(1, 40))
def test_one_by_one_always_fits(epochs):
    stages = OneByOne().stages(epochs, 5)
    assert sum(s.epochs for s in stages) == epochs and min(s.epochs for s in stages) >= 1
    assert stages[0].options(5) == 5 and (stages[-1].options(5) == 1 or epochs == 1)


def test_with_fewer_epochs_than_options_several_drop_out_together():
    assert [s.options(8) for s in OneByOne().stages(4, 8)] == [8, 6, 3, 1]
    assert [(s.epochs, s.options(5)) for s in OneByOne().stages(2, 5)] == [(1, 5), (1, 1)]


def test_a_space_without_choices_is_searched_in_one_stage():
    assert [s.epochs for s in OneByOne().stages(4, 1)] == [4]
    assert [s.epochs for s in OneByOne().stages(4, 2)] == [3, 1]


def test_progressive_stages_are_equally_long():
    staging = Progressive(keep=(1.0, 5 / 8, 3 / 8), depth=(1.0, 2.0, 3.0), anew=True)
    stages = staging.stages(75, 8)
    assert [s.epochs for s in stages] == [25, 25, 25]
    assert [s.options(8) for s in stages] == [8, 5, 3]
    assert [s.options(5) for s in stages] == [5, 3, 2]
    assert [s.depth for s in stages] == [1.0, 2.0, 3.0] and staging.fresh and staging.by == "alphas"


def test_the_dropout_of_identities_fades_as_in_the_code_of_p_darts():
    """25 epochs, of which the alphas rest for 10: linear, and then anew and exponential."""
    shares = [fading(at, 10, 25) for at in range(25)]
    assert shares[:10] == pytest.approx([(25 - at - 1) / 25 for at in range(10)])
    assert shares[10:] == pytest.approx([math.exp(-0.2 * (at - 10)) for at in range(10, 25)])
    assert shares[10] == 1.0


@pytest.mark.parametrize("epochs", range(1, 9))
def test_the_dropout_fades_in_as_few_epochs_as_there_are(epochs):
    for rest in range(epochs):
        assert all(0 <= fading(at, rest, epochs) <= 1 for at in range(epochs))


def test_with_fewer_epochs_than_stages_the_last_ones_remain():
    stages = Progressive(keep=(1.0, 0.6, 0.2), parts=(4, 2, 1)).stages(2, 5)
    assert [(s.epochs, s.keep, s.parts) for s in stages] == [(1, 0.6, 2), (1, 0.2, 1)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": ()}, "keep is"),
        ({"keep": (0.5, 1.0)}, "keep is"),
        ({"keep": (1.0, 0.0)}, "keep is"),
        ({"keep": (1.0, 0.5), "parts": (2,)}, "parts is"),
        ({"keep": (1.0, 0.5), "parts": (2, 0)}, "parts is .* must be at least 1"),
        ({"keep": (1.0, 0.5), "depth": (1.0, -2.0), "anew": True}, "depth is .* above 0"),
        ({"keep": (1.0, 0.5), "skip_dropout": (0.0, 1.0)}, r"skip_dropout is .* in \[0, 1\)"),
        ({"keep": (1.0, 0.5), "depth": (1.0, 2.0)}, "the depth can change only where stages start anew"),
    ],
)
def test_impossible_stages_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Progressive(**settings)


@pytest.mark.parametrize("parts", [0, -2])
def test_channels_are_divided_into_at_least_one_part(parts):
    with pytest.raises(ConfigError, match=f"parts is {parts}, but must be at least 1"):
        Whole(parts)


@pytest.mark.parametrize("every", [-1.0, 7.0, float("nan")])
def test_drops_are_a_share_of_the_search_apart(every):
    with pytest.raises(ConfigError, match=f"every is {every}, but must be a share"):
        OneByOne(every)


@pytest.mark.parametrize(("total", "count"), [(10, 3), (7, 7), (100, 9), (5, 2)])
def test_evenly(total, count):
    parts = evenly(total, count)
    assert sum(parts) == total and len(parts) == count and max(parts) - min(parts) <= 1
