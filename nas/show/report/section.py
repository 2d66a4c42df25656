"""What the page is made of."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from nas.files.manifest import MANIFEST, check_manifest
from nas.files.paths import is_file

Tip = Sequence[tuple[str, str]]
"""What is told of one spot of a picture: names and values, line by line."""
_MOST_BYTES = 400_000


@dataclass(frozen=True, eq=False)
class Drawing:
    """A picture in the page: an `<svg>`, or the address of an image.

    label: what it shows, for those who cannot see it. caption: stands below it. wide: takes the whole width.
    """

    label: str
    caption: str = ""
    svg: Markup = Markup()  # noqa: RUF009 - a frozen value
    image: str = ""
    wide: bool = False


@dataclass(frozen=True, eq=False)
class Section:
    """One part of a report.

    name: unique in the page, and that of the template `sections/NAME.html` unless `template` is given.
    reading: how to read it, in one or two sentences. tips: what spots tell, by the name of all of them.
    """

    name: str
    title: str
    reading: str
    template: str = "drawings"
    drawings: Sequence[Drawing] = ()
    values: Mapping[str, object] = field(default_factory=dict)
    tips: Mapping[str, Mapping[int, Tip]] = field(default_factory=dict)


def stored(folder: Path, name: str, caption: str) -> list[Drawing]:
    """A picture that the run has left, as an image, in which nothing runs; none where it is not whole."""
    path = folder / name
    if not is_file(path) or path.stat().st_size > _MOST_BYTES:
        return []
    if is_file(folder / MANIFEST) and check_manifest(folder, [name]):
        return []
    data = base64.b64encode(path.read_bytes()).decode()
    return [Drawing(caption, caption, image=f"data:image/svg+xml;base64,{data}", wide=True)]
