"""Text of generated source whose whole numbers can still become parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


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
