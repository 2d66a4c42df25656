"""The source of a found network: readable, of torch alone, one class for each kind of module.

A module's forward is traced symbolically in evaluation mode with the modules in it left whole (torch.fx):
what it decides in Python is decided for good, and what it does not use is not written. Whole numbers stand
in the text as marks, so that modules whose texts differ in nothing else become one class; its parameters are
the numbers that differ between them. Example of a text before its numbers are settled:

    self.conv = nn.Conv2d(⟦16:c_in⟧, ⟦32:c_out⟧, ⟦1:kernel_size⟧)
"""

from __future__ import annotations

import ast
import builtins
import inspect
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import indent
from typing import Any

import torch
from torch import Tensor, fx, nn

from nas.devices import evaluating
from nas.errors import SpaceError

_NUMBER = re.compile(r"⟦(?P<value>-?\d+):(?P<name>\w+)⟧")
_INSTANCE = re.compile(r"⟪(?P<index>\d+):[^⟫]*⟫")
"""An instance of a class that is written, with all of its numbers, those of its own parts included."""
_EITHER = re.compile(f"{_INSTANCE.pattern}|{_NUMBER.pattern}")
_SHORT = {"in_channels": "c_in", "out_channels": "c_out", "num_features": "c", "groups": "c"}
_RESERVED = ("F", "Model", "Path", "json", "nn", "torch")
"""Names that model.py uses itself."""


def source_of(network: nn.Module) -> str:
    """Classes that make and run a network as it runs in evaluation mode; the last one is the network.

    Its parameters and buffers have the names that they have in `network`, as far as they are used.

    Raises:
        SpaceError: when a forward or a constructor cannot be written down, naming the class.
    """
    writer = _Writer()
    if type(network) is nn.Sequential or not _INSTANCE.fullmatch(writer.expression(network)):
        layers = network if type(network) is nn.Sequential else [network]
        made = _call("super().__init__", [writer.expression(layer) for layer in layers]) + "\n"
        writer.instance("Network", made, base="nn.Sequential")
    return writer.source()


def name_of(source: str) -> str:
    """The class that is defined last."""
    return source.rsplit("\nclass ", 1)[-1].removeprefix("class ").split("(", 1)[0]


# -- classes --------------------------------------------------------------------------------------------


@dataclass
class _Class:
    """A class to be written, and the numbers of all its instances.

    init, forward: its text, with the marks of its first instance.
    """

    name: str
    base: str
    init: str
    forward: str
    instances: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def parameters(self) -> dict[str, list[int]]:
        """Names of the numbers that differ between instances, with their places; equal numbers share one."""
        taken = set(re.findall(r"self\.(\w+)", self.init))
        marks = [match["name"] for match in _NUMBER.finditer(self.init + self.forward)]
        places: dict[tuple[int, ...], list[int]] = {}
        for at, column in enumerate(zip(*self.instances, strict=True)):
            if len(set(column)) > 1:
                places.setdefault(column, []).append(at)
        found: dict[str, list[int]] = {}
        for same in places.values():
            found[_unused(marks[same[0]], taken | found.keys())] = same
        return found


class _Writer:
    """Turns modules into expressions that make them, and keeps the classes that these need."""

    def __init__(self) -> None:
        self.classes: dict[tuple[str, ...], _Class] = {}

    def expression(self, module: nn.Module, inputs: int = 1) -> str:
        """An expression that makes a module like this one. inputs: how many maps it is given."""
        if type(module) is nn.Sequential:
            return _call("nn.Sequential", [self.expression(child) for child in module])
        if type(module).__module__.startswith("torch.nn."):
            return _constructor(module)
        graph = _traced(module, _names(module, inputs))
        if _is_identity(graph):
            return "nn.Identity()"
        used = {str(n.target): len(n.args) for n in graph.nodes if n.op in ("call_module", "get_attr")}
        members = [
            f"self.{name} = {self._member(getattr(module, name), inner)}\n"
            for name, inner in _by_first(used).items()
        ]
        return self.instance(
            _class_name(module), "".join(["super().__init__()\n", *members]), _forward(graph)
        )

    def instance(self, name: str, init: str, forward: str = "", *, base: str = "nn.Module") -> str:
        """An expression for an instance of the class that has this text but for its numbers."""
        key = (name, base, _NUMBER.sub("", init), _NUMBER.sub("", forward))
        if key not in self.classes:
            names = {own.name for own in self.classes.values()}
            self.classes[key] = _Class(_unused(name, names | set(_RESERVED)), base, init, forward)
        marks = list(_NUMBER.finditer(init + forward))
        self.classes[key].instances.append(tuple(int(mark["value"]) for mark in marks))
        return f"⟪{list(self.classes).index(key)}:{''.join(mark[0] for mark in marks)}⟫"

    def source(self) -> str:
        """The classes, those that others are made of first."""
        classes = list(self.classes.values())
        parameters = [own.parameters for own in classes]

        def text(own: _Class, chosen: Mapping[str, Sequence[int]]) -> str:
            names = {place: name for name, places in chosen.items() for place in places}
            at = 0

            def number(place: int, prefix: str) -> str:
                return f"{prefix}{names[place]}" if place in names else str(own.instances[0][place])

            def settled(match: re.Match[str], prefix: str = "") -> str:
                nonlocal at
                begin = at
                at += len(_NUMBER.findall(match[0]))
                if match["index"] is None:
                    return number(begin, prefix)
                inner = int(match["index"])
                given = [number(begin + places[0], prefix) for places in parameters[inner].values()]
                return f"{classes[inner].name}({', '.join(given)})"

            init = _EITHER.sub(settled, own.init)
            forward = _EITHER.sub(lambda match: settled(match, "self."), own.forward)
            used = set(re.findall(r"self\.(\w+)", forward))
            init += "".join(f"self.{name} = {name}\n" for name in chosen if name in used)
            body = f"def __init__({', '.join(['self', *chosen])}):\n{indent(init, '    ')}"
            body += f"\n{forward}\n" if forward else ""
            return f"class {own.name}({own.base}):\n{indent(body, '    ')}"

        return "\n\n".join(map(text, classes, parameters))

    def _member(self, value: object, used: Mapping[str, int]) -> str:
        """An attribute's value; what lies deeper in it is kept in dictionaries, under the same names.

        used: how many maps each part of it is given, by its path; the path of the value itself is empty.
        """
        if isinstance(value, nn.Module) and "" not in used:
            parts = _by_first(used).items()
            items = [f'"{name}": {self._member(value.get_submodule(name), inner)}' for name, inner in parts]
            return f"nn.ModuleDict({_call('', items, '{}')})"
        if isinstance(value, nn.Module):
            return self.expression(value, used[""])
        if isinstance(value, nn.Parameter):
            return f"nn.Parameter(torch.empty({_literal(tuple(value.shape), 'c')}))"
        raise SpaceError(
            f"source: a {type(value).__name__} that is no parameter cannot be written; register it"
        )


def _class_name(module: nn.Module) -> str:
    """That of its type; where it has a `kind`, as cells have, with that before it."""
    kind, own = getattr(module, "kind", ""), type(module).__name__
    told = not isinstance(kind, str) or own.lower().endswith(kind.lower())
    return re.sub(r"\W", "", own if told else f"{kind.title()}{own}")


def _unused(name: str, taken: Container[str]) -> str:
    """The name itself, or with the first number from 2 on by which it is new."""
    found, number = name, 2
    while found in taken:
        found, number = f"{name}{number}", number + 1
    return found


def _by_first(paths: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """What is known of dotted paths, by their first part and by the rest."""
    found: dict[str, dict[str, int]] = {}
    for path, value in paths.items():
        first, _, rest = path.partition(".")
        found.setdefault(first, {})[rest] = value
    return found


def _call(function: str, arguments: Sequence[str], brackets: str = "()") -> str:
    """A call, or what stands in other brackets, with several arguments on a line each."""
    if len(arguments) > 1:
        lines = "".join(f"{argument},\n" for argument in arguments)
        return f"{function}{brackets[0]}\n{indent(lines, '    ')}{brackets[1]}"
    return f"{function}{brackets[0]}{''.join(arguments)}{brackets[1]}"


# -- how a module of torch is made ----------------------------------------------------------------------


def _constructor(module: nn.Module) -> str:
    """`nn.Conv2d(16, 16, 3, padding=1, bias=False)`: what differs from the defaults.

    Raises:
        SpaceError: when an argument cannot be read from the module.
    """
    arguments: list[str] = []
    by_position = True
    for parameter in inspect.signature(type(module).__init__).parameters.values():
        loose = parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        if loose or parameter.name in ("self", "device", "dtype"):
            continue
        value = _argument(module, parameter)
        if parameter.default is not inspect.Parameter.empty and value == _simple(parameter.default):
            by_position = False
            continue
        text = _literal(value, _SHORT.get(parameter.name, parameter.name))
        arguments.append(text if by_position else f"{parameter.name}={text}")
    return f"nn.{type(module).__name__}({', '.join(arguments)})"


def _argument(module: nn.Module, parameter: inspect.Parameter) -> object:
    value: Any = getattr(module, parameter.name, parameter.default)
    if value is inspect.Parameter.empty:
        raise SpaceError(
            f"source: how a {type(module).__name__} was made cannot be read from it: it keeps no "
            f"{parameter.name!r}"
        )
    if parameter.name == "bias":
        return value is not None and value is not False
    return _simple(value)


def _simple(value: object) -> object:
    """A tuple of equal numbers as one."""
    return value[0] if isinstance(value, tuple) and value and len(set(value)) == 1 else value


def _literal(value: object, name: str) -> str:
    """A plain value as source, its whole numbers as marks of this name."""
    if isinstance(value, bool | float | str | None):
        return repr(value)
    if isinstance(value, int):
        return f"⟦{value}:{name}⟧"
    if isinstance(value, tuple | list):
        return f"({', '.join(_literal(item, name) for item in value)}{',' if len(value) == 1 else ''})"
    kind = "a tensor" if isinstance(value, Tensor) else type(value).__name__
    raise SpaceError(f"source: argument {name!r} is {kind}, which cannot be written as source")


# -- how its maps flow ----------------------------------------------------------------------------------


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
        """All are."""
        return True


def _names(module: nn.Module, count: int) -> list[str]:
    """What the maps that a module is given are called; where it takes any number, `x0`, `x1` and so on."""
    taken = list(inspect.signature(module.forward).parameters.values())
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in taken):
        return [f"x{i}" for i in range(count)]
    return [parameter.name for parameter in taken[:count]]


def _traced(module: nn.Module, inputs: Sequence[str]) -> fx.Graph:
    """The forward of a module as a graph, without what changes nothing."""
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
        elif node.op == "call_function" and inspect.isfunction(node.target):
            defaults = {p.name: p.default for p in inspect.signature(node.target).parameters.values()}
            chosen = {n: v for n, v in node.kwargs.items() if n not in defaults or v is not defaults[n]}
            node.kwargs = chosen
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    return graph


def _is_identity(graph: fx.Graph) -> bool:
    nodes = [node for node in graph.nodes if node.op != "placeholder"]
    return len(nodes) == 1 and isinstance(nodes[0].args[0], fx.Node)


def _forward(graph: fx.Graph) -> str:
    """A graph as a method, whole numbers as marks."""
    code = graph.python_code("self")
    (method,) = (node for node in ast.parse(code.src).body if isinstance(node, ast.FunctionDef))
    method.returns = None
    text = ast.unparse(_Plain(code.globals).visit(method))
    return text.replace("torch.nn.functional.", "F.").replace("torch._C._nn.", "F.")


class _Plain(ast.NodeTransformer):
    """Makes the code of torch.fx what a person would write: `self.ops["0"](x)`, `x[:, 1:]`, no deletions.

    known: what its global names stand for.
    """

    def __init__(self, known: Mapping[str, object]) -> None:
        self.known = known

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        """Leaves `x = None` out, which only frees memory."""
        is_deletion = isinstance(node.value, ast.Constant) and node.value.value is None
        return None if is_deletion else self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """`getattr(self.ops, "0")` as `self.ops["0"]`."""
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "getattr":
            return ast.Subscript(node.args[0], node.args[1], ast.Load())
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        """`x[slice(1, None, None)]` as `x[1:]`."""
        self.generic_visit(node)
        if isinstance(node.slice, ast.Tuple):
            node.slice.elts = [_as_slice(part) for part in node.slice.elts]
        else:
            node.slice = _as_slice(node.slice)
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """Whole numbers as marks."""
        return ast.Name(f"⟦{node.value}:n⟧", ast.Load()) if type(node.value) is int else node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """Refuses what is not torch's, nor Python's own."""
        found = self.known.get(node.id, torch)
        if node.id in ("inf", "nan", "device") and node.id in self.known:
            return ast.Attribute(ast.Name("torch", ast.Load()), node.id, ast.Load())
        if found is not torch and getattr(builtins, node.id, None) is not found:
            raise SpaceError(f"source: a call of {found} in a forward cannot be written")
        return node


def _as_slice(node: ast.expr) -> ast.expr:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "slice":
        ends = (None if isinstance(end, ast.Constant) and end.value is None else end for end in node.args)
        return ast.Slice(*ends)
    return node
