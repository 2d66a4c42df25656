"""How users may spell the values of settings: sizes and times as text, one text for a list, and so on."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from nas.errors import ConfigError
from nas.study.address import Address
from nas.types import MOST

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def scalar(value: object) -> object:
    """A setting inside a table: text, a finite number of at most 64 bits, true or false."""
    if not isinstance(value, bool | int | float | str):
        raise ValueError("wanted text, a number, true or false")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("wanted a finite number")
    return value if isinstance(value, bool | str) else number(value)


def number(value: object) -> object:
    """A number that is not written as true or false and has at most the 64 bits that TOML grants."""
    if isinstance(value, bool):
        raise ValueError("wanted a number")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("wanted a number of at most 64 bits")
    return value


def encodable(value: object) -> object:
    """Text that can be written into a file; names of files that are no UTF-8 cannot."""
    if isinstance(value, str) and not _is_utf8(value):
        raise ValueError("wanted text that is UTF-8; rename the file")
    return value


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def texts(value: object) -> object:
    """One text counts as a list of one."""
    return (value,) if isinstance(value, str) else value


def seconds(value: object) -> object:
    """`"90"`, `"30m"`, `"1.5h"` as seconds; anything else is left for the type to refuse."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", value) if isinstance(value, str) else None
    if isinstance(value, str) and match is None:
        raise ValueError('wanted a time such as "90s", "30m" or "1.5h"')
    return float(match[1]) * _UNITS[match[2]] if match else number(value)


def size(value: object) -> object:
    """`"8GiB"`, `"500MB"` or a number of bytes as bytes; anything else is left for the type to refuse."""
    match = (
        re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?))?B?\s*", value, re.I)
        if isinstance(value, str)
        else None
    )
    if isinstance(value, str) and match is None:
        raise ValueError('wanted a size such as "8GiB" or "500MB"')
    if match is None:
        return number(value)
    step = 1024 if match[3] else 1000
    found = float(match[1]) * step ** " KMGT".index((match[2] or " ").upper())
    if not found < 2**63:
        raise ValueError("wanted a size of at most 64 bits")
    return round(found)


def count(value: object) -> object:
    """A number of processes, which may be spelt as text, or `auto`."""
    found = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 20 else number(value)
    if found != "auto" and not (isinstance(found, int) and 0 <= found <= 1024):
        raise ValueError("wanted a whole number from 0 to 1024, or auto")
    return found


def address(value: object) -> Address | None:
    """The URL of a database, which from here on shows its password to nobody."""
    if value is None or isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise ConfigError(f"storage is a {type(value).__name__}, wanted the URL of a database as text")
    return Address(value)


def switched(value: object) -> object:
    """True as "auto" and false as nothing; anything else is left for the type to refuse."""
    return ("auto" if value else None) if isinstance(value, bool) else value


Text = Annotated[str, BeforeValidator(encodable)]
Table = dict[Text, Annotated[Any, BeforeValidator(scalar), BeforeValidator(encodable)]]
Count = Annotated[int, Field(ge=1, le=MOST), BeforeValidator(number)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(texts)]
