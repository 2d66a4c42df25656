"""Perturbations: within their radius, on the simplex, and the adversarial one really worse."""

import pytest
import torch

from nas.errors import ConfigError
from nas.oneshot.relaxations import AdversarialPerturbation, RandomPerturbation, on_simplex


def points():
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(3, 4, generator=generator).softmax(-1),
        torch.randn(2, 5, generator=generator).softmax(-1),
    ]


def loss(rows):
    """Convex, so that its worst point in a cube is a corner."""
    return sum((row - 0.3).square().sum() for row in rows)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("perturb", [RandomPerturbation(), AdversarialPerturbation()])
def test_rows_stay_on_the_simplex(perturb):
    for row in perturb(points(), loss, 1.0, stream()):
        assert (row >= 0).all() and not row.requires_grad
        torch.testing.assert_close(row.sum(-1), torch.ones(len(row)))


@pytest.mark.parametrize("perturb", [RandomPerturbation(0.01, 0.01), AdversarialPerturbation(0.01, 0.01)])
def test_a_small_radius_moves_little(perturb):
    for row, before in zip(perturb(points(), loss, 0.5, stream()), points(), strict=True):
        # The projection back scales a row by at most 1 / (1 - O * radius).
        assert 0 < (row - before).abs().max() < 0.01 * 2.1


def test_the_radius_grows_linearly():
    assert [RandomPerturbation().radius(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.03, 0.165, 0.3])


def test_random_ones_fill_the_cube():
    start = [torch.full((10_000, 2), 0.5)]
    (moved,) = RandomPerturbation(0.1, 0.1)(start, loss, 0.0, stream())
    difference = moved[:, 0] - 0.5
    assert difference.abs().max() <= 0.1 / 0.9 and difference.abs().mean() == pytest.approx(0.033, abs=0.005)
    assert difference.mean().item() == pytest.approx(0, abs=0.002)


def test_the_adversarial_one_is_worse_than_the_mixture_and_than_random_ones():
    clean = points()
    worst = loss(AdversarialPerturbation()(clean, loss, 1.0, stream()))
    others = [loss(RandomPerturbation()(clean, loss, 1.0, stream(seed))) for seed in range(20)]
    assert worst > loss(clean) and worst > max(others)


def test_the_mixture_stays_where_none_is_worse():
    clean = points()
    found = AdversarialPerturbation(0.0, 0.0)(
        clean, lambda rows: -loss(rows) * 0 + rows[0].sum() * 0, 0.5, stream()
    )
    for row, before in zip(found, clean, strict=True):
        torch.testing.assert_close(row, before)


@pytest.mark.parametrize("perturb", [RandomPerturbation(), AdversarialPerturbation()])
def test_the_same_stream_gives_the_same_perturbation(perturb):
    one, two = (perturb(points(), loss, 0.7, stream(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_options_out_of_the_race_stay_out():
    before = torch.tensor([[0.5, 0.0, 0.5]])
    (moved,) = RandomPerturbation(0.3, 0.3)([before], loss, 0.0, stream())
    assert moved[0, 1] == 0


def test_a_row_of_which_nothing_is_left_becomes_its_largest_entry():
    before = torch.tensor([[0.2, 0.3, 0.5]])
    assert on_simplex(torch.tensor([[-0.1, -0.05, -0.2]]), before).tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize("bounds", [(0.3, 0.1), (-0.1, 0.1), (0.1, 2.0)])
def test_impossible_radii_are_refused(bounds):
    with pytest.raises(ConfigError, match="the radius goes from"):
        RandomPerturbation(*bounds)


@pytest.mark.parametrize("steps", [0, -1])
def test_an_ascent_of_no_steps_is_refused(steps):
    with pytest.raises(ConfigError, match=f"AdversarialPerturbation: steps is {steps}, but must be at least"):
        AdversarialPerturbation(steps=steps)
