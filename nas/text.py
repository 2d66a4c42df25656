"""Text fit to be shown: foreign text that cannot steer a terminal and comes to an end, counted nouns."""

from __future__ import annotations

import reprlib

SCREEN = 4000
"""Characters of one message at most."""


def printable(text: str, *, limit: int | None = None) -> str:
    r"""`text` with every character that is not printable as its escape, e.g. `\x1b`; line breaks stay.

    That covers control characters, marks that turn the direction of writing, and bytes of a path that are no
    UTF-8, which no stream could write.

    limit: characters kept of a longer text.
    """
    if limit is not None and len(text) > limit:
        text = f"{text[:limit]}... ({len(text) - limit:,} more characters)"
    return text if text.isprintable() else "".join(map(_escaped, text))


def counted(number: float, noun: str) -> str:
    """A number of things in words: `1 epoch`, `1,438 images`, `2 classes`."""
    several = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,.0f} {noun}{several}"


def _escaped(character: str) -> str:
    if character.isprintable() or character == "\n":
        return character
    return character.encode("unicode_escape").decode("ascii")


class _Short(reprlib.Repr):
    """Representations of at most a few words, also of integers too long to be written out."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 120

    def repr_int(self, x: int, level: int) -> str:
        """An integer, or how long it is: Python refuses to write out thousands of digits."""
        bits = x.bit_length()
        return super().repr_int(x, level) if bits < 1000 else f"<an integer of {bits} bits>"


shown = _Short().repr
"""`repr` of a value from outside, with the middle of whatever is long left out."""
