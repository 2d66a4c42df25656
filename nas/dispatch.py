"""Sees every operator that torch dispatches, those of the backward pass too, and whose memory is whose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]
See = Callable[[OpOverload, Args, Kwargs, object], None]
"""Told of an operator, what it was given, and what it gave."""


class Seeing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside `with Seeing(see):`, calls `see` after each operator."""

    def __init__(self, see: See) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._see = see

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        output: object = func(*args, **(kwargs or {}))
        self._see(func, args, kwargs or {}, output)
        return output


def tensors(tree: object) -> list[Tensor]:
    """All tensors in nested lists, tuples and mappings."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def storage_of(tensor: Tensor) -> int:
    """What is equal for tensors that share their memory, as long as one of them lives."""
    return int(tensor.untyped_storage()._cdata)
