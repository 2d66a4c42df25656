"""Choices as a table: what plain values were taken, where a graph would say nothing of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.axes import Axes

from nas.show.draw.style import MUTED, clean, text_size, write

_SIZE, _LINE, _GAP, _BESIDE = 11.0, 0.27, 0.3, 0.6
_ROWS, _MOST, _WIDEST = 16, 120, 12.0
Row = tuple[str, tuple[str, ...]]
"""A name and what stands behind it, cell by cell."""


def rows_of(choices: Mapping[str, str]) -> list[Row]:
    """One row for each decision, or for all whose names are the same up to the last slash.

    `stage0/width: 16` and `stage0/depth: 2` are the row `stage0  width 16  depth 2`.
    """
    rows: dict[str, tuple[str, ...]] = {}
    for name, option in choices.items():
        group, _, last = name.rpartition("/")
        key, cell = (group, f"{last} {option}") if group else (name, option)
        rows[clean(key, limit=40)] = (*rows.get(clean(key, limit=40), ()), clean(cell, limit=40))
    return list(rows.items())


@dataclass(frozen=True)
class Table:
    """Rows in columns from the top to the bottom, those of each column aligned.

    blocks: the rows of each column. more: how many rows were left out.
    """

    blocks: tuple[tuple[Row, ...], ...]
    more: int = 0

    @staticmethod
    def of(choices: Mapping[str, str]) -> Table:
        """In so many columns as fit a page."""
        rows = rows_of(choices)
        kept = rows[:_MOST]
        columns = max(1, -(-len(kept) // _ROWS))
        while True:
            length = max(1, -(-len(kept) // columns))
            blocks = tuple(tuple(kept[at : at + length]) for at in range(0, len(kept), length))
            table = Table(blocks, len(rows) - len(kept))
            if columns == 1 or table.width <= _WIDEST:
                return table
            columns -= 1

    @property
    def width(self) -> float:
        """Inches that it takes."""
        return sum(sum(_widths(block)) for block in self.blocks) + _BESIDE * (len(self.blocks) - 1)

    @property
    def height(self) -> float:
        """The same."""
        return _LINE * (max(map(len, self.blocks), default=0) + bool(self.more))

    def draw(self, sheet: Axes, left: float, top: float) -> None:
        """Writes it with its upper left corner at (left, top) inches."""
        for block in self.blocks:
            widths = _widths(block)
            for line, (name, cells) in enumerate(block):
                x, y = left, top - _LINE * (line + 0.5)
                write(sheet, x, y, name, size=_SIZE, color=MUTED, ha="left")
                for cell, width in zip(cells, widths, strict=False):
                    x += width
                    write(sheet, x, y, cell, size=_SIZE, ha="left")
            left += sum(widths) + _BESIDE
        if self.more:
            text = f"and {self.more:,} more"
            write(
                sheet, left - self.width - _BESIDE, top - self.height + _LINE / 2, text, size=_SIZE, ha="left"
            )


def _widths(block: tuple[Row, ...]) -> list[float]:
    """Inches from the beginning of the name to the first cell, from that to the second, and so on."""
    longest = max((len(cells) for _, cells in block), default=0)
    widths = [max((text_size(name, _SIZE)[0] for name, _ in block), default=0.0) + _GAP]
    for at in range(longest):
        texts = [cells[at] for _, cells in block if at < len(cells)]
        widths.append(max(text_size(text, _SIZE)[0] for text in texts) + _GAP * (at + 1 < longest))
    return widths
