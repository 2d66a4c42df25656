"""How alphas move: Adam as torch's, exponentiated gradients as their closed form."""

import pytest
import torch
from torch import nn

from nas.errors import ConfigError
from nas.oneshot.alpha_optimizer import Adam, ExponentiatedGradient


def draws(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, generator=generator), torch.randn(4, generator=generator)]


def moved(make, gradients):
    """The parameters after an optimizer's steps along such gradients."""
    parameters = [nn.Parameter(p) for p in draws(0)]
    optimizer = make(parameters)
    for step in gradients:
        for p, g in zip(parameters, step, strict=True):
            p.grad = g.clone()
        optimizer.step()
    return [p.detach() for p in parameters]


def test_exponentiated_gradients_are_their_closed_form():
    theta, gradient = draws(0)[0].softmax(-1), draws(1)
    alphas, _ = moved(ExponentiatedGradient(0.7).begin, [gradient])
    wanted = theta * (-0.7 * gradient[0]).exp()
    torch.testing.assert_close(alphas.softmax(-1), wanted / wanted.sum(-1, keepdim=True))
    torch.testing.assert_close(alphas.logsumexp(-1), torch.zeros(2), atol=1e-6, rtol=0)
    assert ExponentiatedGradient().on_simplex and not Adam().on_simplex


@pytest.mark.parametrize(
    ("make", "subject"),
    [
        (lambda: Adam(0.0), "lr is 0.0"),
        (lambda: Adam(float("nan")), "lr is nan"),
        (lambda: Adam(weight_decay=-1.0), "weight_decay is -1.0"),
        (lambda: Adam(clip=float("inf")), "clip is inf"),
        (lambda: Adam(betas=(1.0, 0.999)), "betas are"),
        (lambda: ExponentiatedGradient(-0.1), "lr is -0.1"),
    ],
)
def test_impossible_settings_are_refused(make, subject):
    with pytest.raises(ConfigError, match=subject):
        make()
