"""How layers of one kind run together: the rules of torch's own layers, and where to find any module's."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def depthwise(x: Tensor, weight: Tensor, *, stride: int, dilation: int) -> Tensor:
    """`[B, C, H, W]`, kernels `[C, 1, k, k]` with odd k, padded so that stride 1 keeps the size.

    Equals `conv2d(x, weight, stride=stride, padding=dilation * (k // 2), dilation=dilation, groups=C)`.
    """
    if stride > 1 and dilation % stride == 0:
        # Every tap reads pixels at multiples of the stride only.
        x, stride, dilation = x[:, :, ::stride, ::stride], 1, dilation // stride
    beyond = weight.shape[-1] // 2 - (max(x.shape[2:]) - 1) // dilation
    if beyond > 0:  # taps that read nothing but zeros
        weight = weight[:, :, beyond:-beyond, beyond:-beyond]
    if weight.shape[-1] == 1:
        return x[:, :, ::stride, ::stride] * weight.view(1, -1, 1, 1)
    as_is = not torch.is_autocast_enabled(x.device.type) and x.dtype == weight.dtype
    by_blocks = x.device.type == "cpu" and stride == 1 and (weight.shape[-1] > 3 or dilation > 1)
    only_maps_learn = torch.is_grad_enabled() and x.requires_grad and not weight.requires_grad
    if as_is and (by_blocks or only_maps_learn):
        out: Tensor = _Depthwise.apply(x, weight, (stride, dilation, by_blocks))  # type: ignore[no-untyped-call]
        return out
    return _forward(x, weight, dilation, stride)


class _Depthwise(torch.autograd.Function):
    """The library's convolution with gradients that take fewer or faster calls than the library's.

    A gradient that is itself differentiated is the library's own, but for one of the maps alone: that is one
    call here, and in the library one for each channel. Other gradients are computed `by_blocks`, which is for
    stride 1, or else as the library does it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, form: tuple[int, int, bool]) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x, weight)
        ctx.form = form
        stride, dilation, _ = form
        return _forward(x, weight, dilation, stride)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # noqa: ANN401
        (grad,), (x, weight), (stride, dilation, by_blocks) = grads, ctx.saved_tensors, ctx.form
        for_x, for_weight = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() and for_x and not for_weight:
            return _transposed(grad, weight, x, stride, dilation), None, None
        if torch.is_grad_enabled() or not by_blocks:
            wanted = (for_x, for_weight)
            return *_library(grad, x, weight, dilation, wanted, stride=stride), None
        grad = grad.contiguous(memory_format=torch.channels_last)
        dx = _forward(grad, weight.flip(2, 3), dilation) if for_x else None
        dw = weight_gradient(grad, x, weight, dilation) if for_weight else None
        return dx, dw, None


def _transposed(grad: Tensor, weight: Tensor, x: Tensor, stride: int, dilation: int) -> Tensor:
    """The gradient of the maps `x` as an operation whose own gradient is a convolution in one call."""
    padding = dilation * (weight.shape[-1] // 2)
    sides = zip(x.shape[2:], grad.shape[2:], strict=True)
    rest = [side - (out - 1) * stride - 1 for side, out in sides]
    return F.conv_transpose2d(grad, weight, None, stride, padding, rest, x.shape[1], dilation)


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """The gradient of the kernels `[C, 1, k, k]` at stride 1, from 3x3 blocks."""
    channels, radius = x.shape[1], weight.shape[-1] // 2
    reach = max(1, radius - 1)
    moved, centre = _spread(x, reach, dilation), _spread(grad, reach, dilation)
    block, out = weight.new_empty(channels, 1, 3, 3), torch.empty_like(weight)
    for row in _centres(radius):
        for column in _centres(radius):
            _, found = _library(centre(0, 0), moved(row, column), block, 1, (False, True))
            assert found is not None
            top, left = radius + row - 1, radius + column - 1
            out[:, :, top : top + 3, left : left + 3] = found
    return out


def _centres(radius: int) -> list[int]:
    """Where 3-wide blocks stand that cover `-radius .. radius`; they may overlap."""
    return sorted({min(at, radius - 1) for at in range(1 - radius, radius + 2, 3)})


def _spread(x: Tensor, reach: int, dilation: int) -> Callable[[int, int], Tensor]:
    """Pixels of each position modulo `dilation` as maps `[N, C, H', W']` of their own, moved at no cost.

    At (row, column), pixel (h, w) is that of (h + row, w + column): another start in memory, channels last,
    where each map has one zero before and `reach` behind.

    One zero on each side is what a 3x3 block reads beyond a map; with those of the next line, a map moved by
    `reach` pixels still reads zeros.
    """
    batch, channels, *sides = x.shape
    even = [side + -side % dilation for side in sides]
    if even != sides:
        x = F.pad(x, (0, even[1] - sides[1], 0, even[0] - sides[0]))
    inner = [side // dilation for side in even]
    height, width = (side + 1 + reach for side in inner)
    count = dilation * dilation * batch
    guard, size = reach * (width + 1) * channels, count * height * width * channels
    buffer = x.new_zeros(size + 2 * guard)
    maps = buffer[guard : guard + size].view(dilation, dilation, batch, height, width, channels)
    split = x.permute(0, 2, 3, 1).reshape(batch, inner[0], dilation, inner[1], dilation, channels)
    maps[:, :, :, 1 : 1 + inner[0], 1 : 1 + inner[1]] = split.permute(2, 4, 0, 1, 3, 5)
    strides = (height * width * channels, 1, width * channels, channels)

    def at(row: int, column: int) -> Tensor:
        start = guard + (row * width + column) * channels
        return buffer.as_strided((count, channels, height, width), strides, start)

    return at


def _forward(x: Tensor, weight: Tensor, dilation: int, stride: int = 1) -> Tensor:
    return F.conv2d(x, weight, None, stride, dilation * (weight.shape[-1] // 2), dilation, x.shape[1])


def _library(
    grad: Tensor, x: Tensor, weight: Tensor, dilation: int, wanted: tuple[bool, bool], *, stride: int = 1
) -> tuple[Tensor | None, Tensor | None]:
    """The library's gradients of the input and of the kernels, as far as wanted."""
    padding = dilation * (weight.shape[-1] // 2)
    found = torch.ops.aten.convolution_backward(
        *(grad, x, weight, None, [stride] * 2, [padding] * 2, [dilation] * 2),
        *(False, [0, 0], x.shape[1], [*wanted, False]),
    )
    return found[0], found[1]


@dataclass(frozen=True, slots=True)
class Stack:
    """The maps of G operations of one kind.

    x: [B, G * C, H, W], operation after operation; while all of them see the same map (`shared`),
      [B, C, H, W].
    """

    x: Tensor
    groups: int
    shared: bool

    def apart(self) -> Tensor:
        """`[B, G * C, H, W]`: where the map is shared, a copy for each operation."""
        if not self.shared or self.groups == 1:
            return self.x
        return side_by_side([self.x] * self.groups)

    def map(self, function: Callable[[Tensor], Tensor]) -> Stack:
        """The same function on every channel by itself."""
        return Stack(function(self.x), self.groups, self.shared)


def side_by_side(maps: Sequence[Tensor]) -> Tensor:
    """Maps `[B, C, H, W]` in one `[B, G * C, H, W]`, channels last in memory."""
    return torch.cat([x.permute(0, 2, 3, 1) for x in maps], dim=-1).permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> Tensor:
    """The same map with its channels last in memory."""
    return x.contiguous(memory_format=torch.channels_last)


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Weights in one tensor, along the first dimension."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


Run = Callable[[Sequence[nn.Module], Stack], Stack]


@dataclass(frozen=True)
class Rule:
    """How G layers with equal keys run as one.

    key: all that they must have in common.
    run: what each of them makes of its maps; a batch-norm among them may be frozen by itself.
    pure: whether they have neither weights nor state, so that layers with equal keys do the same.
    shares: whether, while training, they make the same of the same map.
    """

    key: Hashable
    run: Run
    pure: bool = False
    shares: bool = False


class Batched:
    """A module that says itself how several of its kind run together."""

    def rule(self) -> Rule | None:
        """The rule of a primitive; None for one that runs by itself."""
        raise NotImplementedError


def rule_of(layer: nn.Module) -> Rule | None:
    """The rule of one layer; None where there is none, so that it runs by itself.

    A subclass of a known layer may do something else, so it must have a rule of its own (`Batched`).
    """
    if isinstance(layer, Batched):
        return layer.rule()
    make = _RULES.get(type(layer))
    return make(layer) if make is not None else None


def convolve(layers: Sequence[nn.Module], stack: Stack) -> Stack:
    """Convolutions of equal form, with the weights of each."""
    convs = cast(Sequence[nn.Conv2d], layers)
    first, groups = convs[0], len(convs)
    weight = joined([conv.weight for conv in convs])
    if _is_depthwise(first):
        stride, dilation = first.stride[0], first.dilation[0]
        return Stack(depthwise(stack.apart(), weight, stride=stride, dilation=dilation), groups, shared=False)
    bias = None if first.bias is None else joined([conv.bias for conv in convs if conv.bias is not None])
    x, count = (stack.x, 1) if stack.shared and first.groups == 1 else (stack.apart(), groups)
    y = F.conv2d(x, weight, bias, first.stride, first.padding, first.dilation, count * first.groups)
    return Stack(y, groups, shared=False)


def _is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether `depthwise` computes it: each channel has an odd square kernel, and the map keeps its size."""
    kernel, stride, dilation = conv.kernel_size, conv.stride, conv.dilation
    same = tuple(d * (k // 2) for d, k in zip(dilation, kernel, strict=True))
    square = all(len(set(sides)) == 1 for sides in (kernel, stride, dilation)) and kernel[0] % 2 == 1
    plain = conv.bias is None and conv.padding_mode == "zeros" and conv.padding == same
    return square and plain and kernel[0] > 1 and conv.groups == conv.in_channels == conv.out_channels


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
        # Batch-norm keeps its weights in float32, or float64, beside maps of any type. Not expanded: its
        # gradient reads the memory of its weights as if it were dense.
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        each = scale.to(exact).repeat_interleave(first.num_features)
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
    for momentum in dict.fromkeys(norm.momentum for norm in norms):
        own = [at for at, norm in enumerate(norms) if norm.momentum == momentum]
        for name, towards in (("mean", means), ("var", variances)):
            running = [cast(Tensor, getattr(norms[at], f"running_{name}")) for at in own]
            torch._foreach_lerp_(running, [towards[at] for at in own], cast(float, momentum))
    torch._foreach_add_([cast(Tensor, norm.num_batches_tracked) for norm in norms], 1)


def _convolution(layer: nn.Module) -> Rule | None:
    """Of equal shapes; none where borders are not padded with zeros."""
    conv = cast(nn.Conv2d, layer)
    if conv.padding_mode != "zeros":
        return None
    shapes = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
    return Rule((nn.Conv2d, *shapes, conv.dilation, conv.groups, conv.bias is None), convolve)


def norm_key(norm: nn.BatchNorm2d) -> Hashable:
    """What batch-norms must have in common; None where the running statistics are plain means.

    Whether statistics are recorded, or used, and how fast they follow, may change for a while and so is asked
    when they run.
    """
    if norm.momentum is None:
        return None
    return (norm.num_features, norm.eps, norm.affine, norm.running_mean is None)


def _norm(layer: nn.Module) -> Rule | None:
    """Of equal settings."""
    norm = cast(nn.BatchNorm2d, layer)
    key = norm_key(norm)
    return None if key is None else Rule((nn.BatchNorm2d, key), normalise, shares=not norm.affine)


def _pool(layer: nn.Module) -> Rule | None:
    """Of equal settings; none where places are given beside the maxima."""
    if getattr(layer, "return_indices", False):
        return None
    settings = [getattr(layer, name) for name in cast(nn.MaxPool2d, layer).__constants__]
    key = (type(layer), *settings)
    return Rule(key, lambda layers, stack: stack.map(layers[0]), pure=True, shares=True)


_RULES: dict[type[nn.Module], Callable[[nn.Module], Rule | None]] = {
    nn.Conv2d: _convolution,
    nn.BatchNorm2d: _norm,
    nn.ReLU: lambda _: Rule((nn.ReLU,), lambda _layers, stack: stack.map(F.relu), pure=True, shares=True),
    nn.MaxPool2d: _pool,
    nn.AvgPool2d: _pool,
    nn.Identity: lambda _: Rule((nn.Identity,), lambda _layers, stack: stack, pure=True, shares=True),
}
