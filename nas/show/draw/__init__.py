"""Pictures of architectures and searches, as matplotlib figures; `save` writes them as files."""

from __future__ import annotations

import io
import re
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from nas.errors import ConfigError
from nas.files.atomic import replacing
from nas.show.draw.alphas import draw_alpha_heatmap, draw_alphas
from nas.show.draw.anytime import Bands, draw_anytime
from nas.show.draw.cells import draw_cells
from nas.show.draw.curves import draw_search
from nas.show.draw.diagnostics import draw_health
from nas.show.draw.diagnostics_series import HealthSeries
from nas.show.draw.network import draw_network
from nas.show.draw.pareto import draw_front
from nas.show.draw.rank_correlation import Trust, draw_trust
from nas.show.draw.style import op_kind

__all__ = [
    "Bands",
    "HealthSeries",
    "Trust",
    "draw_alpha_heatmap",
    "draw_alphas",
    "draw_anytime",
    "draw_cells",
    "draw_front",
    "draw_health",
    "draw_network",
    "draw_search",
    "draw_trust",
    "op_kind",
    "save",
]

_DPI = 160
_PATHS = re.compile(r' d="[^"]*"')
_DECIMALS = re.compile(r"(\.\d\d)\d+")


def save(figure: Figure, *paths: Path) -> None:
    """Writes `figure` to every path, each `.svg` or `.png`; the same figure gives the same bytes.

    A reader sees a whole file or the previous one, never a part. Text becomes outlines, so that the SVG
    looks the same on a machine without the font.
    """
    for path in paths:
        render = {".svg": _svg, ".png": _png}.get(path.suffix.lower())
        if render is None:
            raise ConfigError(f"save: got {path.name!r}, wanted a name that ends in .svg or .png")
        with replacing(path) as temporary:
            temporary.write_bytes(render(figure))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _svg(figure: Figure) -> bytes:
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "nas", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    # A hundredth of a point is enough for the eye and halves the file.
    return _PATHS.sub(lambda d: _DECIMALS.sub(r"\1", d[0]), buffer.getvalue()).encode()
