"""Draws cells and search curve of a finished run again; arguments: its folder, a folder for pictures."""

import sys
from pathlib import Path

import nas


def main(found: str, out: str = ".") -> None:
    result = nas.load_result(found)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    nas.draw.save(nas.draw.draw_cells(result.graphs), folder / "cells.png")
    if result.history:
        broken = result.goals.broken_by(result.history)
        nas.draw.save(nas.draw.draw_search(result.history, broken=broken), folder / "search.png")
    print(*sorted(folder.glob("*.png")), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
