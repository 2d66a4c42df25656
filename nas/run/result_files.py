"""The files of a finished run: weights, metrics, architecture, Pareto front, pictures and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nas.files.atomic import write_json
from nas.files.folder import write_manifest
from nas.files.schemas import EpochRecord
from nas.results.result import ARCHITECTURE, Alphas, Result, describe_architecture, write_graphml
from nas.searchers.goals import longest
from nas.space.graph import Graph, skeleton
from nas.training.checkpoint import save_tensors


def write_result(
    result: Result,
    *,
    image_shape: Sequence[int],
    title: str,
    alphas: Alphas | None = None,
    epochs: Sequence[Mapping[str, Any]] = (),
    pictures: bool = True,
) -> None:
    """Writes every file of a finished run, pictures and report where wanted; the manifest is last.

    epochs: of a differentiable search, the fields of an `EpochRecord` of each, and what else was measured.
    """
    folder, space, genotype = result.folder, result.space, result.genotype
    save_tensors(folder / "model.safetensors", dict(result.network.state_dict()), {"space": space.name})
    write_json(folder / "metrics.json", dict(result.metrics))
    write_json(folder / ARCHITECTURE, describe_architecture(space, genotype, result.metrics))
    write_graphml(folder / "architecture.graphml", result.graph)
    if len(result.goals.objectives) > 1:
        write_front(result, title=title, pictures=pictures)
    if alphas is not None:
        alphas.write(folder)
    if epochs:
        write_json(folder / "health.json", {"epochs": [dict(epoch) for epoch in epochs]})
    if pictures:
        from nas.show.report import REPORT, write_report  # and matplotlib, which workers can do without

        _draw(result, image_shape, title)
        _draw_search_by_gradients(folder, alphas, epochs, title)
        write_report([folder], folder / REPORT, space=space)
    write_manifest(folder)


def _draw(result: Result, image_shape: Sequence[int], title: str) -> None:
    from nas.show import draw

    folder, space, genotype = result.folder, result.space, result.genotype
    draw_architecture(folder, result.graphs, title=title)
    outline = skeleton(space.network(genotype, meta=True), image_shape)
    draw.save(draw.draw_network(outline, title=title), folder / "network.svg", folder / "network.png")
    if result.history:
        first = result.goals.objectives[0]
        figure = draw.draw_search(
            [*map(first.with_value, result.history)],
            metric=first.name,
            maximize=first.maximize,
            title=f"Search: {title}",
            baselines={name: [*map(first.with_value, trials)] for name, trials in result.baselines.items()},
            broken=result.goals.broken_by(result.history),
            epochs=result.by_gradients,
        )
        draw.save(figure, folder / "search.svg", folder / "search.png")


def _draw_search_by_gradients(
    folder: Path, alphas: Alphas | None, epochs: Sequence[Mapping[str, Any]], title: str
) -> None:
    """alphas.svg and health.svg, and the same as PNG."""
    from nas.show import draw

    if alphas is not None:
        figure = draw.draw_alphas(
            alphas.strengths,
            decisions=alphas.decisions,
            options=alphas.options,
            title="Strength of every operation over the search",
        )
        draw.save(figure, folder / "alphas.svg", folder / "alphas.png")
    if epochs:
        records = [EpochRecord.model_construct(**epoch) for epoch in epochs]
        heading = f"Health of the search: {title}"
        draw.save(draw.draw_diagnostics(records, title=heading), folder / "health.svg", folder / "health.png")


def write_front(result: Result, *, title: str, pictures: bool = True) -> None:
    """front.json, and with two objectives and pictures front.svg and front.png.

    The picture shows what can be on the front: trials of the longest training that keep all constraints.
    """
    goals, best = result.goals, result.front
    write_json(
        result.folder / "front.json",
        {
            "goals": goals.to_dict(),
            "front": [
                {
                    "trial": trial.number,
                    "genotype": list(map(int, trial.genotype)),
                    "choices": result.space.choices(trial.genotype),
                    "metrics": dict(trial.metrics),
                }
                for trial in best
            ],
        },
    )
    if len(goals.objectives) != 2 or not pictures:
        return
    from nas.show import draw

    first, second = goals.objectives
    allowed = longest(result.history, goals)
    figure = draw.draw_pareto_front(
        np.array([[first.value(t.metrics), second.value(t.metrics)] for t in allowed]).reshape(-1, 2),
        names=(first.name, second.name),
        maximize=(first.maximize, second.maximize),
        chosen=[i for i, t in enumerate(allowed) if t.genotype == result.genotype][:1],
        title=f"Pareto front: {title}",
        subtitle=f"{len(best)} of {len(allowed)} architectures are on it",
    )
    draw.save(figure, result.folder / "front.svg", result.folder / "front.png")


def draw_architecture(folder: Path, graphs: Mapping[str, Graph], *, title: str) -> None:
    """cells.svg and cells.png."""
    from nas.show import draw

    draw.save(draw.draw_cells(graphs, title=title), folder / "cells.svg", folder / "cells.png")
