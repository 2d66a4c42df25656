"""What the kernels know: chains of ReLU, convolution and batch-norm, pools of 3x3, and identities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import nn

from nas.oneshot.fused.rules import is_depthwise, keeps_size, layer_type, pieces_of


@dataclass(frozen=True)
class Stage:
    """ReLU, then a dense convolution, or a depthwise and a 1x1 one, and batch-norm.

    Or two 1x1 convolutions in place of a dense one, of which each makes some of the channels, see
    `Batched.batch_halves`.

    depthwise, dense: positions of the convolutions among the pieces that `pieces_of` makes of the layers;
    norm: of the batch-norm. other: of the convolution that makes the later channels.
    """

    depthwise: int | None
    dense: int
    norm: int
    other: int | None = None

    @property
    def convolutions(self) -> list[int]:
        """Positions of all of them, in order."""
        return [at for at in (self.depthwise, self.dense, self.other) if at is not None]


@dataclass(frozen=True)
class Chain:
    """Stages, one after the other."""

    stages: tuple[Stage, ...]

    @property
    def norms(self) -> list[int]:
        """Positions of the batch-norms among the layers."""
        return [stage.norm for stage in self.stages]

    @property
    def dense(self) -> bool:
        """Whether it is one stage without a depthwise convolution."""
        return len(self.stages) == 1 and self.stages[0].depthwise is None


@dataclass(frozen=True)
class Pool:
    """A pool of 3x3 with a border of one pixel, and perhaps batch-norm without affine part.

    largest: the maximum, else the average of what lies inside of the map. norm: position of the batch-norm
    among the layers.
    """

    largest: bool
    stride: int
    norm: int | None

    @property
    def norms(self) -> list[int]:
        """Positions of the batch-norms among the layers."""
        return [] if self.norm is None else [self.norm]


@dataclass(frozen=True)
class Same:
    """The map itself."""

    @property
    def norms(self) -> list[int]:
        """Positions of the batch-norms among the layers: none."""
        return []


Form = Chain | Pool | Same
"""What the kernels take an operation for."""
Shape = tuple[int, int, int]
"""(C, H, W) of a map."""


def form_of(layers: Sequence[nn.Module]) -> Form | None:
    """What an operation of such layers is to the kernels; None where they do not know it."""
    pieces = pieces_of(layers)
    if pieces is not layers:
        return Chain((Stage(None, 0, 2, other=1),)) if _are_halves(pieces) else None
    if stages := stages_of(layers):
        return Chain(stages)
    kinds = [(at, kind) for at, layer in enumerate(layers) if (kind := _kind(layer)) != "same"]
    if not kinds:
        return Same()
    names = [kind for _, kind in kinds]
    if names[0] not in ("largest", "average") or names[1:] not in ([], ["norm"]):
        return None
    pool = cast(nn.MaxPool2d | nn.AvgPool2d, layers[kinds[0][0]])
    norm = kinds[1][0] if len(kinds) > 1 else None
    return Pool(names[0] == "largest", _sides(pool.stride)[0], norm)


def stages_of(layers: Sequence[nn.Module]) -> tuple[Stage, ...]:
    """The stages that a chain of layers is made of; none where the kernels do not know it.

    Only a depthwise convolution reads its maps through the batch-norm of a stage before.
    """
    found: list[Stage] = []
    at = 0
    while at < len(layers):
        kinds = ["norm" if kind == "affine" else kind for kind in map(_kind, layers[at : at + 4])]
        if kinds == ["relu", "depthwise", "pointwise", "norm"]:
            found.append(Stage(at + 1, at + 2, at + 3))
            at += 4
        elif not found and kinds[:1] + kinds[2:3] == ["relu", "norm"] and kinds[1] in ("dense", "pointwise"):
            found.append(Stage(None, at + 1, at + 2))
            at += 3
        else:
            return ()
    return tuple(found)


def shape_after(form: Form, layers: Sequence[nn.Module], before: Shape) -> Shape | None:
    """The shape of what an operation makes of a map; None where it cannot read it."""
    channels, *sides = before
    stride = 1
    if isinstance(form, Pool):
        stride = form.stride
    elif isinstance(form, Chain):
        pieces = pieces_of(layers)
        if cast(nn.Conv2d, pieces[form.stages[0].convolutions[0]]).in_channels != channels:
            return None
        channels = cast(nn.BatchNorm2d, pieces[form.norms[-1]]).num_features
        for at in (at for stage in form.stages for at in stage.convolutions if at != stage.other):
            stride *= cast(nn.Conv2d, pieces[at]).stride[0]
    return channels, -(-sides[0] // stride), -(-sides[1] // stride)


def _are_halves(pieces: Sequence[nn.Module]) -> bool:
    """Whether two convolutions and a batch-norm are what `Batched.batch_halves` says, as kernels know it."""
    *convs, norm = pieces
    return _kind(norm) in ("norm", "affine") and all(
        type(conv) is nn.Conv2d
        and _kind(conv) == "dense"
        and conv.kernel_size == (1, 1)
        and conv.stride == (2, 2)
        and conv.out_channels > 0
        for conv in convs
    )


def _kind(layer: nn.Module) -> str:
    """What a layer is to the kernels."""
    own = layer_type(layer)
    if own in (nn.ReLU, nn.Identity):
        return "relu" if own is nn.ReLU else "same"
    if own is nn.BatchNorm2d:
        norm = cast(nn.BatchNorm2d, layer)
        return "" if norm.momentum is None else "affine" if norm.affine else "norm"
    if own in (nn.MaxPool2d, nn.AvgPool2d):
        return _kind_of_pool(cast(nn.MaxPool2d | nn.AvgPool2d, layer))
    return _kind_of_convolution(cast(nn.Conv2d, layer)) if own is nn.Conv2d else ""


def _kind_of_pool(pool: nn.MaxPool2d | nn.AvgPool2d) -> str:
    stride = _sides(pool.stride)
    plain = _sides(pool.kernel_size) == (3, 3) and _sides(pool.padding) == (1, 1) and not pool.ceil_mode
    if not plain or stride not in ((1, 1), (2, 2)):
        return ""
    if isinstance(pool, nn.MaxPool2d):
        return "largest" if _sides(pool.dilation) == (1, 1) and not pool.return_indices else ""
    return "average" if not pool.count_include_pad and pool.divisor_override is None else ""


def _kind_of_convolution(conv: nn.Conv2d) -> str:
    if not keeps_size(conv):
        return ""
    if conv.groups > 1:
        return "depthwise" if is_depthwise(conv) else ""
    if conv.dilation != (1, 1):
        return ""
    return "pointwise" if conv.kernel_size == conv.stride == (1, 1) else "dense"


def _sides(size: int | tuple[int, ...]) -> tuple[int, ...]:
    return (size, size) if isinstance(size, int) else tuple(size)
