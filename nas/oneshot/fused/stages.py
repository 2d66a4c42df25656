"""Which chains of layers the kernels compute: stages of ReLU, convolution and batch-norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from nas.oneshot.fused.rules import is_depthwise, keeps_size


@dataclass(frozen=True)
class Stage:
    """ReLU, then a dense convolution, or a depthwise and a 1x1 one, and batch-norm without affine part.

    depthwise, dense: positions of the convolutions among the layers; norm: of the batch-norm.
    """

    depthwise: int | None
    dense: int
    norm: int

    @property
    def convolutions(self) -> list[int]:
        """Positions of all of them, in order."""
        return [at for at in (self.depthwise, self.dense) if at is not None]


def stages_of(layers: Sequence[nn.Module]) -> tuple[Stage, ...]:
    """The stages that a chain of layers is made of; none where the kernels do not know it.

    Only a depthwise convolution reads its maps through the batch-norm of a stage before.
    """
    found: list[Stage] = []
    at = 0
    while at < len(layers):
        kinds = [_kind(layer) for layer in layers[at : at + 4]]
        if kinds == ["relu", "depthwise", "pointwise", "norm"]:
            found.append(Stage(at + 1, at + 2, at + 3))
            at += 4
        elif not found and kinds[:1] + kinds[2:3] == ["relu", "norm"] and kinds[1] in ("dense", "pointwise"):
            found.append(Stage(None, at + 1, at + 2))
            at += 3
        else:
            return ()
    return tuple(found)


def _kind(layer: nn.Module) -> str:
    """What a layer is to the kernels."""
    if type(layer) is nn.ReLU:
        return "relu"
    if type(layer) is nn.BatchNorm2d:
        return "" if layer.affine or layer.momentum is None else "norm"
    if type(layer) is not nn.Conv2d or not keeps_size(layer):
        return ""
    if layer.groups > 1:
        return "depthwise" if is_depthwise(layer) else ""
    if layer.dilation != (1, 1):
        return ""
    return "pointwise" if layer.kernel_size == layer.stride == (1, 1) else "dense"
