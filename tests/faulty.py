"""Operations that fail on purpose, and small spaces made of them."""

import torch
from torch import nn

from nas.space.space import Space


class Fragile(nn.Linear):
    """Gives NaN once its weight has moved by more than `limit` (L2 norm), as at too high a learning rate."""

    def __init__(self, limit, inputs=64, outputs=10):
        super().__init__(inputs, outputs)
        self.limit = limit
        self.register_buffer("start", self.weight.detach().clone())

    def forward(self, x):
        far = (self.weight - self.start).norm() > self.limit
        return super().forward(x) + torch.where(far, torch.nan, 0.0)


class Hungry(nn.Linear):
    """Runs out of memory when it sees more than `most` images at once, in training or else in evaluation.

    kept: feature maps of so many numbers for each image, which the estimate of its memory sees.
    """

    def __init__(self, most, *, kept=0, training=True, inputs=64, outputs=10):
        super().__init__(inputs, outputs)
        self.most, self.kept, self.trains = most, kept, training
        self.seen = []

    def forward(self, x):
        if not x.is_meta:
            self.seen.append(len(x))
            if self.training == self.trains and len(x) > self.most:
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(x)} images")
        if self.kept:
            x = x + 0 * torch.sigmoid(x.mean(1, keepdim=True).expand(-1, self.kept)).sum(1, keepdim=True)
        return super().forward(x)


class Raising(nn.Linear):
    """Raises in `forward`, or where `backward` is true only when gradients pass through it."""

    def __init__(self, error, *, backward=False, inputs=64, outputs=10):
        super().__init__(inputs, outputs)
        self.error, self.backward = error, backward

    def forward(self, x):
        if x.is_meta:
            return super().forward(x)
        if not self.backward:
            raise self.error
        return RaisesBackward.apply(super().forward(x), self.error)


class RaisesBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, error):
        ctx.error = error
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ctx.error


def flat(**options):
    """A space of one decision: flat images through the chosen one of these modules, unbuilt."""

    def build(choose):
        return nn.Sequential(nn.Flatten(), choose.op("body", options))

    return Space("flat", build)
