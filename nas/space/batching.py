"""How layers of one kind run together: the rules of torch's own layers, and where to find any module's."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.space.depthwise import depthwise
from nas.space.stack import Batched, Stack, joined, side_by_side

Run = Callable[[Sequence[nn.Module], Stack], Stack]


@dataclass(frozen=True)
class Rule:
    """How G layers with equal keys run as one.

    key: all that they must have in common.
    pure: whether they have neither weights nor state, so that layers with equal keys do the same.
    shares: whether, while training, they make the same of the same map.
    """

    key: Hashable
    run: Run
    pure: bool = False
    shares: bool = False


def rule_of(layer: nn.Module) -> Rule | None:
    """The rule of one layer; None where there is none, so that it runs by itself.

    A subclass of a known layer may do something else, so it must have a rule of its own (`Batched`).
    """
    if isinstance(layer, Batched):
        key = layer.batch_key()
        return None if key is None else Rule((type(layer), key), type(layer).batch, shares=layer.batch_shares)
    make = _RULES.get(type(layer))
    return make(layer) if make is not None else None


def convolve(layers: Sequence[nn.Module], stack: Stack) -> Stack:
    """Convolutions of equal form, with the weights of each."""
    convs = cast(Sequence[nn.Conv2d], layers)
    first, groups = convs[0], len(convs)
    weight = joined([conv.weight for conv in convs])
    if is_depthwise(first):
        stride, dilation = first.stride[0], first.dilation[0]
        return Stack(depthwise(stack.apart(), weight, stride=stride, dilation=dilation), groups, shared=False)
    bias = None if first.bias is None else joined([conv.bias for conv in convs if conv.bias is not None])
    x, count = (stack.x, 1) if stack.shared and first.groups == 1 else (stack.apart(), groups)
    y = F.conv2d(x, weight, bias, first.stride, first.padding, first.dilation, count * first.groups)
    return Stack(y, groups, shared=False)


def normalise(layers: Sequence[nn.Module], stack: Stack, scale: Tensor | None = None) -> Stack:
    """Batch-norms of equal form, each with its own statistics, whose outcome is multiplied by `scale` [G]."""
    norms = cast(Sequence[nn.BatchNorm2d], layers)
    first = norms[0]
    if len({norm.training for norm in norms}) > 1:
        return _normalise_each(norms, stack, scale)
    by_batch = first.training or first.running_mean is None
    alone = stack.shared and scale is None and by_batch and not first.affine
    x = stack.x if alone else stack.apart()
    weight = bias = None
    if first.affine:
        weight, bias = joined([norm.weight for norm in norms]), joined([norm.bias for norm in norms])
    if scale is not None:
        # Not expanded: the gradient of batch-norm reads the memory of its weights as if it were dense.
        each = scale.to(_exact(x.dtype)).repeat_interleave(first.num_features)
        weight = each if weight is None else each * weight
        bias = None if bias is None else each * bias
    if by_batch:
        y = _by_batch(norms, x, weight, bias)
    else:
        mean = joined([cast(Tensor, norm.running_mean) for norm in norms])
        var = joined([cast(Tensor, norm.running_var) for norm in norms])
        y = F.batch_norm(x, mean, var, weight, bias, training=False, eps=first.eps)
    return Stack(y, len(norms), alone)


def _normalise_each(norms: Sequence[nn.BatchNorm2d], stack: Stack, scale: Tensor | None) -> Stack:
    """The same of norms of which some are frozen, one after the other."""
    scales = [None] * len(norms) if scale is None else torch.split(scale, 1)
    each = zip(norms, stack.apart().chunk(len(norms), dim=1), scales, strict=True)
    own = [normalise([norm], Stack(x, 1, shared=False), scale).x for norm, x, scale in each]
    return Stack(side_by_side(own), len(norms), shared=False)


def _by_batch(
    norms: Sequence[nn.BatchNorm2d], x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """By the batch's statistics, which the running ones then follow."""
    first = norms[0]
    recording = [at for at, norm in enumerate(norms) if norm.training and norm.track_running_stats]
    if not recording:
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=first.eps)
    running = cast(Tensor, norms[recording[0]].running_mean)
    mean, var = running.new_zeros(x.shape[1]), running.new_ones(x.shape[1])
    # With momentum 1 the statistics of the batch themselves are put there.
    y = F.batch_norm(x, mean, var, weight, bias, training=True, momentum=1.0, eps=first.eps)
    apart = len(mean) > first.num_features
    found = [new.chunk(len(norms)) if apart else [new] * len(norms) for new in (mean, var)]
    _follow([norms[at] for at in recording], *([new[at] for at in recording] for new in found))
    return y


@torch.no_grad()
def _follow(norms: Sequence[nn.BatchNorm2d], means: list[Tensor], variances: list[Tensor]) -> None:
    """The running statistics of each norm go towards those of its batch, the variance being unbiased."""
    momentum = cast(float, norms[0].momentum)
    for name, towards in (("mean", means), ("var", variances)):
        torch._foreach_lerp_([cast(Tensor, getattr(n, f"running_{name}")) for n in norms], towards, momentum)
    torch._foreach_add_([cast(Tensor, norm.num_batches_tracked) for norm in norms], 1)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """What batch-norm keeps its statistics and weights in beside maps of a type."""
    return dtype if dtype == torch.float64 else torch.float32


def keeps_size(conv: nn.Conv2d) -> bool:
    """Whether it is square, without bias, and padded by zeros so that stride 1 keeps the size of a map."""
    kernel, stride, dilation = conv.kernel_size, conv.stride, conv.dilation
    same = tuple(d * (k // 2) for d, k in zip(dilation, kernel, strict=True))
    square = all(len(set(sides)) == 1 for sides in (kernel, stride, dilation))
    plain = conv.bias is None and conv.padding_mode == "zeros"
    return square and plain and kernel[0] % 2 == 1 and conv.padding == same


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether every channel has a kernel of its own, larger than a pixel; `depthwise` computes these."""
    return (
        keeps_size(conv) and conv.groups == conv.in_channels == conv.out_channels and conv.kernel_size[0] > 1
    )


def convolution_rule(layer: nn.Module) -> Rule | None:
    """Of equal shapes; none where borders are not padded with zeros."""
    conv = cast(nn.Conv2d, layer)
    if conv.padding_mode != "zeros":
        return None
    shapes = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
    return Rule((nn.Conv2d, *shapes, conv.dilation, conv.groups, conv.bias is None), convolve)


def norm_key(norm: nn.BatchNorm2d) -> Hashable:
    """What batch-norms must have in common; None where the running statistics are plain means.

    Whether statistics are recorded, or used, may change for a while and so is asked when they run.
    """
    if norm.momentum is None:
        return None
    return (norm.num_features, norm.eps, norm.momentum, norm.affine, norm.running_mean is None)


def norm_rule(layer: nn.Module) -> Rule | None:
    """Of equal settings."""
    norm = cast(nn.BatchNorm2d, layer)
    key = norm_key(norm)
    return None if key is None else Rule((nn.BatchNorm2d, key), normalise, shares=not norm.affine)


def _map(layers: Sequence[nn.Module], stack: Stack) -> Stack:
    return stack.map(layers[0])


def _maximum(layer: nn.Module) -> Rule | None:
    pool = cast(nn.MaxPool2d, layer)
    settings = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
    return None if pool.return_indices else Rule((nn.MaxPool2d, *settings), _map, pure=True, shares=True)


def _average(layer: nn.Module) -> Rule:
    pool = cast(nn.AvgPool2d, layer)
    shape = (pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode)
    settings = (*shape, pool.count_include_pad, pool.divisor_override)
    return Rule((nn.AvgPool2d, *settings), _map, pure=True, shares=True)


_RULES: dict[type[nn.Module], Callable[[nn.Module], Rule | None]] = {
    nn.Conv2d: convolution_rule,
    nn.BatchNorm2d: norm_rule,
    nn.ReLU: lambda _: Rule((nn.ReLU,), lambda _layers, stack: stack.map(F.relu), pure=True, shares=True),
    nn.MaxPool2d: _maximum,
    nn.AvgPool2d: _average,
    nn.Identity: lambda _: Rule((nn.Identity,), lambda _layers, stack: stack, pure=True, shares=True),
}
