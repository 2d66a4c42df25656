import xml.etree.ElementTree as ET
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from test_draw_more import assert_readable, texts, words

from nas.errors import ConfigError
from nas.show.draw import HealthSeries, draw_health, save
from nas.show.draw.style import SERIES, text_size

TITLES = ("Skip share", "Entropy", "Eigenvalue", "Gradient matching", "Accuracy", "Genotype changes")
NAN = float("nan")
BLUE, ORANGE, GREEN = SERIES[:3]
BACK = (*range(1, 13), *range(9, 15), *range(12, 21))
HOSTILE = ("<script>x</script>\n\x00🚀", "$x_1$ $\\frac{1}{0}$", "w" * 300, "\ud800", "")


def made(epochs, *, events=(), kinds=("normal", "reduce"), seed=0):
    """A series with other values in every column; `epochs` is a number of them or where each was."""
    where = np.arange(1, epochs + 1) if isinstance(epochs, int) else np.asarray(epochs)
    rng, count = np.random.default_rng(seed), len(where)
    return HealthSeries(
        epochs=where,
        skip_shares={kind: rng.integers(0, 9, count) / 8 for kind in kinds},
        entropy=rng.uniform(0, 1, count),
        eigenvalue=rng.uniform(0.1, 0.4, count),
        mean=rng.uniform(0.2, 0.3, count),
        alarm=rng.uniform(0.3, 0.4, count),
        matching=rng.uniform(-1, 1, count),
        gap=rng.uniform(-0.1, 0.4, count),
        supernet_acc=rng.uniform(0.5, 0.6, count),
        changes=rng.integers(0, 7, count),
        events=events,
    )


def panels(figure):
    return dict(zip(TITLES, figure.axes[1:], strict=True))


def lines(axes, color):
    """The lines of that colour as [N, 2], without the gaps; dots are not lines."""
    wanted = mpl.colors.to_rgba(color)
    found = [
        line.get_xydata()
        for line in axes.lines
        if mpl.colors.to_rgba(line.get_color()) == wanted and line.get_linestyle() != "None"
    ]
    return [line[np.isfinite(line[:, 1])] for line in found]


def dots(axes, color):
    wanted = mpl.colors.to_rgba(color)
    return [
        line.get_xydata()
        for line in axes.lines
        if mpl.colors.to_rgba(line.get_color()) == wanted and line.get_linestyle() == "None"
    ]


def heights(axes, color):
    (line,) = lines(axes, color)
    assert line[:, 0].tolist() == list(range(1, len(line) + 1))
    return line[:, 1]


def rules(axes):
    """Where the solid and the dotted vertical rules stand."""
    solid, dotted = (c for c in axes.collections if isinstance(c, LineCollection))
    return [[float(segment[0][0]) for segment in group.get_segments()] for group in (solid, dotted)]


def tags(figure):
    """The numbers above every panel, from left to right."""
    shown = sorted(words(figure), key=lambda word: word[1].x0)
    strip = {name: axes.get_window_extent() for name, axes in panels(figure).items()}
    found = {name: [] for name in strip}
    for text, box in shown:
        for name, panel in strip.items():
            above = 0 < box.y0 - panel.y1 < 0.12 * figure.dpi
            if above and panel.x0 - 1 <= box.x0 and box.x1 <= panel.x1 + 1:
                found[name].append(text)
    return found


def bands(axes):
    """From where to where it is grey."""
    grey = mpl.colors.to_rgb("#667380")
    found = [p for p in axes.patches if mpl.colors.to_rgb(p.get_facecolor()) == grey]
    return [(p.get_x(), p.get_x() + p.get_width()) for p in found]


# Values


@pytest.mark.parametrize("epochs", [30, BACK])
def test_every_value_is_in_its_panel(epochs):
    series = made(epochs)
    figure = draw_health(made(epochs), title="Health")
    shown = panels(figure)
    assert set(TITLES) | {"Health"} <= set(texts(figure))
    normal, reduce = SERIES[0], SERIES[3]
    assert np.array_equal(heights(shown["Skip share"], normal), series.skip_shares["normal"])
    assert np.array_equal(heights(shown["Skip share"], reduce), series.skip_shares["reduce"])
    assert np.array_equal(heights(shown["Entropy"], BLUE), series.entropy)
    assert np.array_equal(heights(shown["Gradient matching"], BLUE), series.matching)
    assert np.array_equal(heights(shown["Accuracy"], BLUE), series.supernet_acc)
    assert np.array_equal(heights(shown["Accuracy"], GREEN), series.supernet_acc - series.gap)
    raw = [line.get_ydata() for line in shown["Eigenvalue"].lines]
    assert any(np.array_equal(y[np.isfinite(y)], series.eigenvalue) for y in raw)
    (bars,) = shown["Genotype changes"].containers
    assert [bar.get_height() for bar in bars] == series.changes.tolist()
    assert [bar.get_x() + bar.get_width() / 2 for bar in bars] == pytest.approx(
        range(1, len(series.epochs) + 1)
    )


def test_the_keys_tell_the_last_values():
    series = replace(made(9), gap=np.full(9, 0.25), supernet_acc=np.full(9, 0.75), changes=np.arange(9))
    series = replace(series, entropy=np.full(9, 0.125), matching=np.full(9, -0.5))
    series = replace(series, skip_shares={"normal": np.full(9, 0.75), "": np.full(9, 0.5)})
    wanted = {"normal 0.75", "outside cells 0.50", "last 0.12", "last −0.50", "last 8, 36 in all"}
    assert wanted | {"supernet 0.75", "discretised 0.50"} <= set(texts(draw_health(series)))


def test_the_gap_is_the_shaded_distance():
    series = replace(made(3), supernet_acc=np.full(3, 0.5), gap=np.asarray([0.2, 0.2, -0.1]))
    areas = [c for c in panels(draw_health(series))["Accuracy"].collections if isinstance(c, PolyCollection)]
    lost, won = (np.concatenate([path.vertices for path in area.get_paths()]) for area in areas)
    assert mpl.colors.to_hex(areas[0].get_facecolor()[0]).upper() == ORANGE
    assert (lost[:, 1].min(), lost[:, 1].max()) == pytest.approx((0.3, 0.5))
    assert (won[:, 1].min(), won[:, 1].max()) == pytest.approx((0.5, 0.6))
    assert lost[:, 0].max() == pytest.approx(2 + 2 / 3) == won[:, 0].min()


def test_all_values_lie_within_the_panels():
    series = replace(made(40), gap=np.linspace(-1, 1, 40), matching=np.linspace(-1, 1, 40))
    for axes in panels(draw_health(series)).values():
        low, high = axes.get_ylim()
        for line in axes.lines:
            y = line.get_ydata()
            assert ((low <= y) & (y <= high) | np.isnan(y)).all()


def test_equal_values_do_not_hide_each_other():
    series = replace(made(9), skip_shares=dict.fromkeys(("normal", "reduce"), np.full(9, 0.25)))
    below, above = (
        next(line for line in panels(draw_health(series))["Skip share"].lines if line.get_color() == color)
        for color in (SERIES[0], SERIES[3])
    )
    assert below.get_zorder() < above.get_zorder() and below.get_linewidth() > above.get_linewidth()
    assert above.is_dashed() and not below.is_dashed()


def test_many_kinds_of_cell_are_ranked_by_their_last_share():
    shares = {f"kind {i}": np.linspace(0, i / 20, 20) for i in range(20)}
    figure = draw_health(replace(made(20), skip_shares=shares))
    assert_readable(figure)
    assert "kind 19 0.95" in texts(figure)
    named = [text for text in texts(figure) if text.startswith("kind")]
    assert f"{20 - len(named)} others" in texts(figure)
    assert len(lines(panels(figure)["Skip share"], SERIES[7])) == 20 - len(named)


def test_three_usual_kinds_of_cell_are_all_named():
    figure = draw_health(made(20, kinds=("normal", "reduce", "")))
    assert_readable(figure)
    assert {"normal", "reduce", "outside cells"} <= set(texts(figure))


# The eigenvalue


def test_where_the_mean_is_above_the_alarm_there_are_dots():
    mean = np.asarray([NAN, 0.1, 0.2, 0.5, 0.6, 0.2])
    alarm = np.asarray([NAN, NAN, 0.3, 0.4, 0.7, 0.1])
    axes = panels(draw_health(replace(made(6), mean=mean, alarm=alarm)))["Eigenvalue"]
    (shown,) = lines(axes, BLUE)
    assert shown.tolist() == [[t + 1, mean[t]] for t in range(1, 6)]
    (level,) = lines(axes, ORANGE)
    assert level.tolist() == [[3, 0.3], [4, 0.4], [5, 0.7], [6, 0.1]]
    (over,) = dots(axes, ORANGE)
    assert over.tolist() == [[4, 0.5], [6, 0.2]]


def test_what_nobody_watched_has_neither_mean_nor_alarm():
    nothing = np.full(6, NAN)
    figure = draw_health(replace(made(6), eigenvalue=np.full(6, 0.25), mean=nothing, alarm=nothing))
    axes = panels(figure)["Eigenvalue"]
    assert "last 0.25" in texts(figure) and not lines(axes, ORANGE)


def test_a_constant_eigenvalue_is_no_alarm():
    for value in (0.0, 1e6):
        same = np.full(50, value)
        figure = draw_health(replace(made(50), eigenvalue=same, mean=same, alarm=1.3 * same))
        assert not any(map(len, dots(panels(figure)["Eigenvalue"], ORANGE)))
        low, high = panels(figure)["Eigenvalue"].get_ylim()
        assert low < value < high


def test_one_spike_does_not_flatten_the_eigenvalue():
    spiky = np.where(np.arange(40) == 20, 90.0, 0.1)
    figure = draw_health(replace(made(40), eigenvalue=spiky, mean=np.full(40, 0.1)))
    assert_readable(figure)
    assert panels(figure)["Eigenvalue"].get_yscale() == "log"
    assert {"1", "10", "mean 0.1"} <= set(texts(figure))
    assert panels(draw_health(made(40)))["Eigenvalue"].get_yscale() == "linear"


@pytest.mark.parametrize("size", [1.2345e-4, 1.2345e30])
def test_eigenvalues_of_any_size_are_readable(size):
    assert_readable(draw_health(replace(made(200), eigenvalue=np.linspace(0.3, 1, 200) * size)))


# Roll-backs and events


def test_returns_are_marked_in_every_panel():
    events = [(17, "back to epoch 11"), (4, "a stage"), (11, "back to epoch 8")]
    figure = draw_health(made(BACK, events=events))
    assert_readable(figure)
    for axes in panels(figure).values():
        assert rules(axes) == [[12.5, 18.5], [5.5]]
        assert bands(axes) == [(8.5, 12.5), (15.5, 18.5)]
    assert tags(figure) == {name: ["1", "2", "3"] for name in TITLES}
    shown = texts(figure)
    assert shown.index("a stage") < shown.index("back to epoch 8") < shown.index("back to epoch 11")
    assert {"record 5, epoch 5", "record 12, epoch 12", "record 18, epoch 14"} <= set(shown)
    assert {"the search went back", "undone epochs", "other event"} <= set(shown)


def test_lines_are_broken_where_the_search_went_back():
    (line,) = (
        ln for ln in panels(draw_health(made(BACK)))["Entropy"].lines if len(ln.get_xdata()) > len(BACK)
    )
    x, y = line.get_data()
    assert x[np.isnan(y)].tolist() == [12.5, 18.5]


def test_a_return_without_an_event_is_told_all_the_same():
    figure = draw_health(made(BACK, events=[(17, "the second")]))
    assert {"epoch 12 was followed by epoch 9", "the second"} <= set(texts(figure))
    assert "epoch 14 was followed by epoch 12" not in texts(figure)
    assert tags(figure)["Entropy"] == ["1", "2"]


def test_a_repeated_epoch_is_a_return():
    figure = draw_health(made((1, 2, 2, 3)))
    assert rules(panels(figure)["Accuracy"]) == [[2.5], []]
    assert bands(panels(figure)["Accuracy"]) == [(1.5, 2.5)]


def test_events_at_one_record_share_a_rule():
    figure = draw_health(made(20, events=[(9, "a"), (9, "b"), (9, "c"), (19, "the end")]))
    assert tags(figure)["Skip share"] == ["1–3", "4"]
    assert rules(panels(figure)["Skip share"]) == [[], [10.5, 20.5]]


def test_a_search_without_events_explains_none():
    figure = draw_health(made(20))
    assert not set(texts(figure)) & {"the search went back", "undone epochs", "other event", "1"}
    assert rules(panels(figure)["Entropy"]) == [[], []]


@pytest.mark.parametrize(("count", "more"), [(8, None), (60, "and 52 more")])
def test_only_so_many_events_are_listed(count, more):
    figure = draw_health(made(60, events=[(i, f"event {i}") for i in range(count)]))
    assert_readable(figure)
    listed = [text for text in texts(figure) if text.startswith("event ")]
    assert listed == [f"event {i}" for i in range(8)]
    assert [text for text in texts(figure) if text.startswith("and ")] == ([more] if more else [])


def test_numbers_of_returns_come_first_where_there_is_no_room():
    figure = draw_health(made((*range(1, 78), *range(70, 93)), events=[(i, "x") for i in range(100)]))
    assert_readable(figure)
    found = tags(figure)["Entropy"]
    assert "77" in found and 5 < len(found) < 20


# What is missing


def empty(series, *names):
    return replace(series, **{name: np.full(len(series.epochs), NAN) for name in names})


def test_panels_say_that_nothing_was_measured():
    figure = draw_health(empty(made(BACK), "entropy", "eigenvalue", "mean", "alarm"))
    assert_readable(figure)
    assert texts(figure).count("not measured") == 2
    for title in ("Entropy", "Eigenvalue"):
        axes = panels(figure)[title]
        assert [text.get_text() for text in axes.texts] == ["not measured"]
        assert not axes.lines and not len(axes.get_yticks())
        assert rules(axes) == [[12.5, 18.5], []]


def test_skip_shares_may_be_missing():
    figure = draw_health(replace(made(9), skip_shares={"normal": np.full(9, NAN)}))
    assert "not measured" in [text.get_text() for text in panels(figure)["Skip share"].texts]
    half = replace(made(9), skip_shares={"normal": np.full(9, NAN), "reduce": np.full(9, 0.5)})
    shown = texts(draw_health(half))
    assert "reduce 0.50" in shown and "not measured" not in shown


def test_the_supernet_is_drawn_without_a_gap():
    series = empty(made(9), "gap")
    figure = draw_health(series)
    assert np.array_equal(heights(panels(figure)["Accuracy"], BLUE), series.supernet_acc)
    assert "discretised not measured" in texts(figure)
    figure = draw_health(empty(made(9), "supernet_acc"))
    assert "not measured" in [text.get_text() for text in panels(figure)["Accuracy"].texts]


def test_nothing_measured_at_all():
    series = empty(made(30), "entropy", "eigenvalue", "mean", "alarm", "matching", "gap", "supernet_acc")
    figure = draw_health(replace(series, skip_shares={}))
    assert_readable(figure)
    assert texts(figure).count("not measured") == 5


def test_a_value_between_gaps_is_a_dot():
    entropy = np.asarray([NAN, 0.5, NAN, 0.25, 0.3, NAN])
    axes = panels(draw_health(replace(made(6), entropy=entropy)))["Entropy"]
    lonely, end = dots(axes, BLUE)
    assert lonely.tolist() == [[2, 0.5]] and end.tolist() == [[5, 0.3]]
    assert "last 0.30" in texts(axes.figure)


# Sizes and texts


@pytest.mark.parametrize("count", [1, 2, 500])
def test_any_number_of_records(count, tmp_path):
    events = [(i, f"event {i}") for i in range(0, count, 7)]
    figure = draw_health(made(count, events=events, kinds=("normal", "reduce", "a", "b", "c")), title="t")
    assert_readable(figure)
    for axes in panels(figure).values():
        assert axes.get_xlim() == (0.5, count + 0.5)
        assert all(float(tick).is_integer() for tick in axes.get_xticks())
    if count == 500:
        save(figure, tmp_path / "health.svg")
        assert (tmp_path / "health.svg").stat().st_size < 600_000


def test_no_record_at_all():
    for title in ("", "Health"):
        figure = draw_health(made(0), title=title)
        assert_readable(figure)
        assert "nothing was recorded" in texts(figure) and len(figure.axes) == 1


@pytest.mark.parametrize(("value", "count"), [(0, 30), (1, 1)])
def test_constant_series(value, count):
    level = np.full(count, float(value))
    series = HealthSeries(np.full(count, value), {"": level}, *[level] * 7, level.astype(int))
    figure = draw_health(series)
    assert_readable(figure)
    assert heights(panels(figure)["Entropy"], BLUE).tolist() == level.tolist()


@pytest.mark.parametrize(("title", "kinds"), [(HOSTILE[0], HOSTILE), (HOSTILE[1], HOSTILE[1:3])])
def test_hostile_texts_stay_plain(title, kinds, tmp_path):
    events = [(3, text) for text in HOSTILE] + [(11, title)]
    figure = draw_health(made(BACK, kinds=kinds, events=events), title=title)
    assert_readable(figure)
    assert not [shown for shown in texts(figure) if "\n" in shown or "\x00" in shown]
    save(figure, tmp_path / "health.svg")
    tags = {element.tag.rpartition("}")[2] for element in ET.parse(tmp_path / "health.svg").iter()}
    assert "script" not in tags


def test_captions_fit_and_are_muted():
    figure = draw_health(made(9))
    captions = [t for t in figure.axes[0].texts if "; " in t.get_text()]
    assert len(captions) == 5
    for caption in captions:
        assert text_size(caption.get_text(), caption.get_fontsize())[0] < 3.1
        assert caption.get_color() == "#667380"


# Errors


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"epochs": np.ones((2, 2), int)}, r"epochs of shape \(2, 2\), wanted \[T\]"),
        ({"epochs": np.asarray([1.0, 2.0, 3.0])}, "epochs of float64 from 1, wanted integers"),
        ({"epochs": np.asarray([0, -1, 2])}, "epochs of int64 from -1, wanted integers"),
        ({"entropy": np.zeros(4)}, r"entropy of shape \(4,\), wanted \(3,\) like epochs"),
        (
            {"entropy": np.asarray([0.0, 0.5, 1.1])},
            r"entropy from 0 to 1.1, wanted numbers in \[0, 1\], or NaN",
        ),
        ({"skip_shares": {"normal": np.full(3, -0.5)}}, r"skip_shares\['normal'\] from -0.5 to -0.5, wanted"),
        ({"skip_shares": {"normal": np.zeros(2)}}, r"skip_shares\['normal'\] of shape \(2,\)"),
        ({"eigenvalue": np.asarray([0.1, NAN, -2.0])}, "eigenvalue from -2 to 0.1, wanted .* at least 0"),
        ({"eigenvalue": np.asarray([0.1, NAN, np.inf])}, "eigenvalue from 0.1 to inf, wanted numbers finite"),
        ({"matching": np.full(3, 1.5)}, r"matching from 1.5 to 1.5, wanted numbers in \[-1, 1\]"),
        ({"gap": np.full(3, -1.5)}, r"gap from -1.5 to -1.5, wanted numbers in \[-1, 1\]"),
        ({"supernet_acc": np.full(3, 90.0)}, r"supernet_acc from 90 to 90, wanted numbers in \[0, 1\]"),
        ({"changes": np.zeros(2, int)}, r"changes of shape \(2,\), wanted \(3,\)"),
        ({"changes": np.asarray([0, -1, 0])}, "changes of int64 from -1, wanted integers of at least 0"),
        ({"events": [(3, "late")]}, "event 'late' at record 3, wanted one of the 3 records"),
        ({"events": [(-1, "early")]}, "event 'early' at record -1, wanted one of the 3 records"),
    ],
)
def test_a_series_that_does_not_fit_is_refused(columns, named):
    with pytest.raises(ConfigError, match=f"health: got (the )?{named}"):
        draw_health(replace(made(3), **columns))


def test_rounding_is_no_error():
    draw_health(replace(made(3), matching=np.full(3, 1 + 1e-7), entropy=np.full(3, -1e-9)))
