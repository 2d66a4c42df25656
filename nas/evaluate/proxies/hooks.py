"""Sees what torch computes inside a network, whether a module or plain code asked for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor
from torch.overrides import TorchFunctionMode


class Watch(TorchFunctionMode):
    """Inside `with Watch(see):`, calls `see(function, output)` for each function of torch."""

    def __init__(self, see: Callable[[object, Tensor], None]) -> None:
        super().__init__()
        self._see = see

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor):
            self._see(func, output)
        return output
