"""JSON from outside, read strictly: one meaning, of known depth, with numbers that the engine can hold."""

from __future__ import annotations

import json
import math

from nas.text import shown

MAX_DEPTH = 50
"""Of lists and tables; those of our files are 6 deep."""
_DEEP = f"nested too deeply, more than {MAX_DEPTH} lists and tables in each other"


def loads(text: str) -> object:
    """The value of a JSON text.

    Raises:
        ValueError: for whatever is not strict JSON: syntax errors, NaN and infinities, integers of more than
            64 bits, a key given twice, or nesting deeper than `MAX_DEPTH`.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
    except RecursionError as error:
        raise ValueError(_DEEP) from error
    if is_deep(value):
        raise ValueError(_DEEP)
    return value


def is_deep(value: object) -> bool:
    """Whether lists and tables nest deeper than `MAX_DEPTH`."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} is given twice")
        found[key] = value
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:50]} is too large for a float")
    return value


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**63:
        raise ValueError(f"{text[:50]} is an integer of more than 64 bits")
    return value
