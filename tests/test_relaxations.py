"""Relaxations and perturbations: values, gradients, absent options, annealing, and how far they move."""

import pytest
import torch
from torch.autograd import gradcheck

from nas.errors import ConfigError
from nas.oneshot.relaxations import (
    AdversarialPerturbation,
    Dirichlet,
    GumbelHard,
    GumbelSoft,
    RandomPerturbation,
    Sigmoid,
    Softmax,
    Uniform,
    on_simplex,
)

ALL = [Softmax(), GumbelSoft(), GumbelHard(), Dirichlet(), Sigmoid(), Uniform()]
each = pytest.mark.parametrize("relaxation", ALL, ids=lambda r: type(r).__name__)


def alphas(rows=3, options=4, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, options, generator=generator, dtype=torch.float64, requires_grad=True)


def frozen_noise(relaxation, progress=0.5):
    """The relaxation as a function: the same draw whenever it is called."""

    def mix(x):
        torch.manual_seed(7)
        return relaxation.mix(x, progress)

    return mix


@each
def test_rows_are_weights(relaxation):
    weights = relaxation.mix(alphas(), 0.5)
    assert weights.shape == (3, 4) and (weights >= 0).all()
    if not isinstance(relaxation, Sigmoid):
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, dtype=torch.float64))
    assert relaxation.samples_one_path == bool(((weights > 1e-9).sum(-1) == 1).all())
    strengths = relaxation.strength(alphas())
    assert ((strengths >= 0) & (strengths <= 1)).all()


@each
def test_absent_options_get_no_weight_and_no_gradient(relaxation):
    leaf = alphas()
    absent = torch.tensor([[False, True, False, False], [False] * 4, [True, True, False, True]])
    masked = torch.where(absent, -torch.inf, leaf)
    for values in (relaxation.mix(masked, 0.5), relaxation.strength(masked)):
        assert (values[absent] == 0).all() and values.isfinite().all()
        assert values[2, 2] > 0
        if values.requires_grad:
            loss = (values * torch.randn_like(values)).sum()
            (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True)
            assert gradient.isfinite().all() and (gradient[absent] == 0).all()


@pytest.mark.parametrize("relaxation", [Softmax(), GumbelSoft(3.0, 0.5), Sigmoid()])
def test_the_gradient_is_that_of_finite_differences(relaxation):
    assert gradcheck(frozen_noise(relaxation), (alphas(),), eps=1e-6, atol=1e-6)


def test_a_hard_sample_has_the_gradient_of_the_soft_one():
    leaf, weights = alphas(), torch.randn(3, 4, dtype=torch.float64)
    hard, soft = frozen_noise(GumbelHard(2.0, 0.5))(leaf), frozen_noise(GumbelSoft(2.0, 0.5))(leaf)
    assert set(hard.detach().round(decimals=9).flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(hard.argmax(-1), soft.argmax(-1))
    found = [torch.autograd.grad((values * weights).sum(), leaf)[0] for values in (hard, soft)]
    torch.testing.assert_close(*found)


def test_samples_are_drawn_in_proportion_to_the_softmax():
    """Gumbel-max: an option wins as often as its softmax says, whatever the temperature."""
    row = torch.tensor([[1.0, 0.0, -1.0]])
    for progress in (0.0, 1.0):
        torch.manual_seed(1)
        found = GumbelHard().mix(row.expand(40_000, 3), progress).mean(0)
        torch.testing.assert_close(found, row[0].softmax(-1), atol=0.01, rtol=0)


def test_dirichlet_draws_have_the_moments_of_the_distribution():
    row = torch.tensor([[0.5, -0.7, 1.5]]).expand(60_000, 3)
    torch.manual_seed(3)
    draws = Dirichlet().mix(row, 0.0)
    wanted = torch.distributions.Dirichlet(torch.nn.functional.elu(row[0]) + 1)
    torch.testing.assert_close(draws.mean(0), wanted.mean, atol=0.01, rtol=0)
    torch.testing.assert_close(draws.var(0), wanted.variance, atol=0.01, rtol=0)
    torch.testing.assert_close(Dirichlet().strength(row)[0], wanted.mean)


def test_impossible_temperatures_are_refused():
    for bounds in ((0.0, 0.0), (1.0, 2.0), (float("inf"), 1.0), (1.0, -1.0)):
        with pytest.raises(ConfigError, match="temperatures"):
            GumbelSoft(*bounds)


# -- perturbations ------------------------------------------------------------------------------------


def weights():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 4, generator=generator).softmax(-1)


def loss(rows):
    """Convex, so that its worst point in a cube is a corner."""
    return (rows - 0.3).square().sum()


def perturbed(perturbation, before, loss=loss, progress=1.0, *, seed=0):
    def gradient(rows):
        leaf = rows.detach().requires_grad_()
        return torch.autograd.grad(loss(leaf), leaf)[0]

    torch.manual_seed(seed)
    return perturbation(before, loss, gradient, torch.tensor(progress))


@pytest.mark.parametrize("kind", [RandomPerturbation, AdversarialPerturbation])
def test_rows_stay_on_the_simplex_and_within_the_radius(kind):
    rows = perturbed(kind(), weights())
    assert (rows >= 0).all() and not rows.requires_grad
    torch.testing.assert_close(rows.sum(-1), torch.ones(len(rows)))
    one, two = (perturbed(kind(0.01, 0.01), weights()) for _ in range(2))
    # The projection back scales a row of four by at most 1 / (1 - 4 * radius).
    assert torch.equal(one, two) and 0 < (one - weights()).abs().max() < 0.01 * 4.2


def test_the_radius_grows_linearly_and_random_ones_fill_the_cube():
    assert [RandomPerturbation().radius(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.03, 0.165, 0.3])
    moved = perturbed(RandomPerturbation(0.1, 0.1), torch.full((10_000, 2), 0.5))
    difference = moved[:, 0] - 0.5
    assert difference.abs().max() <= 0.1 / 0.9 and difference.abs().mean() == pytest.approx(0.033, abs=0.005)
    assert difference.mean().item() == pytest.approx(0, abs=0.002)


def test_the_adversarial_one_is_worse_than_the_mixture_and_than_random_ones():
    worst = loss(perturbed(AdversarialPerturbation(), weights()))
    others = [loss(perturbed(RandomPerturbation(), weights(), seed=seed)) for seed in range(20)]
    assert worst > loss(weights()) and worst > max(others)


def test_options_out_of_the_race_stay_out_and_a_row_never_vanishes():
    moved = perturbed(RandomPerturbation(0.3, 0.3), torch.tensor([[0.5, 0.0, 0.5]]))
    assert moved[0, 1] == 0
    before = torch.tensor([[0.2, 0.3, 0.5]])
    assert on_simplex(torch.tensor([[-0.1, -0.05, -0.2]]), before).tolist() == [[0.0, 1.0, 0.0]]


def test_impossible_radii_are_refused():
    for bounds in ((0.3, 0.1), (-0.1, 0.1), (0.1, 2.0)):
        with pytest.raises(ConfigError, match="radius"):
            RandomPerturbation(*bounds)
    with pytest.raises(ConfigError, match="steps is 0"):
        AdversarialPerturbation(steps=0)
