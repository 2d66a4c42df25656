"""Pictures of architectures and alphas: nothing overlaps or is cut, names stay text, files are the same."""

import itertools
import random
import xml.etree.ElementTree as ET

import matplotlib as mpl
import networkx as nx
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from nas.errors import ConfigError
from nas.show.draw import (
    draw_alpha_heatmap,
    draw_alphas,
    draw_cells,
    draw_network,
    save,
)

# (operation, source) for each edge into nodes 2, 2, 3, 3, ... of DARTS_V2 (Liu et al. 2019).
DARTS_V2 = {
    "normal": "sep_conv_3x3 0 sep_conv_3x3 1 sep_conv_3x3 0 sep_conv_3x3 1 sep_conv_3x3 1 skip_connect 0 "
    "skip_connect 0 dil_conv_3x3 2",
    "reduce": "max_pool_3x3 0 max_pool_3x3 1 skip_connect 2 max_pool_3x3 1 max_pool_3x3 0 skip_connect 2 "
    "skip_connect 2 max_pool_3x3 1",
}
OPS = ("max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_5x5")
HOSTILE = (
    "$\\frac{1}{0}$",
    "$x",
    "<script>alert('1')</script>",
    "\"quoted\" & 'single'",
    "--> <g onload=x>",
    "two\nlines\tand\x00nul",
    "🚀🔥 rocket 文字",
    "_leading",
    "w" * 200,
    "",
    "\ud800",
    "\u202eright to left",
)


def darts_cell(pairs):
    graph = nx.DiGraph()
    for i, label in enumerate(("c_{k-2}", "c_{k-1}")):
        graph.add_node(str(i), role="input", label=label)
    for i in range(2, 6):
        graph.add_node(str(i), role="node", label=str(i - 2))
    graph.add_node("out", role="output", label="out")
    for i, (op, source) in enumerate(pairs):
        graph.add_edge(str(source), str(i // 2 + 2), op=op)
    graph.add_edges_from(((str(i), "out") for i in range(2, 6)), op="concat")
    return graph


def published():
    words = {kind: text.split() for kind, text in DARTS_V2.items()}
    return {kind: darts_cell(zip(found[::2], found[1::2], strict=True)) for kind, found in words.items()}


def random_darts(rng):
    sources = [s for node in range(2, 6) for s in sorted(rng.sample(range(node), 2))]
    return darts_cell([(rng.choice(OPS), source) for source in sources])


def dense_cell(nodes, ops, rng):
    graph = nx.DiGraph()
    for i in range(nodes):
        role = "input" if i == 0 else "output" if i == nodes - 1 else "node"
        graph.add_node(str(i), role=role, label=str(i))
    for source, target in itertools.combinations(range(nodes), 2):
        if (op := rng.choice(ops)) != "none":
            graph.add_edge(str(source), str(target), op=op)
    return graph


def vertex_cell(rng):
    """Operations on the inner vertices, the last of which is the output; edges are plain."""
    names = ["in", *map(str, range(1, 6)), "out"]
    graph = nx.DiGraph()
    for name in names:
        graph.add_node(name, role={"in": "input", "out": "output"}.get(name, "node"), label=name)
    for name in names[1:-1]:
        graph.nodes[name]["op"] = rng.choice(["conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3"])
    edges = [*itertools.pairwise(names), *rng.sample(list(itertools.combinations(names, 2)), 5)]
    graph.add_edges_from(edges, op="connect")
    return graph


def network(blocks, *, back=2):
    graph = nx.DiGraph()
    for i in range(blocks):
        kind = "stem" if i == 0 else "head" if i == blocks - 1 else "reduce" if i % 7 == 0 else "normal"
        graph.add_node(f"b{i}", label=f"cell {i}\n{kind}", shape="36×32×32", kind=kind)
        graph.add_edges_from((f"b{j}", f"b{i}") for j in range(max(0, i - back), i))
    return graph


def op_chain(ops, values=()):
    """Operations after one another, as `nas.space.graph` makes them where a space has no cells."""
    graph = nx.DiGraph(kind="network", values=dict(values))
    names = ["in", *map(str, range(len(ops) - 1)), "out"]
    for name in names:
        graph.add_node(name, role={"in": "input", "out": "output"}.get(name, "node"), label=name)
    for (decision, op), edge in zip(ops.items(), itertools.pairwise(names), strict=True):
        graph.add_edge(*edge, op=op, decision=decision, role="op")
    return graph


def some_strengths(epochs, decisions, options):
    logits = np.random.default_rng(1).normal(size=(epochs, decisions, options)).cumsum(0)
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def texts(figure: Figure) -> list[str]:
    return [artist.get_text() for artist in figure.findobj(Text) if artist.get_text()]


def words(figure: Figure) -> list[tuple[str, Bbox]]:
    """Every text that is visible, with its extent in pixels as the renderer measures it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    hidden = set()
    for axis in itertools.chain.from_iterable((axes.xaxis, axes.yaxis) for axes in figure.axes):
        low, high = sorted(axis.get_view_interval())
        slack = 1e-9 * (high - low)
        for tick in axis.get_major_ticks():
            if not axis.axes.axison or not low - slack <= tick.get_loc() <= high + slack:
                hidden |= {tick.label1, tick.label2}
        if not axis.axes.axison:
            hidden.add(axis.label)
    shown = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text() and t not in hidden]
    shown = [text for text in shown if text.get_rotation() % 90 == 0]  # others have corners to spare
    return [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in shown]


def assert_readable(figure: Figure) -> None:
    """No text touches another or leaves the page."""
    found = words(figure)
    for (a, first), (b, second) in itertools.combinations(found, 2):
        assert not first.overlaps(second), (a, b)
    page = figure.bbox.padded(1)
    for text, box in found:
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, text


def boxes(figure: Figure, order: float) -> list[Bbox]:
    """Extents in pixels of the boxes, once drawn, of an order: 5 for labels, 6 for nodes and blocks."""
    found = figure.findobj(lambda a: type(a) is FancyBboxPatch and a.get_zorder() == order)
    return [box.get_window_extent() for box in found]


def wires(figure: Figure) -> list[np.ndarray]:
    """Points along every wire, in pixels."""
    found = figure.findobj(lambda artist: type(artist) is PathPatch)
    paths = [wire.get_transform().transform_path(wire.get_path()) for wire in found]
    polygons = [path.to_polygons(closed_only=False)[0] for path in paths]
    return [np.concatenate([np.linspace(a, b, 20) for a, b in itertools.pairwise(p)]) for p in polygons]


def assert_clear(figure: Figure, *, labels: int) -> None:
    """No label or node touches another or leaves the page, and no wire runs through a foreign one."""
    assert_readable(figure)
    named, nodes = boxes(figure, 5), boxes(figure, 6)
    assert len(named) == labels
    for first, second in itertools.combinations([*named, *nodes], 2):
        assert not first.overlaps(second)
    assert all(figure.bbox.count_contains(box.corners()) == 4 for box in [*named, *nodes])
    for points in wires(figure):
        assert sum(box.padded(-3).count_contains(points) > 0 for box in named) <= 1
        assert not any(box.padded(-3).count_contains(points) for box in nodes)


# -- cells -------------------------------------------------------------------------------------------


def test_published_darts_cells_are_clear():
    figure = draw_cells(published(), title="DARTS_V2", subtitle="second order")
    assert_clear(figure, labels=16)
    shown = texts(figure)
    wanted = {"sep_conv_3x3": 5, "skip_connect": 5, "dil_conv_3x3": 1, "max_pool_3x3": 5, "DARTS_V2": 1}
    assert {text: shown.count(text) for text in wanted} == wanted
    legend = {"separable conv", "pooling", "skip", "concat"}
    assert {"normal", "reduce", "cₖ₋₂", "second order", *legend} <= set(shown) and "convolution" not in shown


@pytest.mark.parametrize("seed", range(2))
def test_random_cells_are_clear(seed):
    rng = random.Random(seed)
    assert_clear(draw_cells({"normal": random_darts(rng)}), labels=8)
    cell = dense_cell(4, ("none", *OPS), rng)
    assert_clear(draw_cells({"cell": cell}), labels=cell.number_of_edges())
    assert_clear(draw_cells({"cell": vertex_cell(rng)}), labels=0)


def test_a_cell_without_a_path_says_so():
    cell = nx.DiGraph()
    for node, role in (("in", "input"), ("1", "node"), ("out", "output")):
        cell.add_node(node, role=role, label=node)
    cell.add_edge("in", "1", op="nor_conv_3x3")
    assert any("empty: no path from input to output" in text for text in texts(draw_cells({"cell": cell})))


def test_cells_too_large_to_be_laid_out_are_named():
    large = nx.DiGraph(itertools.product(range(60), range(60, 120)))
    long = nx.DiGraph(itertools.pairwise(range(3000)))
    shown = texts(draw_cells({"small": dense_cell(3, OPS, random.Random(0)), "large": large, "long": long}))
    assert {"too large to draw: large: 120 nodes, 3,600 edges and 1 more", "small"} <= set(shown)


def test_values_are_a_table_beside_what_can_be_drawn():
    values = {f"stage{i}/{name}": str(i + 7) for i in range(40) for name in ("width", "depth")}
    named = {name: f"{name} = {value}" for name, value in values.items()}
    figure = draw_cells({"network": op_chain(named, values)}, title="values")
    assert_readable(figure)
    assert {"stage0", "width 7   depth 7", "stage39", "width 46   depth 46"} <= set(texts(figure))
    assert not {"in", "out"} & set(texts(figure)) and figure.get_figwidth() < 14
    both = draw_cells({"network": op_chain({"a": "conv", "b": "pool"}, {"depth": "2"})})
    assert {"in", "out", "conv", "pool", "depth", "2"} <= set(texts(both))


# -- networks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("blocks", "back"), [(1, 1), (22, 2), (12, 3)])
def test_a_network_is_folded_into_rows_that_fit_a_page(blocks, back):
    figure = draw_network(network(blocks, back=back), title="network")
    assert_readable(figure)
    found = boxes(figure, 6)
    assert len(found) == blocks and figure.get_figwidth() < 14
    assert not any(a.overlaps(b) for a, b in itertools.combinations(found, 2))
    assert blocks < 12 or len({round(box.y0) for box in found}) > 2
    assert len(wires(figure)) == 2 * network(blocks, back=back).number_of_edges()  # each with its casing
    for points in wires(figure):
        assert figure.bbox.count_contains(points) == len(points)
        assert not any(box.padded(-4).count_contains(points) for box in found)


# -- alphas ------------------------------------------------------------------------------------------


def test_alphas_mark_the_winner_of_every_decision():
    strengths = np.full((4, 2, 3), 0.2)
    strengths[-1, 0, 2] = strengths[-1, 1, 1] = 0.6
    options = [("none", "skip_connect", "sep_conv_3x3"), ("none", "max_pool_3x3")]
    figure = draw_alphas(strengths, decisions=("first", "second"), options=options)
    assert_readable(figure)
    shown = texts(figure)
    # Once in the legend and once as the winner.
    assert [shown.count(o) for o in ("none", "skip_connect", "sep_conv_3x3", "max_pool_3x3")] == [1, 1, 2, 2]
    heat = draw_alpha_heatmap(strengths[-1], ("first", "second"), options)
    assert_readable(heat)
    bold = [t.get_text() for t in heat.findobj(Text) if t.get_fontweight() == "bold" and t.get_text()]
    assert bold == ["0.60", "0.60"]


def test_alphas_of_one_epoch_of_none_and_without_numbers():
    (panel,) = draw_alphas(np.array([[[0.2, 0.3, 0.5]]]), decisions=("e",), options=("a", "b", "c")).axes
    seen = {float(line.get_ydata()[0]) for line in panel.lines if line.get_marker() == "o"}
    assert seen == {0.2, 0.3, 0.5}
    strengths = np.full((2, 1, 2), np.nan)
    draw_alphas(strengths, decisions=("e",), options=("a", "b"))
    assert "–" in texts(draw_alpha_heatmap(strengths[-1], ("e",), ("a", "b")))
    none = draw_alphas(np.zeros((0, 1, 2)), decisions=("e",), options=("a", "b"))
    assert "nothing was recorded" in texts(none)


def test_alphas_refuse_what_does_not_fit():
    for strengths, wanted in ((np.zeros((3, 2, 2)), "1 decisions"), (np.full((3, 1, 2), -1.5), "softmax")):
        with pytest.raises(ConfigError, match=wanted):
            draw_alphas(strengths, decisions=("e",), options=("a", "b"))


# -- text, colours, files ----------------------------------------------------------------------------


def test_hostile_names_stay_plain_text(tmp_path):
    cell, names = dense_cell(6, ("x",), random.Random(0)), itertools.cycle(HOSTILE)
    for edge in cell.edges:
        cell.edges[edge]["op"] = next(names)
    for node in cell:
        cell.nodes[node]["label"] = next(names)
    blocks = network(len(HOSTILE))
    for block, name in zip(blocks, HOSTILE, strict=True):
        blocks.nodes[block].update(label=name, shape=name, kind=name)
    strengths = some_strengths(3, 2, len(HOSTILE))
    figures = [
        draw_cells({HOSTILE[1]: cell}, title=HOSTILE[0], subtitle=HOSTILE[2]),
        draw_network(blocks, title=HOSTILE[2]),
        draw_alphas(strengths, decisions=HOSTILE[:2], options=HOSTILE, title=HOSTILE[4]),
        draw_alpha_heatmap(strengths[-1], HOSTILE[2:4], HOSTILE, title=HOSTILE[6]),
    ]
    for figure in figures:
        save(figure, tmp_path / "picture.svg")
        elements = list(ET.parse(tmp_path / "picture.svg").iter())
        assert "script" not in {element.tag.rpartition("}")[2] for element in elements}
        assert not any(name.startswith("on") for element in elements for name in element.attrib)
        assert not any("\n" in text or "\x00" in text for text in texts(figure))
        assert not any(artist.get_parse_math() for artist in figure.findobj(Text) if artist.get_text())
    assert_clear(figures[0], labels=15)


def test_drawing_leaves_the_settings_of_matplotlib_alone():
    before = dict(mpl.rcParams)
    draw_alpha_heatmap(some_strengths(1, 2, 3)[-1], "ab", "xyz")
    assert dict(mpl.rcParams) == before


def test_save_refuses_other_formats(tmp_path):
    with pytest.raises(ConfigError, match=r"\.svg or \.png"):
        save(Figure(), tmp_path / "curve.pdf")
    assert not list(tmp_path.iterdir())
