"""Relaxations: values, gradients against finite differences or the closed form, absent options, annealing."""

import pytest
import torch
from torch.autograd import gradcheck

from nas.errors import ConfigError
from nas.oneshot.relaxations import (
    Dirichlet,
    GumbelHard,
    GumbelSoft,
    Sigmoid,
    Softmax,
    Uniform,
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


@each
def test_strengths_lie_in_the_unit_interval(relaxation):
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
            (gradient,) = torch.autograd.grad(
                (values * torch.randn_like(values)).sum(), leaf, retain_graph=True
            )
            assert gradient.isfinite().all() and (gradient[absent] == 0).all()


@pytest.mark.parametrize(
    "relaxation", [Softmax(), GumbelSoft(3.0, 0.5), Sigmoid()], ids=lambda r: type(r).__name__
)
def test_the_gradient_is_that_of_finite_differences(relaxation):
    assert gradcheck(frozen_noise(relaxation), (alphas(),), eps=1e-6, atol=1e-6)


@each
def test_the_gradient_of_the_strength_is_that_of_finite_differences(relaxation):
    assert gradcheck(relaxation.strength, (alphas(),), eps=1e-6, atol=1e-6)


def test_softmax_has_the_jacobian_of_its_closed_form():
    leaf = alphas(1, 5)
    weights = Softmax().mix(leaf, 0.0)[0]
    jacobian = torch.autograd.functional.jacobian(lambda x: Softmax().mix(x, 0.0)[0], leaf)[:, 0]
    torch.testing.assert_close(jacobian, torch.diag(weights) - torch.outer(weights, weights))


def test_a_hard_sample_has_the_gradient_of_the_soft_one():
    leaf, weights = alphas(), torch.randn(3, 4, dtype=torch.float64)
    hard, soft = frozen_noise(GumbelHard(2.0, 0.5))(leaf), frozen_noise(GumbelSoft(2.0, 0.5))(leaf)
    assert set(hard.detach().round(decimals=9).flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(hard.argmax(-1), soft.argmax(-1))
    for values in (hard, soft):
        (gradient,) = torch.autograd.grad((values * weights).sum(), leaf, retain_graph=True)
        torch.testing.assert_close(
            gradient, torch.autograd.grad((soft * weights).sum(), leaf, retain_graph=True)[0]
        )


def test_samples_are_drawn_in_proportion_to_the_softmax():
    """Gumbel-max: an option wins as often as its softmax says, whatever the temperature."""
    row = torch.tensor([[1.0, 0.0, -1.0]]).expand(40_000, 3)
    for progress in (0.0, 1.0):
        torch.manual_seed(1)
        shares = GumbelHard().mix(row, progress).mean(0)
        torch.testing.assert_close(shares, row[0].softmax(-1), atol=0.01, rtol=0)


def test_temperatures_fall_linearly():
    assert [GumbelHard(10.0, 0.1).temperature(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([10.0, 5.05, 0.1])


def test_a_low_temperature_sharpens_soft_samples():
    row = alphas(200, 5).detach()
    hot, cold = frozen_noise(GumbelSoft(10.0, 0.1), 0.0)(row), frozen_noise(GumbelSoft(10.0, 0.1), 1.0)(row)
    assert hot.max(-1).values.mean() < 0.4
    assert cold.max(-1).values.mean() > 0.9


def test_dirichlet_draws_have_the_moments_of_the_distribution():
    row = torch.tensor([[0.5, -0.7, 1.5]]).expand(60_000, 3)
    torch.manual_seed(3)
    draws = Dirichlet().mix(row, 0.0)
    concentration = torch.nn.functional.elu(row[0]) + 1
    wanted = torch.distributions.Dirichlet(concentration)
    torch.testing.assert_close(draws.mean(0), wanted.mean, atol=0.01, rtol=0)
    torch.testing.assert_close(draws.var(0), wanted.variance, atol=0.01, rtol=0)
    torch.testing.assert_close(Dirichlet().strength(row)[0], wanted.mean)


def test_dirichlet_gradients_are_those_of_the_expectation():
    """d/dα of E[f(θ)] for f = θ_0: the mean of the reparametrised gradients against its closed form."""
    row = torch.tensor([0.3, -0.2, 0.8], dtype=torch.float64, requires_grad=True)
    torch.manual_seed(5)
    draws = Dirichlet().mix(row.expand(200_000, 3), 0.0)
    (found,) = torch.autograd.grad(draws[:, 0].mean(), row)
    (wanted,) = torch.autograd.grad(Dirichlet().strength(row[None])[0, 0], row)
    torch.testing.assert_close(found, wanted, atol=3e-3, rtol=0)


def test_sigmoid_is_its_closed_form():
    leaf = alphas()
    values = Sigmoid().mix(leaf, 0.0)
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    torch.testing.assert_close(values, 1 / (1 + (-leaf).exp()))
    torch.testing.assert_close(gradient, values * (1 - values))


def test_uniform_mixtures_do_not_depend_on_the_alphas():
    assert torch.equal(Uniform().mix(alphas(), 0.0), torch.full((3, 4), 0.25, dtype=torch.float64))
    assert not Uniform().mix(alphas(), 0.0).requires_grad


def test_which_relaxations_run_one_option_at_a_time():
    assert [type(r).__name__ for r in ALL if r.one_at_a_time] == ["GumbelHard"]


@pytest.mark.parametrize("bounds", [(0.0, 0.0), (1.0, 2.0), (float("inf"), 1.0), (1.0, -1.0)])
def test_impossible_temperatures_are_refused(bounds):
    with pytest.raises(ConfigError, match="temperatures go from"):
        GumbelSoft(*bounds)
