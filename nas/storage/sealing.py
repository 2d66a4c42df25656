"""A checksum on each line of JSON, inside its record, where programs that know nothing of it read past it."""

from __future__ import annotations

import json
import re
import zlib
from typing import Any, NamedTuple

_SEAL = re.compile(rb',"seal":"(\d+) (\d+) (\d+) ([0-9a-f]{8})"\}\n')
_LENGTH = 100
"""Bytes at the end of a line that surely hold its seal."""
_BEGINS_TRIAL = re.compile(rb'\{"op_code":4,.*?"study_id":(\d+)')
"""How Optuna's record of a new trial begins, in which study. Studies and trials have no other numbers."""


class Place(NamedTuple):
    """Where a record stands in its journal.

    number: of the records before it. trials: how many of them begin a trial. own: how many do so in the study
    in which this record begins one, else 0.
    """

    number: int = 0
    trials: int = 0
    own: int = 0


START = Place()


def seal(body: str, place: Place = START) -> bytes:
    """A table in JSON, with at least one entry, as a line that ends with a seal.

    The seal is one more entry, `"seal": "NUMBER TRIALS OWN CRC"`; the CRC-32 is that of the line before it.
    """
    head = f'{body[:-1]},"seal":"{place.number} {place.trials} {place.own} '.encode()
    return head + b'%08x"}\n' % zlib.crc32(head)


def place_of(line: bytes) -> Place | None:
    """What the seal of a line says, None where there is no seal.

    Raises:
        ValueError: when the line is not as it was sealed.
    """
    found = _SEAL.search(line, max(0, len(line) - _LENGTH))
    if found is None or found.end() != len(line):
        return None
    if zlib.crc32(line[: found.start(4)]) != int(found[4], 16):
        raise ValueError("its checksum is wrong")
    return Place(*map(int, found.groups()[:3]))


def study_begun_in(text: bytes) -> int | None:
    """The study in which a record begins a trial, None where it does something else."""
    found = _BEGINS_TRIAL.match(text)
    return None if found is None else int(found[1])


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
