"""How alphas move: Adam as torch's, exponentiated gradients as their closed form."""

import pytest
import torch
from torch import nn

from nas.errors import ConfigError
from nas.oneshot.alpha_optimizer import Adam, ExponentiatedGradient


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [
        nn.Parameter(torch.randn(2, 3, generator=generator)),
        nn.Parameter(torch.randn(4, generator=generator)),
    ]


def gradients(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, generator=generator), torch.randn(4, generator=generator)]


def test_adam_is_torchs():
    ours, theirs = parameters(), parameters()
    mover = Adam(0.01, betas=(0.5, 0.99), weight_decay=0.1).begin(ours)
    optimizer = torch.optim.Adam(theirs, lr=0.01, betas=(0.5, 0.99), weight_decay=0.1)
    for seed in range(3):
        mover.step(gradients(seed))
        for p, g in zip(theirs, gradients(seed), strict=True):
            p.grad = g
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_adam_can_clip_the_whole_gradient():
    one, two = parameters(), parameters()
    grads = gradients(0)
    norm = nn.utils.get_total_norm(grads)
    Adam(0.01, weight_decay=0.0, clip=0.5).begin(one).step([g.clone() for g in grads])
    Adam(0.01, weight_decay=0.0).begin(two).step([g * 0.5 / norm for g in grads])
    torch.testing.assert_close(one, two)


def test_exponentiated_gradients_are_their_closed_form():
    alphas, betas = parameters()
    theta, grads = alphas.detach().softmax(-1), gradients(1)
    rule = ExponentiatedGradient(0.7)
    rule.begin([alphas, betas]).step(grads)
    wanted = theta * (-0.7 * grads[0]).exp()
    torch.testing.assert_close(alphas.softmax(-1), wanted / wanted.sum(-1, keepdim=True))
    torch.testing.assert_close(alphas.logsumexp(-1), torch.zeros(2), atol=1e-6, rtol=0)
    assert rule.on_simplex and not Adam().on_simplex


@pytest.mark.parametrize("rule", [Adam(0.05), ExponentiatedGradient(0.1)])
def test_saved_and_restored_is_uninterrupted(rule):
    whole, parts = parameters(), parameters()
    one = rule.begin(whole)
    for seed in range(4):
        one.step(gradients(seed))
    first = rule.begin(parts)
    for seed in range(2):
        first.step(gradients(seed))
    second = rule.begin(parts)
    second.restore(first.state())
    for seed in range(2, 4):
        second.step(gradients(seed))
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adam(0.0), "lr is 0.0"),
        (lambda: Adam(float("nan")), "lr is nan"),
        (lambda: Adam(weight_decay=-1.0), "weight_decay is -1.0"),
        (lambda: Adam(clip=float("inf")), "clip is inf"),
        (lambda: Adam(betas=(1.0, 0.999)), r"betas are \(1.0, 0.999\), but must be in \[0, 1\)"),
        (lambda: ExponentiatedGradient(-0.1), "lr is -0.1"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
