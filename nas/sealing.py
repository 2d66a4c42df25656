"""A checksum on each line of JSON, inside its record, where programs that know nothing of it read past it."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

_SEAL = re.compile(rb',"seal":"(\d+) (\d+) ([0-9a-f]{8})"\}\n')
_LENGTH = 80
"""Bytes at the end of a line that surely hold its seal."""


class Place(NamedTuple):
    """Where a record stands in its journal.

    number: of the records before it. trials: how many of them begin a trial.
    """

    number: int = 0
    trials: int = 0


START = Place()


def seal(record: Mapping[str, Any], place: Place = START) -> bytes:
    """The record, a table with at least one entry, as a line of JSON that ends with a seal.

    The seal is one more entry, `"seal": "NUMBER TRIALS CRC"`; the CRC-32 is that of the line before it.
    """
    body = json.dumps(record, separators=(",", ":"))
    head = f'{body[:-1]},"seal":"{place.number} {place.trials} '.encode()
    return head + b'%08x"}\n' % zlib.crc32(head)


def place_of(line: bytes) -> Place | None:
    """What the seal of a line says, None where there is no seal.

    Raises:
        ValueError: when the line is not as it was sealed.
    """
    found = _SEAL.search(line, max(0, len(line) - _LENGTH))
    if found is None or found.end() != len(line):
        return None
    if zlib.crc32(line[: found.start(3)]) != int(found[3], 16):
        raise ValueError("its checksum is wrong")
    return Place(int(found[1]), int(found[2]))


def unsealed(line: bytes) -> dict[str, Any]:
    """The record of a line, without its seal where it had one.

    Raises:
        ValueError: when the line is no JSON table, or not as it was sealed.
    """
    sealed = place_of(line) is not None
    try:
        record = json.loads(line.decode())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError("not a table")
    if sealed:
        del record["seal"]
    return record
