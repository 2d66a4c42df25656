"""Long lines of generated source, broken as a formatter would: one argument a line."""

from __future__ import annotations

from collections.abc import Iterator

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
