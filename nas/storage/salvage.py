"""What can be read of a damaged journal: its intact lines, those with one flipped bit, and gaps between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from nas.storage.sealing import Place, place_of, unsealed

BEGINNING = b'{"op_code":'
_MENDABLE = 1 << 13
"""Bytes of a gap in which a flipped bit is looked for: the time grows with the square."""


class Line(NamedTuple):
    """A record that can be trusted. place: by its seal, where it has one."""

    offset: int
    text: bytes
    record: dict[str, Any]
    place: Place | None


class Gap(NamedTuple):
    """Bytes that are no records, or no longer."""

    offset: int
    text: bytes


def pieces(data: bytes) -> tuple[list[Line | Gap], int]:
    """A journal's content as lines and gaps in order, and the number of gaps that a flipped bit explained."""
    found: list[Line | Gap] = []
    mended = 0
    for piece in _joined(_lines(data)):
        if isinstance(piece, Line):
            found.append(piece)
        elif lines := _mended(piece):
            found += lines
            mended += 1
        else:
            found += _end_of(piece)
    return found, mended


def _lines(data: bytes) -> Iterator[Line | Gap]:
    """Each line by itself; the last may lack its newline."""
    offset = 0
    for text in data.split(b"\n"):
        if text or offset < len(data):
            yield _line(offset, text + b"\n") or Gap(offset, data[offset : offset + len(text) + 1])
        offset += len(text) + 1


def _line(offset: int, text: bytes) -> Line | None:
    try:
        record, place = unsealed(text), place_of(text)
    except ValueError:
        return None
    numbers = [record.get("op_code"), record.get("study_id", 0), record.get("trial_id", 0)]
    return Line(offset, text, record, place) if all(type(n) is int for n in numbers) else None


def _joined(items: Iterator[Line | Gap]) -> Iterator[Line | Gap]:
    """With gaps that touch made one."""
    gap: Gap | None = None
    for item in items:
        if isinstance(item, Gap):
            gap = item if gap is None else Gap(gap.offset, gap.text + item.text)
            continue
        if gap is not None:
            yield gap
        gap = None
        yield item
    if gap is not None:
        yield gap


def _mended(gap: Gap) -> Sequence[Line]:
    """The sealed records that a gap holds once a single bit is put right; none where no bit does it.

    The bit may be that of a newline. CRC-32 tells all single bits of so few bytes apart.
    """
    if len(gap.text) > _MENDABLE:
        return ()
    text = bytearray(gap.text)
    for bit in range(8 * len(text)):
        text[bit // 8] ^= 1 << bit % 8
        if lines := _all_sealed(gap.offset, bytes(text)):
            return lines
        text[bit // 8] ^= 1 << bit % 8
    return ()


def _all_sealed(offset: int, text: bytes) -> Sequence[Line]:
    lines = []
    for line in text.removesuffix(b"\n").split(b"\n"):
        try:
            place = place_of(line + b"\n")
            if place is None:
                return ()
            lines.append(Line(offset, line + b"\n", unsealed(line + b"\n"), place))
        except ValueError:
            return ()
        offset += len(line) + 1
    return lines


def _end_of(gap: Gap) -> Sequence[Line | Gap]:
    """A gap, and the record at its end where something was appended to a torn line."""
    start = gap.text.rfind(BEGINNING)
    line = _line(gap.offset + start, gap.text[start:]) if start > 0 and gap.text.endswith(b"\n") else None
    return (gap,) if line is None else (Gap(gap.offset, gap.text[:start]), line)
