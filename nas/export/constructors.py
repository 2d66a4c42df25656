"""How a module of torch.nn is constructed, read from the module itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from nas.errors import SpaceError
from nas.export.pieces import Piece, Whole, joined

_ELSEWHERE = ("device", "dtype")
_LOOSE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_SHORT = {"in_channels": "c_in", "out_channels": "c_out", "num_features": "c", "groups": "c"}


def is_torch(module: nn.Module) -> bool:
    """Whether PyTorch itself defines what a module does."""
    return type(module).__module__.startswith("torch.nn.")


def constructor(module: nn.Module) -> list[Piece]:
    """`nn.Conv2d(16, 16, 3, padding=1, bias=False)`: what differs from the defaults.

    Raises:
        SpaceError: when an argument cannot be read from the module.
    """
    arguments: list[list[Piece]] = []
    by_position = True
    for parameter in inspect.signature(type(module).__init__).parameters.values():
        if parameter.name in ("self", *_ELSEWHERE) or parameter.kind in _LOOSE:
            continue
        value = _value(module, parameter)
        if parameter.default is not inspect.Parameter.empty and value == _simple(parameter.default):
            by_position = False
            continue
        own = list(_pieces(value, parameter.name))
        arguments.append(own if by_position else [f"{parameter.name}=", *own])
    return [f"nn.{type(module).__name__}(", *joined(arguments, ", "), ")"]


def _value(module: nn.Module, parameter: inspect.Parameter) -> object:
    value: Any = getattr(module, parameter.name, inspect.Parameter.empty)
    if value is inspect.Parameter.empty:
        if parameter.default is inspect.Parameter.empty:
            raise SpaceError(
                f"source: how a {type(module).__name__} was made cannot be read from it: it keeps no "
                f"{parameter.name!r}"
            )
        return _simple(parameter.default)
    if parameter.name == "bias":
        return value is not None and value is not False
    return _simple(value)


def _simple(value: object) -> object:
    """A tuple of equal numbers as one."""
    if isinstance(value, tuple) and value and len(set(value)) == 1:
        return value[0]
    return value


def _pieces(value: object, name: str) -> Iterator[Piece]:
    if isinstance(value, bool | float | str | None):
        yield repr(value)
    elif isinstance(value, int):
        yield Whole(value, _SHORT.get(name, name))
    elif isinstance(value, tuple | list):
        yield "("
        yield from joined([list(_pieces(item, name)) for item in value], ", ")
        yield ",)" if len(value) == 1 else ")"
    else:
        kind = "a tensor" if isinstance(value, Tensor) else type(value).__name__
        raise SpaceError(f"source: argument {name!r} is {kind}, which cannot be written as source")
