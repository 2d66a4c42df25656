"""Differentiable searches: how the alphas moved, and the diagnostics by which a collapse is seen coming."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, isfinite, sqrt

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from numpy.typing import NDArray

from nas.errors import ConfigError
from nas.files.schemas import EpochRecord
from nas.show.draw.style import (
    HAIR,
    INK,
    MUTED,
    PAPER,
    SERIES,
    Column,
    Look,
    clean,
    finish,
    fit,
    key,
    nothing_recorded,
    palette,
    plot,
    set_dash,
    shade,
    styled,
    tidy_ticks,
    tint,
    write,
)

Floats = NDArray[np.floating]
Options = Sequence[str] | Sequence[Sequence[str]]

_PANEL = (1.6, 1.15)
"""Inches of one panel of alphas."""
_VERTICES = 5000
_CELL = (0.66, 0.34)


def _panels(
    rows: int, columns: int, *, size: tuple[float, float], gaps: tuple[float, float]
) -> tuple[Figure, list[Axes]]:
    """Axes of this size with these gaps, in inches, row by row."""
    (width, height), (across, down) = size, gaps
    figure = Figure(figsize=(columns * (width + across) - across, rows * (height + down) - down))
    full = {"left": 0.0, "right": 1.0, "bottom": 0.0, "top": 1.0}
    spaces = {"wspace": across / width, "hspace": down / height}
    return figure, list(figure.subplots(rows, columns, squeeze=False, gridspec_kw=full | spaces).flat)


@styled
def draw_alphas(strengths: Floats, *, decisions: Sequence[str], options: Options, title: str = "") -> Figure:
    """Draws how strong every option was after every epoch: one panel per decision, one line per option.

    strengths: [T, E, O] in [0, 1], the mixture weights (not the raw alphas); a row of a decision with fewer
    than O options is read up to its length. options: common to all decisions, or one sequence for each.
    The strongest option of the last epoch is marked and named; the dotted rule is the uniform mixture.
    """
    names = _names(strengths, decisions, options, axes=3)
    if not decisions or not len(strengths):
        return nothing_recorded(title)
    looks = palette(name for row in names for name in row)
    columns = min(7, ceil(sqrt(1.5 * len(decisions))))
    figure, panels = _panels(ceil(len(decisions) / columns), columns, size=_PANEL, gaps=(0.4, 0.75))
    peak = min(1.0, ceil(round(10 * float(np.nanmax(strengths, initial=0.1)), 3)) / 10)
    # Few enough points a line that a whole page of panels stays a small file.
    points = max(8, _VERTICES // sum(map(len, names)))
    for i, axes in enumerate(panels):
        if i >= len(decisions):
            axes.remove()
            continue
        axes.set(ylim=(0, peak), yticks=[0, peak / 2, peak])
        axes.tick_params(labelleft=i % columns == 0, labelbottom=i + columns >= len(decisions))
        axes.set_title(fit(clean(decisions[i]), 10, _PANEL[0], bold=True), fontsize=10, y=1, pad=18)
        own = [looks[name] for name in names[i]]
        winner = _draw_options(axes, strengths[:, i, : len(own)], own, points=points)
        if winner is not None:
            text, color = fit(clean(winner.label), 9.5, _PANEL[0]), shade(winner.color, 0.25)
            axes.annotate(text, (0, 1), (0, 5), "axes fraction", "offset points", color=color, fontsize=9.5)
    panels[-columns].set_xlabel("epoch")
    keys = [key(name, look.color, dash=look.dash) for name, look in looks.items()]
    return finish(figure, title=title, keys=keys)


def _draw_options(axes: Axes, strengths: Floats, looks: Sequence[Look], *, points: int) -> Look | None:
    """Draws one decision, [T, O], the winner on top; returns the winner's look, None without a number."""
    epochs = np.arange(1, len(strengths) + 1)
    best = _strongest(strengths[-1])
    kept = np.unique(np.linspace(0, len(epochs) - 1, points).round().astype(int))
    marker = "o" if len(epochs) == 1 else ""  # of a single epoch there is no line to see
    axes.axhline(1 / max(len(looks), 1), color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
    for option, look in enumerate(looks):
        (line,) = axes.plot(epochs[kept], strengths[kept, option], color=look.color, marker=marker)
        if option == best:
            line.set(linewidth=2.6, zorder=4)
        else:
            line.set(linewidth=1.2, alpha=0.8, zorder=3, markersize=4)
            set_dash(line, look.dash)
    pad = 0.04 * max(len(epochs) - 1, 1)
    axes.set_xlim(1 - pad / 2, len(epochs) + 2 * pad)
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=1))
    if best is None:
        return None
    (end,) = axes.plot(epochs[-1:], strengths[-1:, best], "o", color=looks[best].color, zorder=5)
    end.set(markeredgecolor=PAPER, clip_on=False)
    return looks[best]


def _strongest(values: Floats) -> int | None:
    """The option with the largest of [O] numbers, None where none is a number."""
    known = np.where(np.isfinite(values), values, -1.0)
    return int(known.argmax()) if len(known) and known.max() >= 0 else None


@styled
def draw_alpha_heatmap(
    strengths: Floats, decisions: Sequence[str], options: Options, *, title: str = ""
) -> Figure:
    """Draws the strengths of one moment as a table: a row per decision, a column per option.

    strengths: [E, O] in [0, 1]; options as for `draw_alphas`. A decision's own options are put under their
    names; what it does not offer stays blank. The strongest option of every row is outlined.
    """
    names = _names(strengths, decisions, options, axes=2)
    looks = palette(name for row in names for name in row)
    if not looks:
        return nothing_recorded(title)
    columns = {name: i for i, name in enumerate(looks)}
    table = np.full((len(decisions), len(columns)), np.nan)
    for row, own in enumerate(names):
        table[row, [columns[name] for name in own]] = strengths[row, : len(own)]
    peak = float(np.nanmax(table, initial=1e-9))
    figure, axes = plot(len(columns) * _CELL[0], len(decisions) * _CELL[1])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    colors = LinearSegmentedColormap.from_list("strength", [tint(SERIES[0], 1.0), tint(SERIES[0], 0.08)])
    cells = axes.pcolormesh(np.ma.masked_invalid(table), cmap=colors, vmin=0, vmax=peak)
    cells.set(edgecolor=HAIR, linewidth=0.6)
    axes.invert_yaxis()
    axes.xaxis.tick_top()
    axes.set_xticks(np.arange(len(columns)) + 0.5, [clean(name) or "?" for name in columns])
    axes.set_yticks(np.arange(len(decisions)) + 0.5, [clean(name) for name in decisions])
    for label, look in zip(axes.get_xticklabels(), looks.values(), strict=True):
        label.set(color=shade(look.color, 0.25), rotation=38, ha="left", rotation_mode="anchor")
    axes.tick_params(labelsize=10.5)
    axes.tick_params(axis="y", labelcolor=INK)
    for row, own in enumerate(names):
        best = _strongest(strengths[row, : len(own)])
        for option, name in enumerate(own):
            value, x = float(table[row, columns[name]]), columns[name]
            text = f"{value:.2f}" if isfinite(value) else "–"
            color = PAPER if value > 0.66 * peak else INK
            write(axes, x + 0.5, row + 0.5, text, size=9.5, color=color, bold=option == best)
            if option == best:
                frame = Rectangle((x, row), 1, 1, fill=False, edgecolor=INK, linewidth=2, clip_on=False)
                axes.add_patch(frame)
    return finish(figure, title=title)


def _names(strengths: Floats, decisions: Sequence[str], options: Options, *, axes: int) -> list[list[str]]:
    """The option names of every decision, after checking that everything fits together."""
    common = all(isinstance(option, str) for option in options)
    names = [list(map(str, options))] * len(decisions) if common else [list(map(str, own)) for own in options]
    most = max(map(len, names), default=0)
    shape = strengths.shape
    if len(shape) != axes or shape[-2] != len(decisions) or len(names) != len(decisions) or most > shape[-1]:
        raise ConfigError(
            f"alphas: got shape {shape} and {len(names)} lists of up to {most} options, wanted {axes} axes, "
            f"the last two {len(decisions)} decisions and their options"
        )
    finite = strengths[np.isfinite(strengths)]
    if finite.size and (finite.min() < -1e-6 or finite.max() > 1 + 1e-6):
        raise ConfigError(
            f"alphas: got strengths from {finite.min():.3g} to {finite.max():.3g}, "
            "wanted mixture weights in [0, 1]; apply the search's relaxation (such as softmax) first"
        )
    return names


# -- diagnostics --------------------------------------------------------------------------------------

BAD = SERIES[1]
_HUES = (SERIES[0], SERIES[3], SERIES[4])
"""Kinds of cell; what is bad has a colour of its own."""
_DASHED = (3.2, 1.6)
_MANY = 150
"""Records above which single ones cannot be told apart."""
_LISTED, _LINE = 8, 17
"""Events that are listed, and points of a line."""


@styled
def draw_diagnostics(epochs: Sequence[EpochRecord], *, title: str = "") -> Figure:
    """Draws six panels over the number of the record, and lists what happened.

    epochs: a record of each epoch in the order of training, undone ones included; NaN is unmeasured. One that
        is not further than the last shows that the search went back.
    What is bad is orange. Rules stand where something happened, solid ones where the search went back; the
    epochs that it undid lie on grey.
    """
    if not epochs:
        return nothing_recorded(title)
    where = np.asarray([record.epoch for record in epochs])
    backs = np.flatnonzero(np.diff(where) <= 0) + 1
    events = _events(epochs, backs.tolist())
    figure, panels = _panels(2, 3, size=(3.2, 1.3), gaps=(0.55, 1.15))
    for axes, (name, caption, lines_of) in zip(panels, _PANELS, strict=True):
        axes.set_title(name, y=1, pad=36)
        axes.annotate(caption, (0, 1), (0, 23), "axes fraction", "offset points", color=MUTED, fontsize=9.5)
        axes.set_xlim(0.5, len(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        _draw_lines(axes, lines_of(axes, epochs), backs)
        _mark(axes, where, backs, [index for index, _ in events])
    panels[4].set_xlabel("record, one for every epoch in the order of training")
    listed = [f"record {i + 1}, epoch {where[i]}:   {clean(text, limit=100)}" for i, text in events]
    if len(listed) > _LISTED:
        listed[_LISTED:] = [f"and {len(listed) - _LISTED} more"]
    for place, line in enumerate(listed):
        below = (0, -62 - _LINE * place)
        panels[3].annotate(fit(line, 10, 10.5), (0, 0), below, "axes fraction", "offset points", fontsize=10)
    keys = [key("a bad sign", tint(BAD, 0.65), marker="s")]
    if len(backs):
        keys += [key("the search went back", INK), key("undone epochs", tint(MUTED, 0.8), marker="s")]
    if {index + 1 for index, _ in events} - set(backs.tolist()):
        keys.append(key("other event", MUTED, dash=(1.0, 1.4)))
    return finish(figure, title=title, keys=keys)


def _events(epochs: Sequence[EpochRecord], backs: Sequence[int]) -> list[tuple[int, str]]:
    """Every event by the index of its record, and every return to an earlier epoch that none tells of."""
    found = [(i, event) for i, record in enumerate(epochs) for event in record.events]
    silent = {back - 1 for back in backs} - {index for index, _ in found}
    told = [(i, f"epoch {epochs[i].epoch} was followed by epoch {epochs[i + 1].epoch}") for i in silent]
    return sorted([*found, *told], key=lambda event: event[0])


def _mark(axes: Axes, where: NDArray[np.int64], backs: NDArray[np.int64], events: Sequence[int]) -> None:
    """What was undone, and where something happened."""
    least = np.minimum.accumulate(where[::-1])[::-1]
    undone = np.append(where[:-1] >= least[1:], False)
    for start, end in np.flatnonzero(np.diff(undone, prepend=False)).reshape(-1, 2):
        axes.axvspan(start + 0.5, end + 0.5, color=MUTED, alpha=0.2, linewidth=0, zorder=0.6)
    for back, color, dash in ((True, INK, "solid"), (False, MUTED, "dotted")):
        places = sorted({index + 1.5 for index in events if (index + 1 in backs) == back})
        rules = axes.vlines(places, 0, 1, color=color, linewidth=0.9, linestyle=dash, zorder=2)
        rules.set_transform(axes.get_xaxis_transform())


@dataclass(frozen=True, slots=True)
class _Line:
    """What was measured at each record, [T], NaN where it was not; its label ends with the last value."""

    name: str
    values: Column
    color: str
    width: float = 1.8
    dash: tuple[float, ...] = ()

    @property
    def label(self) -> str:
        known = self.values[np.isfinite(self.values)]
        last = f"{known[-1]:z.3g}".replace("-", "−") if len(known) else "not measured"
        return f"{self.name} {last}" if self.name else ""


def _draw_lines(axes: Axes, lines: Sequence[_Line], backs: NDArray[np.int64]) -> None:
    """Lines with a gap wherever the search went back, and what they are above them."""
    if not any(np.isfinite(line.values).any() for line in lines):
        axes.set_yticks([])
        note = write(axes, 0.5, 0.5, "not measured", size=11, color=MUTED)
        note.set(transform=axes.transAxes, bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 2.0})
        return
    for line in lines:
        many = len(line.values) > _MANY
        known = np.flatnonzero(np.isfinite(line.values))
        gaps = np.searchsorted(known, backs)
        x = np.insert(known + 1.0, gaps, backs + 0.5)
        (drawn,) = axes.plot(x, np.insert(line.values[known], gaps, np.nan), color=line.color, zorder=3)
        drawn.set(linewidth=0.6 * line.width if many else line.width, markersize=1.4 * line.width)
        drawn.set_marker("" if many else "o")
        set_dash(drawn, line.dash)
    axes.legend(
        handles=[key(line.label, line.color, dash=line.dash, limit=30) for line in lines if line.name],
        ncols=len(lines),
        loc="lower left",
        bbox_to_anchor=(0, 1.02),
        fontsize=9.5,
        handlelength=1.5,
        handletextpad=0.4,
        columnspacing=1.2,
        labelcolor="linecolor",
    )


def _column(epochs: Sequence[EpochRecord], name: str) -> Column:
    return np.asarray([getattr(record, name) for record in epochs], dtype=np.float64)


def _skips(axes: Axes, epochs: Sequence[EpochRecord]) -> list[_Line]:
    """The share of every kind of cell, the largest three named; the kind outside cells is empty."""
    axes.set(ylim=(-0.03, 1.05), yticks=[0, 0.5, 1])
    axes.axhspan(0.5, 1.05, color=tint(BAD, 0.9), linewidth=0, zorder=0.5)
    kinds = dict.fromkeys(kind for record in epochs for kind in record.skip_shares)
    shares = {k: np.asarray([r.skip_shares.get(k, np.nan) for r in epochs]) for k in kinds}
    ranked = sorted(shares, key=lambda kind: -np.nan_to_num(shares[kind][-1]))
    named = [fit(clean(kind) or "?", 9.5, 0.6) if kind else "outside" for kind in ranked[:3]]
    # Shares are often equal; a thin dashed line shows the thick one below it.
    looks = zip(_HUES, (2.6, 1.6, 1.6), ((), _DASHED, _DASHED), strict=True)
    rest = [_Line("", shares[kind], SERIES[7], 1.0) for kind in ranked[3:]]
    return [
        *(_Line(n, shares[k], *look) for n, k, look in zip(named, ranked, looks, strict=False)),
        *rest,
    ]


def _entropy(axes: Axes, epochs: Sequence[EpochRecord]) -> list[_Line]:
    axes.set(ylim=(-0.03, 1.05), yticks=[0, 0.5, 1])
    return [_Line("last", _column(epochs, "alpha_entropy"), SERIES[0])]


def _eigenvalue(axes: Axes, epochs: Sequence[EpochRecord]) -> list[_Line]:
    """The dominant eigenvalue, its running mean, and the level above which that is alarming."""
    values, mean, alarm = (
        np.abs(_column(epochs, name)) for name in ("eigenvalue", "eigenvalue_mean", "eigenvalue_alarm")
    )
    known = np.concatenate([values, alarm])
    known = known[known > 0]
    top = float(known.max(initial=0.0)) or 1.0
    axes.set_ylim(-0.04 * top, 1.08 * top)
    tidy_ticks(axes, most=4)
    if len(known) and top > 30 * float(np.median(known)):  # a few would flatten the rest
        axes.set(yscale="log", ylim=(max(0.7 * float(known.min()), 1e-6 * top), 1.5 * top))
        axes.yaxis.set_major_locator(LogLocator(numticks=4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(LogLocator(subs=()))
    found = [_Line("last", values, tint(SERIES[0], 0.5), 1.0)]
    found += [_Line("mean", mean, SERIES[0])] * bool(np.isfinite(mean).any())
    return found + [_Line("alarm at", alarm, BAD, 1.2, _DASHED)] * bool(np.isfinite(alarm).any())


def _matching(axes: Axes, epochs: Sequence[EpochRecord]) -> list[_Line]:
    values = _column(epochs, "gradient_matching")
    reach = 0.25 if np.nanmax(np.abs(values), initial=0.0) <= 0.25 else 1.0
    axes.set(ylim=(-1.05 * reach, 1.05 * reach), yticks=[-reach, 0, reach])
    axes.axhspan(-1.05 * reach, 0, color=tint(BAD, 0.9), linewidth=0, zorder=0.5)
    return [_Line("last", values, SERIES[0])]


def _score(axes: Axes, epochs: Sequence[EpochRecord]) -> list[_Line]:
    """The supernet and its discretised architecture; orange between them is what discretising costs."""
    whole = _column(epochs, "val_score")
    alone = whole - _column(epochs, "discretisation_gap")
    shown = np.nan_to_num([*whole, *alone])
    top = next((top for top in (0.1, 0.2, 0.5, 1.0) if shown.max() <= top), float(shown.max()))
    axes.set(ylim=(min(0.0, shown.min()) - 0.03 * top, 1.05 * top), yticks=[0, top / 2, top])
    axes.fill_between(np.arange(1, len(whole) + 1), whole, alone, color=BAD, alpha=0.2, linewidth=0)
    return [_Line("supernet", whole, SERIES[0]), _Line("discretised", alone, SERIES[2])]


def _changes(axes: Axes, epochs: Sequence[EpochRecord]) -> list[_Line]:
    changes = _column(epochs, "changes")
    axes.set_ylim(-0.04 * max(changes.max(), 1), 1.08 * max(changes.max(), 1))
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=1))
    return [_Line(f"{changes.sum():.0f} in all, last", changes, SERIES[0])]


_PANELS: Sequence[tuple[str, str, Callable[[Axes, Sequence[EpochRecord]], list[_Line]]]] = (
    ("Skip share", "share of identities; near 1 is a collapse", _skips),
    ("Entropy", "1 is undecided; should end near 0", _entropy),
    ("Eigenvalue", "curvature in the alphas; growth is a warning", _eigenvalue),
    ("Gradient matching", "training with validation; below 0 they oppose", _matching),
    ("Validation score", "orange is what discretising costs", _score),
    ("Genotype changes", "decisions that changed; should settle at 0", _changes),
)
"""Title and caption of each panel, and what sets its limits and returns its lines."""
