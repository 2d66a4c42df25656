"""Pictures as matplotlib figures, from plain values; `save` writes them. Begin with `style.py`."""

from nas.show.draw.alphas import draw_alpha_heatmap, draw_alphas
from nas.show.draw.architecture import draw_cells, draw_network
from nas.show.draw.curves import Bands, draw_anytime, draw_search
from nas.show.draw.diagnostics import draw_diagnostics
from nas.show.draw.style import op_kind, save
from nas.show.draw.tradeoffs import draw_pareto_front, draw_rank_correlation

__all__ = [
    "Bands",
    "draw_alpha_heatmap",
    "draw_alphas",
    "draw_anytime",
    "draw_cells",
    "draw_diagnostics",
    "draw_network",
    "draw_pareto_front",
    "draw_rank_correlation",
    "draw_search",
    "op_kind",
    "save",
]
