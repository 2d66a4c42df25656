"""What happened inside a search by gradients: strengths of operations, and its health."""

from __future__ import annotations

from nas.show import draw
from nas.files.schemas import EpochRecord
from nas.show.draw.diagnostics_series import series_of
from nas.show.report.run import Run
from nas.show.report.section import Drawing, Section, inline, stored


def alphas(run: Run) -> Section | None:
    """How strong every operation was at the end, and on the way there."""
    reading = (
        "Every decision's row holds the strength (the mixture weight that its alphas give) of each operation "
        "after the last epoch, from 0 to 1; outlined is the strongest. Rows without a clear favourite "
        "are close decisions. The panels show the same over the epochs; dotted is an even mixture."
    )
    drawings = _alphas(run) or stored(run.folder, "alphas.svg", "strengths over the search")
    return Section("alphas", "Alphas", reading, drawings=drawings) if drawings else None


def _alphas(run: Run) -> list[Drawing]:
    found = run.alphas
    if found is None or not len(found.strengths):
        return []
    names, options = found.decisions, found.options
    heat = draw.draw_alpha_heatmap(found.strengths[-1], names, options)
    panels = draw.draw_alphas(found.strengths, decisions=names, options=options)
    return [
        Drawing(label, label, svg=inline(figure, name=name, label=label), wide=True)
        for name, figure, label in (
            ("heat", heat, "heat map of the strengths after the last epoch"),
            ("strengths", panels, "strengths over the search, a panel for each decision"),
        )
    ]


def health(run: Run) -> Section | None:
    """The signs of a collapse, epoch by epoch."""
    rows = run.health or _from_trials(run)
    if not rows:
        return None
    figure = draw.draw_health(series_of(rows))
    label = "health of the search by epoch"
    return Section(
        "health",
        "Health of the search",
        "Signs of a collapse: a growing share of identities (skip connections), a dominant eigenvalue of the "
        "validation loss's Hessian that leaves its band, and a gap between the supernet and the network that "
        "it prefers. An entropy near 1 means that the alphas are undecided.",
        drawings=[Drawing(label, label, svg=inline(figure, name="health", label=label), wide=True)],
        template="events",
        values={"events": [(row.epoch, event) for row in rows for event in row.events]},
    )


def _from_trials(run: Run) -> list[EpochRecord]:
    """The same of a search that has not ended, in which each epoch is a trial."""
    if not run.is_by_gradients:
        return []
    return [
        EpochRecord.model_validate(
            {
                **trial.metrics,
                "epoch": place + 1,
                "skip_shares": {"all cells": trial.metrics.get("skip_share", 0.0)},
                "events": [],
            }
        )
        for place, trial in enumerate(run.search.done)
    ]
