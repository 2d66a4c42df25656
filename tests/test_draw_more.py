import itertools
import xml.etree.ElementTree as ET
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from nas.errors import ConfigError
from nas.show.draw import Bands, Trust, draw_anytime, draw_front, draw_search, draw_trust, save
from nas.show.draw.style import SERIES, bad_end, finite, spread
from nas.types import Trial

NAMES = ("evolution", "random search", "local search", "TPE", "NSGA-II", "surrogate", "Hyperband", "one-shot")
NAN = float("nan")


def band(*, epochs=200, start=1, top=0.94, rate=0.02, width=0.002):
    x = np.arange(epochs) + float(start)
    mean = top - 0.5 * np.exp(-rate * 10 * np.arange(epochs)) - 0.02 * np.exp(-rate * np.arange(epochs))
    return Bands(x, mean, mean - width, mean + width)


def strategies(count, **settings):
    return {name: band(top=0.94 - 0.0005 * i, **settings) for i, name in enumerate(NAMES[:count])}


def anytime(count=3, **settings):
    return draw_anytime(strategies(count), xlabel="evaluations", ylabel="test accuracy", **settings)


def cloud(count=200, seed=0):
    rng = np.random.default_rng(seed)
    cost = rng.uniform(0.1e6, 1.5e6, count)
    accuracy = 0.94 - 0.08 * np.exp(-cost / 4e5) - rng.exponential(0.02, count)
    return np.stack([cost, accuracy], axis=1)


def front(points, **settings):
    return draw_front(points, names=("parameters", "accuracy"), maximize=(False, True), **settings)


def estimate(name="synflow", tau=0.5, *, half=0.1, cost_s=1.0, group="untrained"):
    return Trust(name, tau, tau - half, tau + half, cost_s, group)


def estimates(count):
    rng = np.random.default_rng(0)
    return [
        estimate(
            f"estimate {i}", rng.uniform(-0.3, 0.8), cost_s=10 ** rng.uniform(-3, 5), group=f"kind {i % 4}"
        )
        for i in range(count)
    ]


def done(values, *, metric="val_acc"):
    return [Trial(i, (i,), 1, "done", {metric: float(value)}) for i, value in enumerate(values)]


def words(figure: Figure) -> list[tuple[str, Bbox]]:
    """Every text that is visible, with its extent in pixels as the renderer measures it."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    hidden = set()
    for axis in itertools.chain.from_iterable((axes.xaxis, axes.yaxis) for axes in figure.axes):
        low, high = sorted(axis.get_view_interval())
        slack = 1e-9 * (high - low)
        for tick in axis.get_major_ticks():
            if not axis.axes.axison or not low - slack <= tick.get_loc() <= high + slack:
                hidden |= {tick.label1, tick.label2}
    shown = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text() and t not in hidden]
    return [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in shown]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def assert_readable(figure: Figure) -> None:
    """No text touches another or leaves the page."""
    found = words(figure)
    for (a, first), (b, second) in itertools.combinations(found, 2):
        assert not first.overlaps(second), (a, b)
    page = figure.bbox
    for text, box in found:
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, text


def plot(figure: Figure):
    return figure.axes[1]


def limits(figure: Figure) -> tuple[float, float, float, float]:
    return (*plot(figure).get_xlim(), *plot(figure).get_ylim())


def drawn(figure: Figure, color: str) -> list[np.ndarray]:
    """The lines of that colour on the plot, [N, 2] each."""
    wanted = mpl.colors.to_rgba(color)
    return [
        line.get_xydata() for line in plot(figure).lines if mpl.colors.to_rgba(line.get_color()) == wanted
    ]


# Series


def test_spread_keeps_what_is_apart_and_parts_what_is_not():
    assert spread([1.0, 5.0, 3.0], gap=1.0, low=0.0, high=10.0) == [1.0, 5.0, 3.0]
    assert spread([2.0, 2.0], gap=1.0, low=0.0, high=10.0) == [1.5, 2.5]
    assert spread([0.0, 0.1, 9.9, 10.0], gap=1.0, low=0.0, high=10.0) == [0.0, 1.0, 9.0, 10.0]
    rng = np.random.default_rng(0)
    for _ in range(50):
        wanted = rng.uniform(0, 1, 8)
        places = np.asarray(spread(list(wanted), gap=0.1, low=0.0, high=1.0))
        assert (np.argsort(wanted) == np.argsort(places)).all()
        assert np.diff(np.sort(places)).min() > 0.1 - 1e-9
        assert places.min() >= -1e-9 and places.max() <= 1 + 1e-9


def test_the_bad_end_cuts_off_only_what_is_far_below():
    assert bad_end(np.asarray([0.8, 0.85, 0.9])) == 0.8
    assert bad_end(np.asarray([0.1, *[0.9] * 9, 0.91])) == pytest.approx(0.888)
    assert bad_end(np.asarray([0.5, 0.5])) == 0.5


def test_colours_stay_apart_for_the_colour_blind():
    # Machado et al. 2009, severity 1, in linear RGB; distances in CIELAB.
    kinds = [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
    ]
    xyz = np.asarray([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])
    white = np.asarray([0.9505, 1, 1.089])
    colours = np.asarray([mpl.colors.to_rgb(colour) for colour in SERIES])
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    for kind in kinds:
        light = (linear @ np.transpose(kind)).clip(0, 1) @ xyz.T / white
        x, y, z = np.where(light > 0.008856, np.cbrt(light), 7.787 * light + 16 / 116).T
        lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)) > 15.5


def test_finite_names_the_argument():
    assert finite([1, 2], who="x", shape=(-1,)).dtype == np.float64
    with pytest.raises(ConfigError, match=r"x: got shape \(2,\), wanted \[N, 2\]"):
        finite([1, 2], who="x", shape=(-1, 2))
    with pytest.raises(ConfigError, match="x: 1 of 2 numbers"):
        finite([1, NAN], who="x", shape=(-1,))


# Anytime curves


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_anytime_names_every_strategy_clearly(count):
    figure = anytime(count, title="Strategies", subtitle="20 runs", optimum=0.9437)
    assert_readable(figure)
    assert {*NAMES[:count], "optimum", "evaluations", "test accuracy", "Strategies"} <= set(texts(figure))
    for color in SERIES[:count]:
        assert drawn(figure, color)


def test_anytime_takes_other_colours():
    figure = anytime(2, colors=("#123456", "#654321"))
    assert drawn(figure, "#123456") and drawn(figure, "#654321") and not drawn(figure, SERIES[0])
    with pytest.raises(ConfigError, match="got 2 strategies, wanted 1 to 1"):
        anytime(2, colors=("#123456",))


def test_anytime_names_stand_in_the_order_of_the_ends():
    same = {name: band(top=0.9) for name in NAMES}
    apart = draw_anytime(same, xlabel="s", ylabel="y")
    assert_readable(apart)
    heights = {text: box.y0 for text, box in words(anytime(8))}
    assert [*NAMES] == sorted(NAMES, key=heights.__getitem__, reverse=True)


def test_anytime_shows_the_ends_and_cuts_off_the_start():
    curves = strategies(3)
    left, right, low, high = limits(anytime(3, optimum=0.95))
    assert all(low < b.low[-1] and b.high[-1] < high for b in curves.values())
    assert low < 0.95 < high
    assert left <= 1 and right >= 200
    # The ends differ by 0.001 and the start is 0.5 below.
    assert high - low < 0.1
    assert low > curves["evolution"].mean[0]


def test_anytime_draws_the_data():
    curve = band(epochs=40)
    figure = draw_anytime({"a": curve}, xlabel="s", ylabel="y")
    assert any(np.array_equal(line, np.stack([curve.x, curve.mean], 1)) for line in drawn(figure, SERIES[0]))
    (area,) = (c for c in plot(figure).collections if isinstance(c, PolyCollection))
    corners = area.get_paths()[0].vertices
    assert corners[:, 1].max() == curve.high.max() and corners[:, 1].min() == curve.low.min()


@pytest.mark.parametrize(("step", "whole"), [(1.0, True), (0.75, False)])
def test_anytime_counts_evaluations_in_whole_numbers(step, whole):
    x = np.arange(1.0, 5.0) * step
    ticks = plot(draw_anytime({"a": Bands(x, x, x, x)}, xlabel="evaluations", ylabel="y")).get_xticks()
    assert len(ticks) > 1 and all(tick == round(tick) for tick in ticks) == whole


def test_anytime_reads_falling_curves_as_something_to_minimise():
    errors = {n: Bands(b.x, 1 - b.mean, 1 - b.high, 1 - b.low) for n, b in strategies(4).items()}
    figure = draw_anytime(errors, xlabel="s", ylabel="error", optimum=0.05)
    assert_readable(figure)
    _, _, low, high = limits(figure)
    assert low < 0.05 and high < errors["evolution"].mean[0]
    assert all(b.high[-1] < high for b in errors.values())


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0, 1e-6, 1e6])
def test_anytime_of_single_points_and_equal_values(level):
    point = np.asarray([level])
    flat = np.full(5, level)
    for curves in (
        {"point": Bands(np.ones(1), point, point, point)},
        {
            "flat": Bands(np.arange(1.0, 6.0), flat, flat, flat),
            "point": Bands(np.ones(1), point, point, point),
        },
    ):
        figure = draw_anytime(curves, xlabel="evaluations", ylabel="y", optimum=level)
        assert_readable(figure)
        left, right, low, high = limits(figure)
        assert left < 1 < right and low < level < high


def test_anytime_joins_a_short_curve_to_its_name():
    curves = {"long": band(), "short": band(epochs=80, top=0.9)}
    dotted = [
        line for line in drawn(draw_anytime(curves, xlabel="s", ylabel="y"), SERIES[1]) if len(line) == 2
    ]
    assert [80.0, curves["short"].mean[-1]] in [line[0].tolist() for line in dotted]


def broken(**columns):
    good = {"x": [1.0, 2.0], "mean": [0.5, 0.6], "low": [0.4, 0.5], "high": [0.6, 0.7]}
    return {"TPE": Bands(**{key: np.asarray(value) for key, value in (good | columns).items()})}


@pytest.mark.parametrize(
    ("curves", "named"),
    [
        ({}, "curves: got 0"),
        ({str(i): band() for i in range(9)}, "curves: got 9"),
        (broken(mean=[0.5, NAN]), r"curves\['TPE'\]\.mean: 1 of 2"),
        (broken(low=[NAN, NAN]), r"curves\['TPE'\]\.low: 2 of 2"),
        (broken(high=[0.6, float("inf")]), r"curves\['TPE'\]\.high"),
        (broken(x=[1.0, NAN]), r"curves\['TPE'\]\.x"),
        (broken(x=[2.0, 1.0]), r"curves\['TPE'\]\.x: .* above the last"),
        (broken(x=[1.0, 2.0, 3.0]), r"curves\['TPE'\]\.mean: got shape"),
        (broken(mean=[0.5, 0.9]), r"curves\['TPE'\]\.mean: lies outside"),
        (broken(x=[], mean=[], low=[], high=[]), r"curves\['TPE'\]\.x: got 0"),
    ],
)
def test_anytime_refuses_what_it_cannot_draw(curves, named):
    with pytest.raises(ConfigError, match=named):
        draw_anytime(curves, xlabel="x", ylabel="y")


def test_anytime_refuses_an_optimum_that_is_no_number():
    with pytest.raises(ConfigError, match="optimum"):
        anytime(optimum=NAN)


# Fronts


def test_front_is_what_nothing_dominates():
    points = cloud()
    figure = front(points)
    marks = next(
        line.get_xydata()
        for line in plot(figure).lines
        if line.get_marker() == "o" and line.get_zorder() == 6
    )
    dominated = [any((q[0] <= p[0] and q[1] >= p[1] and (q != p).any()) for q in points) for p in points]
    assert sorted(map(tuple, marks)) == sorted(map(tuple, points[~np.asarray(dominated)]))


@pytest.mark.parametrize("maximize", list(itertools.product((False, True), repeat=2)))
def test_front_turns_every_way(maximize):
    scores = np.asarray([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [1.0, 1.0], [2.0, 1.5]])
    signs = np.where(maximize, 1, -1)
    figure = draw_front(
        scores * signs, names=("a", "b"), maximize=maximize, reference=tuple(0.5 * signs), chosen=[1, 3]
    )
    assert_readable(figure)
    staircase = next(line.get_xydata() for line in plot(figure).lines if line.get_zorder() == 5)
    assert (staircase * signs).tolist() == [[1, 3], [1, 2], [2, 2], [2, 1], [3, 1]]
    (region,) = plot(figure).patches
    x, y = (region.get_xy()[:-1] * signs).T
    area = 0.5 * abs(x @ np.roll(y, 1) - y @ np.roll(x, 1))
    # By hand: 0.5 x 2.5 + 1 x 1.5 + 1 x 0.5, slices from the reference to the right.
    assert area == pytest.approx(3.25)
    better = [
        f"{name} · {'higher' if up else 'lower'} is better" for name, up in zip("ab", maximize, strict=True)
    ]
    assert set(better) <= set(texts(figure))


def test_front_labels_find_room_in_a_crowd():
    points = cloud(400)
    best = np.argsort(-points[:, 1])[:12].tolist()
    figure = front(points, chosen=best, reference=(1.6e6, 0.8), exact=cloud(4000, 1), title="t", subtitle="s")
    assert_readable(figure)
    assert {f"#{index}" for index in best} <= set(texts(figure))
    assert {"evaluated", "front found", "exact front", "chosen", "hypervolume", "reference"} <= set(
        texts(figure)
    )


def test_front_says_when_there_is_no_room_to_name_all():
    with pytest.raises(ConfigError, match=r"chosen: .* choose fewer"):
        front(np.tile([1.0, 2.0], (100, 1)), chosen=range(100))


def test_front_clips_outliers_but_neither_the_front_nor_the_chosen():
    points = np.concatenate([cloud(), [[9e7, 0.5], [5e5, 0.1], [2e5, 0.3]]])
    left, right, low, high = limits(front(points))
    assert right < 5e6 and low > 0.3
    assert left < points[:, 0].min() and high > points[:, 1].max()
    triangles = [line for line in plot(front(points)).lines if line.get_marker() in ("v", ">")]
    assert sum(len(line.get_xdata()) for line in triangles) >= 3
    assert all(left <= x <= right and low <= y <= high for line in triangles for x, y in line.get_xydata())
    _, right, low, _ = limits(front(points, chosen=[200, 201]))
    assert right > 9e7 and low < 0.1


def test_front_shows_a_near_reference_and_lets_a_far_one_go():
    near = front(cloud(), reference=(1.6e6, 0.8))
    left, right, low, high = limits(near)
    assert left < 1.6e6 < right and low < 0.8 < high
    far = front(cloud(), reference=(1e9, 0.0))
    assert limits(far)[1] < 1e7
    assert "reference" in texts(near) and "reference" not in texts(far)


def test_front_leaves_out_what_failed():
    points = cloud(20)
    failed = np.concatenate([points, [[NAN, 0.9], [1e5, NAN], [1e5, float("inf")]]])
    assert limits(front(failed)) == limits(front(points))
    assert "no finished trial yet" in texts(front(failed[20:]))
    assert "no finished trial yet" in texts(front(np.empty((0, 2)), reference=(1.0, 0.0), exact=points))


def test_front_of_one_point_and_of_equal_ones():
    for points in (np.asarray([[2.0, 0.9]]), np.tile([[2.0, 0.9]], (5, 1)), np.zeros((3, 2))):
        for reference in (None, (3.0, -0.5)):
            figure = front(points, chosen=[0], reference=reference, exact=points)
            assert_readable(figure)
            left, right, low, high = limits(figure)
            assert left < points[0, 0] < right and low < points[0, 1] < high


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"points": np.zeros(3)}, "points: got shape"),
        ({"points": np.zeros((3, 3))}, "points: got shape"),
        ({"exact": np.asarray([[1.0, NAN]])}, "exact: 1 of 2"),
        ({"exact": np.zeros((2, 3))}, "exact: got shape"),
        ({"reference": (1.0, NAN)}, "reference: 1 of 2"),
        ({"chosen": [4]}, "chosen: got 4"),
        ({"chosen": [-1]}, "chosen: got -1"),
        ({"chosen": [1]}, "chosen: got 1"),
    ],
)
def test_front_refuses_what_it_cannot_draw(settings, named):
    points = np.asarray([[1.0, 0.5], [2.0, NAN], [3.0, 0.7], [2.0, 0.6]])
    with pytest.raises(ConfigError, match=named):
        front(**({"points": points} | settings))


def test_front_of_many_points_is_quick_and_small(tmp_path):
    save(front(cloud(20_000), reference=(1.6e6, 0.7), chosen=[3]), tmp_path / "front.svg")
    assert (tmp_path / "front.svg").stat().st_size < 300_000


# Trust


@pytest.mark.parametrize(("count", "threshold"), [(1, None), (2, 1.0), (9, -0.9), (9, 0.0), (40, 0.7)])
def test_trust_is_readable(count, threshold):
    figure = draw_trust(estimates(count), title="Trust", subtitle="of estimates", threshold=threshold)
    assert_readable(figure)
    shown = texts(figure)
    assert {f"estimate {i}" for i in range(count)} <= set(shown)
    named = [text for text in shown if text.startswith("threshold")]
    assert named == ([] if threshold is None else [f"threshold {threshold:g}"])


def test_trust_sorts_by_cost_within_groups():
    rows = [
        estimate("b", cost_s=5.0, group="second"),
        estimate("a", cost_s=2.0, group="first"),
        estimate("c", cost_s=0.5, group="second"),
        estimate("d", cost_s=1.0, group="first"),
    ]
    heights = {text: box.y0 for text, box in words(draw_trust(rows))}
    wanted = ["second", "c", "b", "first", "d", "a"]
    assert sorted(wanted, key=heights.__getitem__, reverse=True) == wanted


def test_trust_draws_its_numbers():
    rows = [estimate("a", 0.5, cost_s=7200.0), estimate("b", -0.25, half=0.2, cost_s=0.0042, group="x")]
    figure = draw_trust(rows, threshold=0.9)
    assert {"2.0 h", "4.2 ms", "0.50", "−0.25"} <= set(texts(figure))
    left, right, *_ = limits(figure)
    assert left < -0.45 and right > 0.9
    whiskers = [line.get_xdata().tolist() for line in plot(figure).lines if line.get_marker() == "|"]
    assert np.allclose(whiskers, [[0.4, 0.6], [-0.45, -0.05]])


def test_trust_survives_long_and_empty_names():
    rows = [
        estimate("w" * 200, group="g" * 200),
        estimate("", cost_s=0.0, group=""),
        estimate("🚀\n$x", group=""),
    ]
    figure = draw_trust(rows, title="t" * 300)
    assert_readable(figure)
    assert "?" in texts(figure)


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([], "rows: got 0"),
        (estimates(20) * 3, "rows: got 60"),
        ([Trust("x", NAN, 0.0, 1.0, 1.0, "")], "rows: 'x' has tau nan"),
        ([Trust("x", 0.5, NAN, 1.0, 1.0, "")], "rows: 'x' has tau"),
        ([Trust("x", 0.5, 0.6, 0.7, 1.0, "")], "rows: 'x' has tau"),
        ([Trust("x", 0.5, 0.4, 1.7, 1.0, "")], "rows: 'x' has tau"),
        ([Trust("x", 0.5, 0.4, 0.7, NAN, "")], "rows: 'x' has cost_s"),
        ([Trust("x", 0.5, 0.4, 0.7, -1.0, "")], "rows: 'x' has cost_s"),
    ],
)
def test_trust_refuses_what_it_cannot_draw(rows, named):
    with pytest.raises(ConfigError, match=named):
        draw_trust(rows)


@pytest.mark.parametrize("threshold", [NAN, 1.5])
def test_trust_refuses_a_threshold_that_is_no_correlation(threshold):
    with pytest.raises(ConfigError, match="threshold"):
        draw_trust([estimate()], threshold=threshold)


# Baselines of a search


def test_search_draws_baselines_as_steps_and_levels():
    mine = done([0.8, 0.82, 0.85, 0.84])
    baselines = {
        "random search at equal cost": done([0.7, 0.81, 0.75, 0.79, 0.83, 0.5]),
        "hand-designed network": done([0.9]),
    }
    figure = draw_search(mine, baselines=baselines)
    assert_readable(figure)
    assert {*baselines, "best so far"} <= set(texts(figure))
    left, right, low, high = limits(figure)
    assert right > 5 and low < 0.83 and high > 0.9
    # Steps are stored as the corners that were given.
    steps, level = (line for line in plot(figure).lines if line.get_zorder() == 4)
    assert steps.get_xydata().tolist() == [[0, 0.7], [1, 0.81], [4, 0.83], [right, 0.83]]
    assert steps.get_drawstyle() == "steps-post" and not steps.is_dashed()
    assert level.get_xydata().tolist() == [[left, 0.9], [right, 0.9]]
    assert level.is_dashed()


def test_epochs_and_their_baselines_are_drawn_over_evaluation_time():
    def costing(seconds, values):
        return [replace(trial, cost_s=seconds) for trial in done(values)]

    mine, alone = costing(60.0, [0.3, 0.8, 0.7]), costing(25.0, [0.5, 0.4, 0.6, 0.55, 0.1, 0.2, 0.3])
    figure = draw_search(mine, baselines={"random": alone, "largest": done([0.9])}, epochs=True)
    assert_readable(figure)
    shown = set(texts(figure))
    assert {"epoch", "evaluation time", "best 0.8 · epoch 2", "1 min", "3 min"} <= shown
    assert "trial" not in shown
    left, right = limits(figure)[:2]
    assert left < 0 and 180 < right < 190
    steps, _ = (line for line in plot(figure).lines if line.get_zorder() == 4)
    assert steps.get_xydata().tolist() == [[25, 0.5], [75, 0.6], [right, 0.6]]
    dots = [x for line in plot(figure).lines if line.get_marker() == "o" for x in line.get_xdata()]
    assert sorted({*dots}) == [60, 120, 180]


def test_search_baselines_follow_the_direction():
    figure = draw_search(done([0.5, 0.4]), maximize=False, baselines={"a": done([0.6, 0.7, 0.3])})
    (line,) = (line for line in plot(figure).lines if line.get_zorder() == 4)
    assert line.get_ydata().tolist() == [0.6, 0.3, 0.3]


def test_search_without_trials_still_shows_its_baselines():
    figure = draw_search([], baselines={"random": done([0.5, 0.6])})
    assert {"random", "no finished trial yet"} <= set(texts(figure))
    assert limits(figure)[2] < 0.6 < limits(figure)[3]


def test_search_refuses_a_baseline_without_values():
    for run in ([], done([NAN]), done([0.5], metric="val_loss"), [Trial(0, (0,))]):
        with pytest.raises(ConfigError, match=r"baselines\['random'\].*val_acc"):
            draw_search(done([0.5]), baselines={"random": run})


def test_search_is_the_same_without_baselines(tmp_path):
    for i, baselines in enumerate((None, {})):
        save(draw_search(done([0.5, 0.7, 0.6]), baselines=baselines), tmp_path / f"{i}.svg")
    assert (tmp_path / "0.svg").read_bytes() == (tmp_path / "1.svg").read_bytes()


# All of them


def every_figure():
    return {
        "anytime": anytime(8, title="anytime", optimum=0.945),
        "front": front(cloud(), chosen=[1, 2], reference=(1.6e6, 0.8), exact=cloud(500, 1)),
        "trust": draw_trust(estimates(12), threshold=0.7),
        "search": draw_search(done([0.5, 0.7, 0.6]), baselines={"a": done([0.6]), "b": done([0.3, 0.65])}),
    }


def test_files_are_the_same_every_time(tmp_path):
    settings = dict(mpl.rcParams)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name, figure in every_figure().items():
            save(figure, tmp_path / folder / f"{name}.svg", tmp_path / folder / f"{name}.png")
    assert dict(mpl.rcParams) == settings
    written = sorted(tmp_path.glob("a/*"))
    assert len(written) == 8
    for path in written:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
        assert path.stat().st_size > 5_000


@pytest.mark.parametrize("name", ["$\\frac{1}{0}$", "<script>x</script>\n\x00🚀", "w" * 200, ""])
def test_hostile_names_stay_plain_text(name, tmp_path):
    rows = [Trust(name, 0.5, 0.4, 0.6, 1.0, name)]
    figures = [
        draw_anytime({name: band()}, xlabel=name, ylabel=name, title=name, subtitle=name),
        draw_front(
            cloud(), names=(name, name), maximize=(False, True), chosen=[0], title=name, subtitle=name
        ),
        draw_trust(rows, title=name, subtitle=name),
        draw_search(done([0.5]), baselines={name: done([0.4])}),
    ]
    for figure in figures:
        assert_readable(figure)
        save(figure, tmp_path / "picture.svg")
        tags = {element.tag.rpartition("}")[2] for element in ET.parse(tmp_path / "picture.svg").iter()}
        assert "script" not in tags
