"""How alphas move: exponentiated gradients as their closed form."""

import pytest
import torch
from torch import nn

from nas.errors import ConfigError
from nas.oneshot.alpha_optimizer import Adam, ExponentiatedGradient


def test_exponentiated_gradients_are_their_closed_form():
    alphas, gradient = nn.Parameter(torch.randn(2, 3)), torch.randn(2, 3)
    wanted = alphas.detach().softmax(-1) * (-0.7 * gradient).exp()
    alphas.grad = gradient.clone()
    ExponentiatedGradient(0.7).begin([alphas]).step()
    alphas = alphas.detach()
    torch.testing.assert_close(alphas.softmax(-1), wanted / wanted.sum(-1, keepdim=True))
    torch.testing.assert_close(alphas.logsumexp(-1), torch.zeros(2), atol=1e-6, rtol=0)
    assert ExponentiatedGradient().on_simplex and not Adam().on_simplex


@pytest.mark.parametrize(
    ("make", "subject"),
    [
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
