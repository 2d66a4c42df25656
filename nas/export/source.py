"""The source of a found network: readable, of torch alone, each kind of part written once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from nas.export.tracing import Made, Shape, Whole, root_of

WIDTH = 100
_OPEN, _CLOSE = "([{", ")]}"


def wrapped(line: str, width: int = WIDTH) -> str:
    """The line, or where it is too long its outermost brackets' contents on lines of their own."""
    if len(line) <= width:
        return line
    ends = _outermost(line)
    if ends is None or ends[1] - ends[0] <= len(line) - width:  # what is around them is too long, too
        return line
    start, end = ends
    indent = len(line) - len(line.lstrip())
    inner = [wrapped(f"{' ' * (indent + 4)}{item},", width) for item in _items(line[start + 1 : end])]
    return "\n".join([line[: start + 1], *inner, " " * indent + line[end:]])


def _outermost(line: str) -> tuple[int, int] | None:
    """Where the longest pair of brackets outside any other is, of those that bear a comma at the end."""
    depth, start, best = 0, 0, (0, 0)
    for at, character in enumerate(line):
        if character in _OPEN:
            start = at if depth == 0 else start
            depth += 1
        elif character in _CLOSE:
            depth -= 1
            if depth == 0 and at - start > best[1] - best[0] and _bears_comma(line, start, at):
                best = (start, at)
    return best if best[1] - best[0] > 1 else None


def _bears_comma(line: str, start: int, end: int) -> bool:
    """Whether a comma before the closing bracket changes nothing: not so in `x["a"]` and `(a + b)`."""
    before = line[start - 1 : start]
    behind = before.isalnum() or before in ("_", ")", "]")
    lone = behind if line[start] == "[" else not behind and line[start] == "("
    return not lone or len(list(_items(line[start + 1 : end]))) > 1


def _items(text: str) -> Iterator[str]:
    """What stands between the commas that are in no further brackets."""
    depth, start = 0, 0
    for at, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if character == "," and depth == 0:
            yield text[start:at].strip()
            start = at + 1
    if text[start:].strip():
        yield text[start:].strip()


@dataclass
class _Class:
    """A class to be written, and the numbers of all its instances.

    parameters: name and the columns of numbers that it stands for.
    """

    name: str
    shape: Shape
    instances: list[tuple[Whole, ...]] = field(default_factory=list)
    parameters: dict[str, list[int]] = field(default_factory=dict)

    def settle(self) -> None:
        """Makes parameters of the numbers that differ between instances; equal ones become one."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for at in range(len(self.instances[0])):
            column = tuple(instance[at].value for instance in self.instances)
            if len(set(column)) > 1:
                groups.setdefault(column, []).append(at)
        for columns in groups.values():
            wanted = self.instances[0][columns[0]].name
            name, number = wanted, 2
            while name in self.parameters:
                name, number = f"{wanted}{number}", number + 1
            self.parameters[name] = columns


def source_of(network: nn.Module, x: Tensor) -> str:
    """Classes that make and run a network as it runs in evaluation mode; the last one is the network.

    Its parameters and buffers have the names that they have in `network`, as far as they are used.

    Raises:
        SpaceError: when a forward or a constructor cannot be written down, naming the class.
    """
    root = root_of(network, x)
    found: dict[Shape, _Class] = {}
    _collect(root, found)
    for own in found.values():
        own.settle()
    texts = [_text(own, found) for own in found.values()]
    return "\n\n".join(texts)


def name_of(source: str) -> str:
    """The class that is defined last."""
    return source.rsplit("\nclass ", 1)[-1].removeprefix("class ").split("(", 1)[0]


def _collect(root: Made, found: dict[Shape, _Class]) -> None:
    """All classes below, those that others are made of first."""
    at = 0
    for part in root.shape.parts:
        if part is None:
            at += 1
        elif isinstance(part, Shape):
            count = _count(part)
            _collect(Made(part, root.numbers[at : at + count]), found)
            at += count
    if root.shape not in found:
        names = {own.name for own in found.values()}
        name, number = root.shape.name, 2
        while name in names:
            name, number = f"{root.shape.name}{number}", number + 1
        found[root.shape] = _Class(name, root.shape)
    found[root.shape].instances.append(root.numbers)


def _count(shape: Shape) -> int:
    return sum(1 if part is None else _count(part) if isinstance(part, Shape) else 0 for part in shape.parts)


def _text(own: _Class, found: dict[Shape, _Class]) -> str:
    names = {at: name for name, columns in own.parameters.items() for at in columns}
    body, at = "", 0
    kept: dict[str, None] = {}

    def number(at: int) -> str:
        if at not in names:
            return str(own.instances[0][at].value)
        if "def forward" not in body:
            return names[at]
        kept[names[at]] = None
        return f"self.{names[at]}"

    for part in own.shape.parts:
        if part is None:
            body += number(at)
            at += 1
        elif isinstance(part, Shape):
            inner = found[part]
            given = [number(at + columns[0]) for columns in inner.parameters.values()]
            body += f"{inner.name}({', '.join(given)})"
            at += _count(part)
        else:
            body += part
    begin, rest = body.split("\n", 1)
    begin = begin.replace("(self)", f"(self{''.join(f', {name}' for name in own.parameters)})")
    start, rest = rest.split("\n", 1)
    keeping = [f"        self.{name} = {name}" for name in kept]
    lines = [begin, start, *keeping, *rest.splitlines()]
    return "\n".join([f"class {own.name}({own.shape.base}):", *map(wrapped, lines), ""])
