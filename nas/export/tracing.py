"""What a module computes, as source: one class for each module of the engine's or the user's own.

A module's forward is traced symbolically in evaluation mode with the modules in it left whole (torch.fx):
what it decides in Python is decided for good, and what it does not use is not written.
"""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from nas.errors import SpaceError
from nas.training.evaluate import evaluating

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


@dataclass(frozen=True)
class Whole:
    """A whole number in the source. name: what it would be called as a parameter."""

    value: int
    name: str


@dataclass(frozen=True)
class Made:
    """A call of a generated class, which stands for one of its instances.

    shape: the class's text without its numbers. numbers: all of this instance, those inside its own parts
    included.
    """

    shape: Shape
    numbers: tuple[Whole, ...]


Piece = str | Whole | Made


@dataclass(frozen=True)
class Shape:
    """The text of a class without its numbers: what two instances of one class share.

    name: what the class would be called. parts: text, with None for each number and the shape of each part
    that is made of another class. base: the class that it derives from.
    """

    name: str
    parts: tuple[str | Shape | None, ...]
    base: str = "nn.Module"


def made(name: str, pieces: Sequence[Piece], base: str = "nn.Module") -> Made:
    """The instance whose class has this text."""
    parts: list[str | Shape | None] = []
    numbers: list[Whole] = []
    for piece in merged(pieces):
        match piece:
            case Whole():
                parts.append(None)
                numbers.append(piece)
            case Made(shape, own):
                parts.append(shape)
                numbers += own
            case text:
                parts.append(text)
    return Made(Shape(name, tuple(parts), base), tuple(numbers))


def merged(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """The same with neighbouring texts as one."""
    text = ""
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
            continue
        if text:
            yield text
        text = ""
        yield piece
    if text:
        yield text


def joined(items: Sequence[Sequence[Piece]], between: str) -> list[Piece]:
    """All items with a text between them."""
    found: list[Piece] = []
    for i, item in enumerate(items):
        found += [*([between] if i else []), *item]
    return found


_INFIX = {
    operator.add: "+", operator.iadd: "+", operator.mul: "*", operator.imul: "*", operator.sub: "-",
    operator.truediv: "/", operator.floordiv: "//", operator.matmul: "@", torch.add: "+", torch.mul: "*",
}  # fmt: skip
_MODULES = {"torch": "torch", "torch._C._nn": "F", "torch.nn.functional": "F", "math": "math"}


class _Shallow(fx.Tracer):
    """Leaves every module inside the traced one as it is.

    inputs: names of the maps that it is given.
    """

    def __init__(self, inputs: Sequence[str]) -> None:
        super().__init__()
        self.inputs = inputs

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:  # noqa: ANN401, ARG002, FBT001
        """As many as it is given, also where its forward takes any number."""
        return root_fn, [self.root, *(self.create_proxy("placeholder", n, (), {}) for n in self.inputs)]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return True


Counts = Mapping[nn.Module, int]
"""How many maps each module was given."""


def counted(network: nn.Module, x: Tensor) -> Counts:
    """Of one pass in evaluation mode; modules that took no part in it are absent."""
    counts: dict[nn.Module, int] = {}
    hooks = [
        module.register_forward_pre_hook(lambda module, given: counts.update({module: len(given)}))
        for module in network.modules()
    ]
    try:
        with evaluating(network), torch.no_grad():
            network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return counts


def written(module: nn.Module, counts: Counts) -> list[Piece]:
    """An expression that makes a module like this one; a `Made` in it stands for a class to be written."""
    if type(module) is nn.Sequential:
        items = [written(child, counts) for child in module]
        return ["nn.Sequential(", *joined(items, ", "), ")"]
    if is_torch(module):
        return constructor(module)
    graph = _traced(module, _inputs(module, counts))
    if _is_identity(graph):
        return ["nn.Identity()"]
    return [made(_name(module), _class(module, graph, counts))]


def _inputs(module: nn.Module, counts: Counts) -> list[str]:
    taken = list(inspect.signature(module.forward).parameters.values())
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in taken):
        return [f"x{i}" for i in range(counts.get(module, 1))]
    return [parameter.name for parameter in taken[: counts.get(module, 1)]]


def _name(module: nn.Module) -> str:
    kind = getattr(module, "kind", "")
    own = type(module).__name__
    told = not isinstance(kind, str) or own.lower().endswith(kind.lower())
    name = own if told else f"{kind.title()}{own}"
    return re.sub(r"\W", "", name)


def _traced(module: nn.Module, inputs: Sequence[str]) -> fx.Graph:
    try:
        with evaluating(module):
            graph = _Shallow(inputs).trace(module)
    except (fx.proxy.TraceError, TypeError, RuntimeError, AttributeError) as error:
        raise SpaceError(
            f"source: {type(module).__name__}.forward decides by the values of its maps or iterates over "
            f"their shape, so it cannot be written down ({error}); write it without"
        ) from error
    for node in graph.nodes:
        if node.op == "call_module" and type(module.get_submodule(node.target)) is nn.Identity:
            node.replace_all_uses_with(node.args[0])
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    return graph


def _is_identity(graph: fx.Graph) -> bool:
    nodes = [node for node in graph.nodes if node.op != "placeholder"]
    return len(nodes) == 1 and isinstance(nodes[0].args[0], fx.Node)


def _class(module: nn.Module, graph: fx.Graph, counts: Counts) -> list[Piece]:
    """The body of a class: what it is made of, and how its maps flow."""
    attributes = [str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")]
    inputs = [node.name for node in graph.nodes if node.op == "placeholder"]
    lines: list[Piece] = ["    def __init__(self):\n        super().__init__()\n"]
    for line in _parts(module, list(dict.fromkeys(attributes)), counts):
        lines += ["        ", *line, "\n"]
    lines.append(f"\n    def forward(self, {', '.join(inputs)}):\n")
    for line in _Statements(graph).lines():
        lines += ["        ", *line, "\n"]
    return lines


# -- what a module is made of ----------------------------------------------------------------------------


def _parts(module: nn.Module, paths: Sequence[str], counts: Counts) -> Iterator[list[Piece]]:
    """Assignments to attributes; what lies deeper is kept in dictionaries, under the same names."""
    for name in dict.fromkeys(path.split(".")[0] for path in paths):
        inner = [path[len(name) + 1 :] for path in paths if path.split(".")[0] == name and "." in path]
        yield [f"self.{name} = ", *_part(getattr(module, name), inner, counts)]


def _part(value: object, inner: Sequence[str], counts: Counts) -> list[Piece]:
    if isinstance(value, nn.Module) and inner:
        names = dict.fromkeys(path.split(".")[0] for path in inner)
        items = []
        for name in names:
            deeper = [p[len(name) + 1 :] for p in inner if p.split(".")[0] == name and "." in p]
            items.append([f'"{name}": ', *_part(value.get_submodule(name), deeper, counts)])
        return ["nn.ModuleDict({", *joined(items, ", "), "})"]
    if isinstance(value, nn.Module):
        return written(value, counts)
    if isinstance(value, nn.Parameter):
        shape: list[list[Piece]] = [[Whole(side, "c")] for side in value.shape]
        return ["nn.Parameter(torch.empty(", *joined(shape, ", "), "))"]
    raise SpaceError(f"source: a {type(value).__name__} that is no parameter cannot be written; register it")


# -- how its maps flow -----------------------------------------------------------------------------------


class _Statements:
    """A graph as assignments; what is used once, in a sum or at the end, stands where it is used."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph

    def lines(self) -> Iterator[list[Piece]]:
        """One after the other."""
        for node in self.graph.nodes:
            if node.op == "output":
                yield ["return ", *self._value(node.args[0])]
            elif node.op != "placeholder" and not self._is_inline(node):
                yield [f"{node.name} = ", *self._expression(node)]

    def _is_inline(self, node: fx.Node) -> bool:
        if len(node.users) != 1:
            return False
        (user,) = node.users
        return user.op == "output" or user.target in _INFIX or node.target in (getattr, operator.getitem)

    def _expression(self, node: fx.Node) -> list[Piece]:
        if node.target is operator.getitem:
            return [*self._value(node.args[0]), "[", *self._index(node.args[1]), "]"]
        if node.target is getattr:
            return [*self._value(node.args[0]), f".{node.args[1]}"]
        arguments = [self._value(argument) for argument in node.args]
        arguments += [[f"{name}=", *self._value(value)] for name, value in _chosen(node).items()]
        if node.op == "call_module":
            return [_place(str(node.target)), "(", *joined(arguments, ", "), ")"]
        if node.op == "get_attr":
            return [_place(str(node.target))]
        if node.op == "call_method":
            return [*arguments[0], f".{node.target}(", *joined(arguments[1:], ", "), ")"]
        return self._call(node, arguments)

    def _call(self, node: fx.Node, arguments: list[list[Piece]]) -> list[Piece]:
        target: Any = node.target
        if target in _INFIX and not node.kwargs:
            return [*arguments[0], f" {_INFIX[target]} ", *arguments[1]]
        if target is operator.neg:
            return ["-", *arguments[0]]
        return [_function(target), "(", *joined(arguments, ", "), ")"]

    def _index(self, index: object) -> list[Piece]:
        if isinstance(index, tuple):
            return joined([self._index(part) for part in index], ", ")
        if isinstance(index, slice):
            ends = [[] if end is None else self._value(end) for end in (index.start, index.stop)]
            step: list[Piece] = [] if index.step is None else [":", *self._value(index.step)]
            return [*ends[0], ":", *ends[1], *step]
        return ["..."] if index is Ellipsis else self._value(index)

    def _value(self, value: object) -> list[Piece]:
        if isinstance(value, fx.Node):
            if value.op == "placeholder" or not self._is_inline(value):
                return [value.name]
            own = self._expression(value)
            weak = value.target in _INFIX and _INFIX[value.target] in "+-" and self._binds(value)
            return ["(", *own, ")"] if weak else own
        if isinstance(value, bool | float | str | None):
            return [repr(value)]
        if isinstance(value, int):
            return [Whole(value, "n")] if value >= 0 else [str(value)]
        if isinstance(value, list | tuple):
            inner = joined([self._value(item) for item in value], ", ")
            return (
                ["[", *inner, "]"]
                if isinstance(value, list)
                else ["(", *inner, ",)" if len(value) == 1 else ")"]
            )
        if isinstance(value, torch.dtype | torch.device):
            return [str(value) if isinstance(value, torch.dtype) else repr(str(value))]
        raise SpaceError(f"source: a {type(value).__name__} in a forward cannot be written")

    def _binds(self, node: fx.Node) -> bool:
        """Whether what uses a sum binds more strongly than a sum."""
        (user,) = node.users
        return user.target in _INFIX and _INFIX[user.target] != "+"


def _chosen(node: fx.Node) -> Mapping[str, object]:
    """Arguments by name that differ from the defaults of a Python function."""
    if node.op != "call_function" or not inspect.isfunction(node.target):
        return node.kwargs
    known = inspect.signature(node.target).parameters
    return {
        name: value
        for name, value in node.kwargs.items()
        if name not in known or value is not known[name].default
    }


def _place(path: str) -> str:
    first, *inner = path.split(".")
    return f"self.{first}" + "".join(f'["{name}"]' for name in inner)


def _function(target: Any) -> str:  # noqa: ANN401 - any function
    name = getattr(target, "__name__", "")
    if getattr(F, name, None) is target:
        return f"F.{name}"
    if getattr(torch, name, None) is target:
        return f"torch.{name}"
    module = _MODULES.get(getattr(target, "__module__", ""), "")
    if not module or not name:
        raise SpaceError(f"source: a call of {target} in a forward cannot be written")
    return f"{module}.{name}"


def root_of(network: nn.Module, x: Tensor) -> Made:
    """The one class that a network is an instance of. x: images that it takes."""
    counts = counted(network, x)
    expression = written(network, counts)
    if len(expression) == 1 and isinstance(expression[0], Made):
        return expression[0]
    layers = network if type(network) is nn.Sequential else [network]
    items = joined([written(layer, counts) for layer in layers], ", ")
    head = "    def __init__(self):\n        super().__init__("
    return made("Network", [head, *items, ")\n"], "nn.Sequential")
