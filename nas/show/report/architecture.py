"""The found architecture, and how what the search preferred became it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache

from markupsafe import Markup

from nas.errors import NasError
from nas.show import draw
from nas.show.draw.layout import effort
from nas.show.report.run import Run
from nas.show.report.section import Drawing, Section, inline, metric, stored
from nas.space.graph import Graph, from_dict, to_dict
from nas.space.macro_graph import skeleton
from nas.types import Genotype, Trial

MOST_FRAMES = 40
_FRAMES_BYTES = 1_000_000
_FRAMES_EFFORT = 2_000_000
"""Of `nas.show.draw.layout.effort` for all frames: about twenty seconds on one core."""
_ID = "cell-id"


def cells(graphs: Mapping[str, Graph], name: str) -> list[Drawing]:
    """Each kind of cell as a drawing of its own, so that they can stand below each other.

    Plain values, which all of them have, stand in the first.
    """
    drawings = []
    for place, (kind, graph) in enumerate(graphs.items()):
        data = to_dict(graph) | ({"values": {}} if place else {})
        svg = Markup(_cell(json.dumps(data)).replace(_ID, f"{name}-{place}"))  # nosec B704
        drawings.append(Drawing(kind, svg=svg))
    return drawings


@lru_cache(maxsize=256)
def _cell(text: str) -> str:
    """A cell as SVG, kept for a page that is made again and again while a search goes on."""
    graph = from_dict(json.loads(text))
    kind = str(graph.graph["kind"])
    return str(inline(draw.draw_cells({kind: graph}), name=_ID, label=f"the cell {kind}"))


def found(run: Run) -> Section | None:
    """The cells of the result."""
    if not run.graphs:
        return None
    return Section(
        "cells",
        "Found cells",
        "Boxes are feature maps, coloured edges the operations between them; data flow from left to right. "
        "Where operations stand on nodes, the boxes are coloured instead.",
        template="cells",
        drawings=cells(run.graphs, "found"),
        values={"text": (run.architecture or {}).get("notation") or ""},
    )


def network(run: Run) -> Section | None:
    """The whole network at its final size."""
    drawings = _skeleton(run) or stored(run.folder, "network.svg", "the whole network")
    reading = (
        "The blocks of the trained network from image to logits, with the shape of the map that leaves each: "
        "channels, height and width."
    )
    return Section("network", "Whole network", reading, drawings=drawings) if drawings else None


def _skeleton(run: Run) -> list[Drawing]:
    if run.architecture is None or run.final is None:
        return []
    try:
        genotype = run.final.genotype(run.architecture["choices"])
        outline = skeleton(run.final.network(genotype, meta=True), run.record["task"]["image_shape"])
    except NasError:  # the space has changed since
        return []
    svg = inline(draw.draw_network(outline), name="network", label="the whole network")
    return [Drawing("the whole network", svg=svg, wide=True)]


def evolving(run: Run) -> Section | None:
    """The preferred cell, epoch by epoch or improvement by improvement."""
    steps = _steps(run)
    frames = _frames(run, steps)
    if len(frames) < 2:
        return None
    what = (
        "the cell that the strengths of operations preferred after each epoch of the supernet"
        if run.is_by_gradients
        else "the best cell so far, at each trial that improved on it"
    )
    left = f" {len(steps)} steps are shown by {len(frames)} of them." if len(frames) < len(steps) else ""
    return Section(
        "evolving",
        "How the cell evolved",
        f"Move the slider, or use the arrow keys on it, to see {what}.{left}",
        template="evolving",
        values={"frames": frames},
    )


def incumbents(run: Run) -> list[Trial]:
    """The trials that were each better than all before them, by the first objective under the constraints."""
    goals, best = run.search.goals, None
    found = []
    for trial in run.search.longest:
        place = (-goals.violation(trial.metrics), goals.objectives[0].score(trial.metrics))
        if best is None or place > best:
            best = place
            found.append(trial)
    return found


def _steps(run: Run) -> list[Trial]:
    return run.search.done if run.is_by_gradients else incumbents(run)


def _frames(run: Run, steps: Sequence[Trial]) -> list[Mapping[str, object]]:
    """As many steps as the page has room for, the first and the last always among them."""
    frames: list[Mapping[str, object]] = []
    size, work, before = 0, 0, None
    for place in _spread(len(steps), MOST_FRAMES):
        trial = steps[place]
        graphs = run.cells(trial.genotype)
        work += sum(effort(graph) for graph in graphs.values())
        if work > _FRAMES_EFFORT:
            break
        drawings = cells(graphs, f"frame{place}")
        size += sum(len(drawing.svg) for drawing in drawings)
        if not drawings or (size > _FRAMES_BYTES and place != len(steps) - 1):
            continue
        objective = run.search.goals.objectives[0]
        value = metric(objective.name, objective.value(trial.metrics))
        label = f"{' '.join(run.called(trial))}: {objective.name} {value}{_changed(before, trial.genotype)}"
        frames.append({"label": label, "drawings": drawings})
        before = trial.genotype
    return frames


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly, with both ends."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def _changed(before: Genotype | None, now: Genotype) -> str:
    if before is None:
        return ""
    changes = sum(a != b for a, b in zip(before, now, strict=True))
    return f", {changes} decision{'s' * (changes != 1)} changed"
