"""Tables of choices: what stands in a row, that all of it is on the page, and when a picture is one."""

import networkx as nx
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from nas.show.draw import draw_cells
from nas.show.draw.cells import Table, rows_of


def chain(ops, values=()):
    """Of operations, or of values as `nas.space.graph` makes it where a space has nothing else."""
    graph = nx.DiGraph(kind="network", values=dict(values))
    names = ["in", *map(str, range(len(ops) - 1)), "out"]
    for name in names:
        role = {"in": "input", "out": "output"}.get(name, "node")
        graph.add_node(name, role=role, label=name)
    for place, (decision, op) in enumerate(ops.items()):
        graph.add_edge(names[place], names[place + 1], op=op, decision=decision, role="op")
    return graph


def texts(figure):
    return [artist.get_text() for artist in figure.findobj(Text) if artist.get_text()]


def outside(figure):
    """Texts that are not wholly on the page."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    page = figure.bbox
    boxes = [(a.get_text(), a.get_window_extent(canvas.get_renderer())) for a in figure.findobj(Text)]
    return [t for t, b in boxes if t and not (page.x0 <= b.x0 and b.x1 <= page.x1 and page.y0 <= b.y0)]


def test_decisions_of_one_place_share_a_row():
    choices = {"stem": "3", "stage0/width": "16", "stage0/block0/kernel": "5", "stage0/depth": "2"}
    assert rows_of(choices) == [
        ("stem", ("3",)),
        ("stage0", ("width 16", "depth 2")),
        ("stage0/block0", ("kernel 5",)),
    ]


def test_a_space_of_values_is_a_table_and_no_chain_of_feature_maps():
    values = {f"stage{i}/{name}": str(i + 7) for i in range(6) for name in ("width", "depth", "kernel")}
    graph = chain({name: f"{name} = {value}" for name, value in values.items()}, values)
    figure = draw_cells({"network": graph}, title="values")
    assert {"stage0", "width 7", "stage5", "kernel 12"} <= set(texts(figure))
    assert not {"in", "out"} & set(texts(figure))
    assert figure.get_figwidth() < 14 and not outside(figure)


def test_values_stand_beside_what_can_be_drawn():
    figure = draw_cells({"network": chain({"a": "conv", "b": "pool"}, {"depth": "2"})})
    assert {"in", "out", "conv", "pool", "depth", "2"} <= set(texts(figure))


@pytest.mark.parametrize("blocks", [4, 30, 400])
def test_a_chain_that_is_longer_than_a_page_is_a_table(blocks):
    figure = draw_cells({"network": chain({f"block{i}": "sep_conv_3x3" for i in range(blocks)})})
    assert ("block0" in texts(figure)) == (blocks > 4) == ("in" not in texts(figure))
    assert figure.get_figwidth() < 14 and not outside(figure)
    assert ("and 280 more" in texts(figure)) == (blocks == 400)


def test_a_table_is_as_wide_as_a_page_at_most_where_it_can_be():
    assert Table.of({f"{i}{'w' * 35}": "x" * 35 for i in range(60)}).width < 12
    assert len(Table.of({str(i): "x" for i in range(60)}).blocks) == 4
