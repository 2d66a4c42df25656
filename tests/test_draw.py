import itertools
import random
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib as mpl
import networkx as nx
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import PathPatch
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from nas.errors import ConfigError
from nas.show.draw import (
    draw_alpha_heatmap,
    draw_alphas,
    draw_cells,
    draw_network,
    draw_search,
    op_kind,
    save,
)
from nas.show.draw.curves import time_ticks
from nas.show.draw.layout import layers
from nas.show.draw.style import LOOKS, PAPER, clean, fit, node_text, palette, text_size
from nas.types import Trial

DARTS_V2 = {
    "normal": [
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 1),
        ("skip_connect", 0),
        ("skip_connect", 0),
        ("dil_conv_3x3", 2),
    ],
    "reduce": [
        ("max_pool_3x3", 0),
        ("max_pool_3x3", 1),
        ("skip_connect", 2),
        ("max_pool_3x3", 1),
        ("max_pool_3x3", 0),
        ("skip_connect", 2),
        ("skip_connect", 2),
        ("max_pool_3x3", 1),
    ],
}
OPS = ("max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_5x5")
NB201 = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
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
    for i in range(2, 6):
        graph.add_edge(str(i), "out", op="concat")
    return graph


def random_darts(rng):
    sources = [s for node in range(2, 6) for s in sorted(rng.sample(range(node), 2))]
    return darts_cell([(rng.choice(OPS), source) for source in sources])


def dense_cell(nodes, ops, rng):
    graph = nx.DiGraph()
    for i in range(nodes):
        role = "input" if i == 0 else "output" if i == nodes - 1 else "node"
        graph.add_node(str(i), role=role, label=str(i))
    for source, target in itertools.combinations(range(nodes), 2):
        op = rng.choice(ops)
        if op != "none":
            graph.add_edge(str(source), str(target), op=op)
    return graph


def chain(blocks):
    graph = nx.DiGraph()
    for i in range(blocks):
        kind = "stem" if i == 0 else "head" if i == blocks - 1 else "reduce" if i % 7 == 0 else "normal"
        graph.add_node(f"b{i}", label=f"cell {i}\n{kind}", shape="36×32×32", kind=kind)
        for back in (1, 2):
            if i >= back:
                graph.add_edge(f"b{i - back}", f"b{i}")
    return graph


def some_trials(count=30):
    rng = np.random.default_rng(0)
    trials = [
        Trial(i, (i,), 3 ** (i % 3), "done", {"val_acc": float(rng.uniform(0.8, 0.9))}, 60.0)
        for i in range(count)
    ]
    trials[4] = Trial(4, (4,), 1, "failed", {}, 5.0, "nan")
    trials[5] = Trial(5, (5,), 1, "running")
    return trials


def some_strengths(epochs=12, decisions=28, options=8):
    logits = np.random.default_rng(1).normal(size=(epochs, decisions, options)).cumsum(0)
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def boxes(figure: Figure, word: str) -> list[Bbox]:
    """Extents in pixels of the artists whose id holds `word`, as the renderer measures them."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    artists = figure.findobj(lambda artist: f"-{word}" in (artist.get_gid() or ""))
    return [artist.get_window_extent(canvas.get_renderer()) for artist in artists]


def texts(figure: Figure) -> list[str]:
    return [artist.get_text() for artist in figure.findobj(Text)]


def wire_points(figure: Figure) -> list[np.ndarray]:
    wires = figure.findobj(lambda artist: type(artist) is PathPatch)
    return [
        wire.get_transform().transform_path(wire.get_path()).to_polygons(closed_only=False)[0]
        for wire in wires
    ]


def assert_clear(figure: Figure, *, labels: int) -> None:
    """No label or node touches another or leaves the page."""
    pills = boxes(figure, "label")
    nodes = boxes(figure, "node")
    assert len(pills) == 2 * labels  # every label is a pill and its text
    separate = boxes_by_owner(figure)
    for (a, first), (b, second) in itertools.combinations(separate, 2):
        assert not first.overlaps(second), (a, b)
    page = figure.bbox
    assert all(
        page.x0 <= b.x0 and b.x1 <= page.x1 and page.y0 <= b.y0 and b.y1 <= page.y1 for b in pills + nodes
    )


def boxes_by_owner(figure: Figure) -> list[tuple[str, Bbox]]:
    found: dict[str, list[Bbox]] = {}
    renderer = figure.canvas.get_renderer()
    for artist in figure.findobj(lambda a: (a.get_gid() or "").startswith("cell")):
        found.setdefault(artist.get_gid().removesuffix("-text"), []).append(
            artist.get_window_extent(renderer)
        )
    return [(owner, Bbox.union(parts)) for owner, parts in found.items()]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sep_conv_3x3", "sep"),
        ("dil_conv_5x5", "dil"),
        ("nor_conv_1x1", "conv"),
        ("conv7x1_1x7", "conv"),
        ("max_pool_3x3", "pool"),
        ("avg_pool_3x3", "pool"),
        ("skip_connect", "skip"),
        ("Identity", "skip"),
        ("none", "none"),
        ("zero", "none"),
        ("concat", "concat"),
        ("attention", "other"),
        ("", "other"),
        ("nonexistent", "other"),
    ],
)
def test_op_kind(name, kind):
    assert op_kind(name) == kind
    assert kind in LOOKS


def test_published_darts_cells_are_clear():
    figure = draw_cells({kind: darts_cell(pairs) for kind, pairs in DARTS_V2.items()}, title="DARTS_V2")
    assert_clear(figure, labels=16)
    shown = texts(figure)
    assert [shown.count(op) for op in ("sep_conv_3x3", "skip_connect", "dil_conv_3x3", "max_pool_3x3")] == [
        5,
        5,
        1,
        5,
    ]
    assert {"normal", "reduce", "separable conv", "pooling", "skip", "concat", "cₖ₋₂"} <= set(shown)
    assert "convolution" not in shown


@pytest.mark.parametrize("seed", range(20))
def test_random_darts_cells_are_clear(seed):
    assert_clear(draw_cells({"normal": random_darts(random.Random(seed))}), labels=8)


@pytest.mark.parametrize("seed", range(20))
def test_random_nasbench201_cells_are_clear(seed):
    cell = dense_cell(4, NB201, random.Random(seed))
    assert_clear(draw_cells({"cell": cell}), labels=cell.number_of_edges())


def test_dense_cell_of_eight_nodes_is_clear():
    assert_clear(draw_cells({"": dense_cell(8, OPS, random.Random(0))}), labels=28)


@pytest.mark.parametrize("seed", range(6))
def test_wires_keep_off_foreign_labels_and_nodes(seed):
    cell = random_darts(random.Random(seed))
    figure = draw_cells({"normal": cell})
    owners = boxes_by_owner(figure)
    # Each wire is drawn twice, casing first.
    for points in wire_points(figure)[::2]:
        dense = np.concatenate([np.linspace(a, b, 20) for a, b in itertools.pairwise(points)])
        hit = [name for name, box in owners if box.padded(-3).count_contains(dense)]
        assert len([name for name in hit if "label" in name]) <= 1
        assert not [name for name in hit if "node" in name]


def vertex_cell(edges, ops):
    """Operations on the inner vertices, the last of which is the output; edges are plain."""
    graph = nx.DiGraph()
    graph.add_node("in", role="input", label="in")
    for i, op in enumerate(ops, start=1):
        graph.add_node(str(i), role="node", label=str(i), op=op)
    graph.add_node("out", role="output", label="out")
    names = ["in", *map(str, range(1, len(ops) + 1)), "out"]
    graph.add_edges_from([(names[a], names[b]) for a, b in edges], op="connect")
    return graph


def test_operations_on_vertices_are_written_on_them_and_plain_edges_carry_nothing():
    edges = [(0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (3, 4), (0, 4)]
    figure = draw_cells({"cell": vertex_cell(edges, ["conv3x3-bn-relu", "maxpool3x3", "conv3x3-bn-relu"])})
    assert_clear(figure, labels=0)
    shown = texts(figure)
    assert shown.count("conv3x3-bn-relu") == 2 and shown.count("maxpool3x3") == 1
    assert {"in", "out", "convolution", "pooling"} <= set(shown)
    assert not {"1", "2", "3", "connect", "concat", "other"} & set(shown)
    faces = {
        artist.get_gid(): artist.get_edgecolor()
        for artist in figure.findobj(lambda a: re.fullmatch(r"cell0-node\d", a.get_gid() or ""))
    }
    conv, pool = (mpl.colors.to_rgba(LOOKS[kind].color) for kind in ("conv", "pool"))
    assert [faces[f"cell0-node{i}"] for i in (1, 2, 3)] == [conv, pool, conv]


@pytest.mark.parametrize("seed", range(6))
def test_random_vertex_cells_are_clear(seed):
    rng = random.Random(seed)
    extra = rng.sample(list(itertools.combinations(range(7), 2)), 5)
    edges = {(i, i + 1) for i in range(6)} | set(extra)
    ops = [rng.choice(["conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3"]) for _ in range(5)]
    assert_clear(draw_cells({"cell": vertex_cell(sorted(edges), ops)}), labels=0)


def test_layers_put_inputs_first_and_the_output_alone_last():
    rank = layers(darts_cell(DARTS_V2["reduce"]))
    assert rank == {"0": 0, "1": 0, "2": 1, "3": 2, "4": 2, "5": 2, "out": 3}


def test_first_input_is_above_the_second():
    for seed in range(4):
        figure = draw_cells({"normal": random_darts(random.Random(seed))})
        named = dict(boxes_by_owner(figure))
        assert named["cell0-node0"].y0 > named["cell0-node1"].y1


@pytest.mark.parametrize("edges", [[], [("in", "1")]])
def test_cell_without_a_path_says_so(edges):
    cell = nx.DiGraph()
    for node, role in (("in", "input"), ("1", "node"), ("out", "output")):
        cell.add_node(node, role=role, label=node)
    cell.add_edges_from(edges, op="nor_conv_3x3")
    assert "empty: no path from input to output" in texts(draw_cells({"cell": cell}))
    assert "empty: no path from input to output" not in texts(
        draw_cells({"cell": darts_cell(DARTS_V2["normal"])})
    )


def test_hostile_names_stay_plain_text(tmp_path):
    cell = dense_cell(6, ("x",), random.Random(0))
    names = itertools.cycle(HOSTILE)
    for edge in cell.edges:
        cell.edges[edge]["op"] = next(names)
    for node in cell:
        cell.nodes[node]["label"] = next(names)
    network = chain(len(HOSTILE))
    for block, name in zip(network, HOSTILE, strict=True):
        network.nodes[block].update(label=name, shape=name, kind=name)
    strengths = some_strengths(3, 2, len(HOSTILE))
    figures = [
        draw_cells({name: cell for name in HOSTILE[:3]}, title=HOSTILE[0], subtitle=HOSTILE[2]),
        draw_network(network, title=HOSTILE[2]),
        draw_search(some_trials(), metric="val_acc", title=HOSTILE[0]),
        draw_search([Trial(0, (0,), 0, "done", {HOSTILE[2]: 1.0})], metric=HOSTILE[2]),
        draw_alphas(strengths, decisions=HOSTILE[:2], options=HOSTILE, title=HOSTILE[4]),
        draw_alpha_heatmap(strengths[-1], HOSTILE[2:4], HOSTILE, title=HOSTILE[6]),
    ]
    for figure in figures:
        save(figure, tmp_path / "picture.svg")
        tree = ET.parse(tmp_path / "picture.svg")
        tags = {element.tag.rpartition("}")[2] for element in tree.iter()}
        assert "script" not in tags
        assert not any(name.startswith("on") for element in tree.iter() for name in element.attrib)
        assert not any(artist.get_parse_math() for artist in figure.axes[0].texts)
    assert_clear(draw_cells({"cell": cell}), labels=15)


def test_clean_flattens_and_truncates():
    assert clean("two\nlines") == "two lines"
    assert clean("w" * 25) == "w" * 23 + "…"
    assert clean("w" * 24) == "w" * 24
    assert clean("🚀x") == "□x"
    assert node_text("c_{k-1}") == "cₖ₋₁"
    assert node_text("c_{<b>}") == "c_{<b>}"


def test_fit_keeps_within_its_width():
    assert fit("short", 10, 5.0) == "short"
    shown = fit("a very long decision name", 10, 1.0)
    assert shown.endswith("…")
    assert text_size(shown, 10)[0] <= 1.0


def test_palette_tells_all_options_apart():
    looks = palette([*OPS, *(f"user{i}" for i in range(8))])
    assert len({(look.color, look.dash) for look in looks.values()}) == len(OPS) + 8
    assert looks["sep_conv_3x3"].color.lower() == LOOKS["sep"].color.lower()


def every_figure():
    decisions = [f"normal/{i}" for i in range(28)]
    return {
        "cells": draw_cells({kind: darts_cell(pairs) for kind, pairs in DARTS_V2.items()}, title="cells"),
        "network": draw_network(chain(22), title="network"),
        "search": draw_search(some_trials(), title="search"),
        "alphas": draw_alphas(some_strengths(), decisions=decisions, options=[f"op{i}" for i in range(8)]),
        "heatmap": draw_alpha_heatmap(some_strengths()[-1], decisions, [f"op{i}" for i in range(8)]),
    }


def test_files_are_whole_small_and_the_same_every_time(tmp_path):
    settings = dict(mpl.rcParams)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name, figure in every_figure().items():
            save(figure, tmp_path / folder / f"{name}.svg", tmp_path / folder / f"{name}.png")
    assert dict(mpl.rcParams) == settings
    written = sorted(tmp_path.glob("a/*"))
    assert len(written) == 10
    for path in written:
        data = path.read_bytes()
        assert data == (tmp_path / "b" / path.name).read_bytes(), path.name
        assert 5_000 < len(data) < (300_000 if path.suffix == ".svg" else 1_000_000), path.name
        if path.suffix == ".png":
            pixels = imread(path)
            assert pixels.shape[1] > 700
            assert pixels.std() > 0.02


def test_save_refuses_other_formats(tmp_path):
    with pytest.raises(ConfigError, match=r"\.svg or \.png"):
        save(draw_search([]), Path(tmp_path / "curve.pdf"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("blocks", [0, 1, 2, 22])
def test_network_blocks_do_not_overlap(blocks):
    figure = draw_network(chain(blocks))
    places = [
        artist.get_window_extent()
        for artist in figure.findobj(lambda artist: (artist.get_gid() or "").startswith("block"))
    ]
    assert len(places) == blocks
    assert not any(a.overlaps(b) for a, b in itertools.combinations(places, 2))
    for text in (artist for artist in figure.findobj(Text) if artist.get_text().startswith("cell")):
        extent = text.get_window_extent(figure.canvas.get_renderer())
        assert any(p.x0 <= extent.x0 and extent.x1 <= p.x1 for p in places)


@pytest.mark.parametrize(("maximize", "best", "number"), [(True, 0.9, 1), (False, 0.2, 2)])
def test_search_names_the_best_trial(maximize, best, number):
    values = (0.5, 0.9, 0.2, float("nan"))
    trials = [Trial(i, (i,), 1, "done", {"val_acc": value}) for i, value in enumerate(values)]
    figure = draw_search(trials, maximize=maximize)
    assert f"best {best} · trial {number}" in texts(figure)
    assert {"failed", "best so far"} <= set(texts(figure))


@pytest.mark.parametrize("values", [(0.5, 0.9, 0.6), (0.5, 0.9, 0.4), (0.1, 0.9, 0.91, 0.92, 0.93, 0.94)])
def test_what_breaks_a_constraint_is_a_ring_and_never_the_best(values):
    trials = [Trial(i, (i,), 1, "done", {"val_acc": value}) for i, value in enumerate(values)]
    broken = {i for i, value in enumerate(values) if value > 0.8}
    figure = draw_search(trials, broken=broken)
    best = max(range(len(values)), key=lambda i: (i not in broken, values[i]))
    assert f"best {values[best]} · trial {best}" in texts(figure)
    assert "breaks a constraint" in texts(figure)
    axes = figure.axes[1]
    low, high = axes.get_ylim()
    assert low < values[best] < high
    rings = [line for line in axes.lines if line.get_markerfacecolor() == PAPER and len(line.get_xdata())]
    assert [x for line in rings for x in line.get_xdata()] == sorted(broken)


def test_a_search_in_which_all_break_a_constraint_has_no_best():
    trials = [Trial(i, (i,), 1, "done", {"val_acc": 0.5}) for i in range(2)]
    shown = texts(draw_search(trials, broken={0, 1}))
    assert "breaks a constraint" in shown
    assert not any("best" in text for text in shown)


def test_search_shows_time_and_fidelities_only_when_there_are_any():
    timed = texts(draw_search(some_trials()))
    assert {"evaluation time", "1 epoch", "9 epochs"} <= set(timed)
    plain = texts(draw_search([Trial(0, (0,), 0, "done", {"val_acc": 0.5})]))
    assert "evaluation time" not in plain
    assert "untrained" not in plain


def test_search_without_results_says_so():
    for trials in ([], [Trial(0, (0,))], [Trial(0, (0,), 1, "failed", {}, 1.0, "nan")]):
        assert "no finished trial yet" in texts(draw_search(trials))


def test_search_of_many_trials_stays_small(tmp_path):
    rng = np.random.default_rng(0)
    trials = [Trial(i, (i,), 1, "done", {"val_acc": float(rng.random())}, 1.0) for i in range(5000)]
    save(draw_search(trials), tmp_path / "search.svg")
    assert (tmp_path / "search.svg").stat().st_size < 300_000


def test_alphas_mark_the_winner_of_every_decision():
    strengths = np.full((4, 2, 3), 0.2)
    strengths[-1, 0, 2] = strengths[-1, 1, 1] = 0.6
    options = [("none", "skip_connect", "sep_conv_3x3"), ("none", "max_pool_3x3")]
    shown = texts(draw_alphas(strengths, decisions=("first", "second"), options=options))
    # Once in the legend and once as the winner.
    assert [shown.count(o) for o in ("none", "skip_connect", "sep_conv_3x3", "max_pool_3x3")] == [1, 1, 2, 2]
    bold = [
        artist.get_text()
        for artist in draw_alpha_heatmap(strengths[-1], ("first", "second"), options).findobj(Text)
        if artist.get_fontweight() == "bold"
    ]
    assert bold == ["0.60", "0.60"]


@pytest.mark.parametrize(("strongest", "top"), [(0.387, 0.4), (0.4, 0.4), (0.41, 0.5), (1.0, 1.0)])
def test_alphas_fill_their_panels(strongest, top):
    strengths = np.full((4, 1, 2), 0.1)
    strengths[2, 0, 1] = strongest
    _, panel = draw_alphas(strengths, decisions=("e",), options=("a", "b")).axes
    assert panel.get_ylim() == (0, pytest.approx(top))


def test_a_single_epoch_shows_every_option():
    strengths = np.array([[[0.2, 0.3, 0.5]]])
    _, panel = draw_alphas(strengths, decisions=("e",), options=("a", "b", "c")).axes
    seen = {float(line.get_ydata()[0]) for line in panel.lines if line.get_marker() == "o"}
    assert seen == {0.2, 0.3, 0.5}


def test_alphas_survive_missing_numbers():
    strengths = np.full((2, 1, 2), np.nan)
    draw_alphas(strengths, decisions=("e",), options=("a", "b"))
    assert "–" in texts(draw_alpha_heatmap(strengths[-1], ("e",), ("a", "b")))
    assert "nothing was recorded" in texts(
        draw_alphas(np.zeros((0, 1, 2)), decisions=("e",), options=("a", "b"))
    )


@pytest.mark.parametrize(
    ("strengths", "wanted"),
    [
        (np.zeros((3, 2, 2)), "1 decisions"),
        (np.zeros((1, 2)), "3 axes"),
        (np.zeros((3, 1, 1)), "2 options"),
        (np.full((3, 1, 2), -1.5), "softmax"),
    ],
)
def test_alphas_refuse_what_does_not_fit(strengths, wanted):
    with pytest.raises(ConfigError, match=wanted):
        draw_alphas(strengths, decisions=("e",), options=("a", "b"))


@pytest.mark.parametrize(
    ("span", "labels"),
    [
        (2.61, ["0 s", "0.5 s", "1 s", "1.5 s", "2 s", "2.5 s"]),
        (99, ["0 s", "20 s", "40 s", "60 s", "80 s"]),
        (200, ["0 min", "1 min", "2 min", "3 min"]),
        (20_000, ["0 h", "1 h", "2 h", "3 h", "4 h", "5 h"]),
        (0.001, ["0 s", "0.0002 s", "0.0004 s", "0.0006 s", "0.0008 s", "0.001 s"]),
    ],
)
def test_times_are_marked_at_round_places(span, labels):
    found = time_ticks(span, most=6)
    assert [label for _, label in found] == labels and found[0][0] == 0 and found[-1][0] <= span
