"""Pictures as matplotlib figures, from plain values; `save` writes them. Begin with `style.py`."""

from nas.show.draw.architecture import draw_cells, draw_network
from nas.show.draw.differentiable import draw_alpha_heatmap, draw_alphas, draw_diagnostics
from nas.show.draw.search import Bands, draw_anytime, draw_pareto_front, draw_rank_correlation, draw_search
from nas.show.draw.style import op_kind, save

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
