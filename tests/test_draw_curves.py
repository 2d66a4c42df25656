"""Pictures of searches: curves, fronts, rank correlations and diagnostics show the numbers they are given."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from test_draw import assert_readable, texts

from nas.files.schemas import EpochRecord
from nas.show.draw import (
    Bands,
    draw_anytime,
    draw_diagnostics,
    draw_pareto_front,
    draw_search,
    save,
)
from nas.show.draw.style import PAPER, SERIES
from nas.types import Trial

NAN = float("nan")
NAMES = ("evolution", "random search", "local search", "TPE", "NSGA-II", "surrogate", "Hyperband", "one-shot")
TITLES = ("Skip share", "Entropy", "Eigenvalue", "Gradient matching", "Validation score", "Genotype changes")
BACK = (*range(1, 13), *range(9, 15), *range(12, 21))
"""The epochs of a search that went back twice."""


def done(values, *, metric="val_acc", cost_s=0.0):
    return [Trial(i, (i,), 1, "done", {metric: float(v)}, cost_s) for i, v in enumerate(values)]


def limits(figure):
    return (*figure.axes[0].get_xlim(), *figure.axes[0].get_ylim())


def drawn(axes, color):
    """The lines of that colour, [N, 2] each; dots are not lines."""
    wanted = mpl.colors.to_rgba(color)
    found = [line for line in axes.lines if mpl.colors.to_rgba(line.get_color()) == wanted]
    return [line.get_xydata() for line in found if line.get_linestyle() != "None"]


# -- the curve of a search ---------------------------------------------------------------------------


@pytest.mark.parametrize(("maximize", "best", "number"), [(True, 0.9, 1), (False, 0.2, 2)])
def test_a_search_names_its_best_trial(maximize, best, number):
    figure = draw_search(done([0.5, 0.9, 0.2, NAN]), maximize=maximize, title="search")
    assert_readable(figure)
    assert {f"best {best} · trial {number}", "failed", "best so far", "search"} <= set(texts(figure))


@pytest.mark.parametrize("values", [(0.5, 0.9, 0.6), (0.1, 0.9, 0.91, 0.92, 0.93, 0.94)])
def test_what_breaks_a_constraint_is_a_ring_and_never_the_best(values):
    broken = {i for i, value in enumerate(values) if value > 0.8}
    figure = draw_search(done(values), broken=broken)
    best = max(range(len(values)), key=lambda i: (i not in broken, values[i]))
    assert {f"best {values[best]} · trial {best}", "breaks a constraint"} <= set(texts(figure))
    assert limits(figure)[2] < values[best] < limits(figure)[3]
    rings = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == PAPER]
    assert sorted(x for line in rings for x in line.get_xdata()) == sorted(broken)
    none_kept = texts(draw_search(done(values), broken=range(len(values))))
    assert "breaks a constraint" in none_kept and not any("best" in text for text in none_kept)


def test_a_search_without_results_says_so():
    running, failed = Trial(0, (0,)), Trial(1, (0,), 1, "failed", {}, 1.0, "nan")
    assert "no finished trial yet" in texts(draw_search([running, failed]))
    figure = draw_search([], baselines={"random": done([0.5, 0.6]), "nothing": [], "unknown": done([NAN])})
    assert {"random", "no finished trial yet"} <= set(texts(figure))
    assert not {"nothing", "unknown"} & set(texts(figure)) and limits(figure)[2] < 0.6 < limits(figure)[3]


def test_baselines_are_steps_and_levels():
    baselines = {
        "random search at equal cost": done([0.7, 0.81, 0.75, 0.79, 0.83, 0.5]),
        "hand-designed network": done([0.9]),
    }
    figure = draw_search(done([0.8, 0.82, 0.85, 0.84]), baselines=baselines)
    assert_readable(figure)
    assert {*baselines, "best so far"} <= set(texts(figure))
    left, right, low, high = limits(figure)
    assert right > 5 and low < 0.83 and high > 0.9
    steps, level = (line for line in figure.axes[0].lines if line.get_zorder() == 4)
    assert steps.get_xydata().tolist() == [[0, 0.7], [1, 0.81], [4, 0.83], [right, 0.83]]
    assert steps.get_drawstyle() == "steps-post" and not steps.is_dashed()
    assert level.get_xydata().tolist() == [[left, 0.9], [right, 0.9]] and level.is_dashed()
    figure = draw_search(done([0.5, 0.4]), maximize=False, baselines={"a": done([0.6, 0.7, 0.3])})
    (line,) = (line for line in figure.axes[0].lines if line.get_zorder() == 4)
    assert line.get_ydata().tolist() == [0.6, 0.3, 0.3]


# -- anytime curves ----------------------------------------------------------------------------------


def band(*, epochs=200, top=0.94):
    steps = np.arange(epochs)
    mean = top - 0.5 * np.exp(-0.2 * steps) - 0.02 * np.exp(-0.02 * steps)
    return Bands(steps + 1.0, mean, mean - 0.002, mean + 0.002)


def test_every_strategy_is_drawn_and_named():
    curves = {name: band(top=0.94 - 0.0005 * i) for i, name in enumerate(NAMES)}
    figure = draw_anytime(curves, xlabel="evaluations", ylabel="accuracy", title="Strategies", optimum=0.9437)
    assert_readable(figure)
    assert {*NAMES, "optimum", "evaluations", "accuracy", "Strategies"} <= set(texts(figure))
    curve = band(epochs=40)
    figure = draw_anytime({"a": curve}, xlabel="s", ylabel="y", colors=("#123456",))
    assert np.array_equal(drawn(figure.axes[0], "#123456")[0], np.stack([curve.x, curve.mean], 1))
    (area,) = (c for c in figure.axes[0].collections if isinstance(c, PolyCollection))
    heights = area.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (curve.low.min(), curve.high.max())


# -- two objectives ----------------------------------------------------------------------------------


def cloud():
    rng = np.random.default_rng(0)
    cost = rng.uniform(0.1e6, 1.5e6, 200)
    return np.stack([cost, 0.94 - 0.08 * np.exp(-cost / 4e5) - rng.exponential(0.02, 200)], axis=1)


def front(points, **settings):
    return draw_pareto_front(points, names=("parameters", "accuracy"), maximize=(False, True), **settings)


def test_the_front_is_what_nothing_dominates():
    points = cloud()
    figure = front(points, exact=points * [0.9, 1.01], chosen=[3], title="t", subtitle="s")
    assert_readable(figure)
    assert {"evaluated", "front found", "exact front", "chosen"} <= set(texts(figure))
    (marks,) = (line.get_xydata() for line in figure.axes[0].lines if line.get_zorder() == 6)
    dominated = [any((q[0] <= p[0] and q[1] >= p[1] and (q != p).any()) for q in points) for p in points]
    assert sorted(map(tuple, marks)) == sorted(map(tuple, points[~np.asarray(dominated)]))


def test_fronts_of_nothing_and_of_one_point():
    assert "no finished trial yet" in texts(front(np.asarray([[NAN, 0.9]]), exact=cloud()))
    for points in (np.asarray([[2.0, 0.9]]), np.zeros((3, 2))):
        figure = front(points, chosen=[0], exact=points)
        assert_readable(figure)
        left, right, low, high = limits(figure)
        assert left < points[0, 0] < right and low < points[0, 1] < high


# -- diagnostics -------------------------------------------------------------------------------------


def records(where, *, events=(), kinds=("normal", "reduce"), **columns):
    """Records with other values in every column; `where` is the epoch of each."""
    rng = np.random.default_rng(0)
    found = []
    for place, epoch in enumerate(where):
        values = {
            "epoch": epoch,
            "val_score": rng.uniform(0.5, 0.6),
            "alpha_entropy": rng.uniform(),
            "eigenvalue": rng.uniform(0.1, 0.4),
            "eigenvalue_mean": rng.uniform(0.2, 0.3),
            "eigenvalue_alarm": rng.uniform(0.3, 0.4),
            "gradient_matching": rng.uniform(-1, 1),
            "discretisation_gap": rng.uniform(-0.1, 0.4),
            "changes": int(rng.integers(7)),
            "skip_shares": {kind: int(rng.integers(9)) / 8 for kind in kinds},
            "events": [text for index, text in events if index == place],
        }
        values |= {name: np.broadcast_to(column, len(where))[place] for name, column in columns.items()}
        found.append(EpochRecord.model_construct(**values))
    return found


def panels(figure):
    return dict(zip(TITLES, figure.axes, strict=False))


def heights(axes, color):
    (line,) = drawn(axes, color)
    return line[np.isfinite(line[:, 1]), 1].tolist()


def test_every_value_is_in_its_panel():
    rows = records(BACK, skip_shares={"normal": 0.75, "reduce": 0.5})
    figure = draw_diagnostics(rows, title="Health")
    assert_readable(figure)
    shown = panels(figure)
    assert {*TITLES, "Health", "normal 0.75", "reduce 0.5"} <= set(texts(figure))
    assert heights(shown["Skip share"], SERIES[3]) == [0.5] * len(rows)
    assert heights(shown["Entropy"], SERIES[0]) == [row.alpha_entropy for row in rows]
    assert heights(shown["Eigenvalue"], SERIES[0]) == [row.eigenvalue_mean for row in rows]
    assert heights(shown["Eigenvalue"], SERIES[1]) == [row.eigenvalue_alarm for row in rows]
    assert heights(shown["Gradient matching"], SERIES[0]) == [row.gradient_matching for row in rows]
    assert heights(shown["Validation score"], SERIES[0]) == [row.val_score for row in rows]
    alone = [row.val_score - row.discretisation_gap for row in rows]
    assert heights(shown["Validation score"], SERIES[2]) == alone
    assert heights(shown["Genotype changes"], SERIES[0]) == [row.changes for row in rows]


def test_returns_and_events_are_marked_in_every_panel():
    events = [(17, "back to epoch 11"), (4, "a stage"), (23, "b"), (23, "c")]
    figure = draw_diagnostics(records(BACK, events=events))
    assert_readable(figure)
    for axes in panels(figure).values():
        solid, dotted = (c for c in axes.collections if isinstance(c, LineCollection))
        assert [segment[0][0] for segment in solid.get_segments()] == [12.5, 18.5]
        assert [segment[0][0] for segment in dotted.get_segments()] == [5.5, 24.5]
    shown = texts(figure)
    assert "record 12, epoch 12:   epoch 12 was followed by epoch 9" in shown and "undone epochs" in shown
    plain = texts(draw_diagnostics(records(range(20))))
    assert not {"the search went back", "undone epochs", "other event"} & set(plain)


def test_panels_say_that_nothing_was_measured():
    figure = draw_diagnostics(records(BACK, alpha_entropy=NAN, eigenvalue=NAN, kinds=(), eigenvalue_mean=NAN))
    assert_readable(figure)
    assert texts(figure).count("not measured") == 2
    assert "nothing was recorded" in texts(draw_diagnostics([], title="Health"))


def test_many_records_are_a_small_file_and_one_spike_does_not_flatten_the_eigenvalue(tmp_path):
    spiky = np.where(np.arange(500) == 20, 90.0, 0.1)
    events = [(i, f"event {i}") for i in range(0, 500, 7)]
    rows = records(range(500), events=events, kinds=("normal", "reduce", "a", "b"), eigenvalue=spiky)
    figure = draw_diagnostics(rows, title="t")
    assert_readable(figure)
    listed = [text for text in texts(figure) if "event " in text and text != "other event"]
    assert len(listed) == 8
    assert panels(figure)["Eigenvalue"].get_yscale() == "log"
    save(figure, tmp_path / "health.svg")
    assert (tmp_path / "health.svg").stat().st_size < 600_000
