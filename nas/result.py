"""What a job leaves behind, in memory and in its folder."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas import failures
from nas.arrays import Array
from nas.checkpoint import load_tensors, save_tensors
from nas.config import DIFFERENTIABLE
from nas.errors import ConfigError, SpaceError
from nas.files import (
    MANIFEST,
    check_manifest,
    damaged,
    read_json,
    replacing,
    require_intact,
    write_json,
    write_manifest,
)
from nas.goals import Goals
from nas.graph import Graph, architecture_hash, cell_graphs, from_dict, merged, to_dict
from nas.inputs import Inputs
from nas.paths import check_contents, exists, is_file
from nas.records import ArchitectureRecord, MetricsRecord, checked
from nas.registry import is_plugin, load
from nas.run_folder import read_run
from nas.skeleton import skeleton
from nas.space import Space
from nas.study import Study
from nas.text import shown
from nas.types import Genotype, Objective, Trial

BASELINES = ("random search at equal cost", "largest of these by MACs")
_READ = ("architecture.json", "baselines.json", "metrics.json", "model.safetensors", "run.json")
ARCHITECTURE = "architecture.json"
FORMAT = 1
"""Grows when the meaning of architecture.json changes."""
_log = logging.getLogger("nas")


@dataclass(frozen=True, eq=False)
class Result:
    """A finished job.

    space: at the size of `network`.
    genotype: the best architecture found; `graphs` are its cells, `graph` all of them in one.
    network: trained, in evaluation mode.
    metrics: see metrics.json; `test_acc` was measured once, on this network.
    history: the trials of the search; for a differentiable one, one for each epoch.
    inputs: how raw images are normalised, and the names of the classes.
    baselines: the trials of what the search was compared with, by name; a choice made without trials is one.
    goals: what the search was for.
    """

    space: Space
    genotype: Genotype
    graphs: Mapping[str, Graph]
    network: nn.Module
    metrics: Mapping[str, float]
    history: Sequence[Trial]
    folder: Path
    inputs: Inputs
    baselines: Mapping[str, Sequence[Trial]] = field(default_factory=dict)
    goals: Goals = Goals()  # noqa: RUF009 - a frozen value

    @property
    def front(self) -> list[Trial]:
        """The trials of the longest training that no other one dominates, and that keep all constraints."""
        done = [t for t in self.history if t.state == "done"]
        longest = max((t.fidelity for t in done), default=0)
        return self.goals.front([t for t in done if t.fidelity == longest])

    @property
    def failures(self) -> dict[str, int]:
        """The number of failed trials of the search by reason, the commonest first."""
        return failures.count(self.history)

    @property
    def graph(self) -> Graph:
        """All cells as one networkx graph, its nodes named `kind/node`."""
        return merged(self.graphs)

    def predict(self, images: Array | Tensor | Sequence[Any], *, batch: int = 512) -> NDArray[np.int64]:
        """The class number `[N]` of each raw image; `inputs.classes` names them.

        images: numpy `[N, H, W]` or `[N, H, W, C]`, torch `[N, C, H, W]`.
        """
        with torch.no_grad():
            parts = [self.network(x).argmax(1) for x in torch.split(self.inputs.prepare(images), batch)]
        return torch.cat(parts).numpy()


def baselines_of(history: Sequence[Trial], goals: Goals, *, method: str) -> dict[str, Sequence[Trial]]:
    """What a search is drawn against: all random trials, and the one of the largest allowed architecture.

    Accuracies of a method that searches by gradients are those of its supernet; the names say that these
    are not.
    """
    done = [trial for trial in history if trial.state == "done" and goals.violation(trial.metrics) == 0]
    if not done:
        return {}
    note = ", trained alone" if method in DIFFERENTIABLE else ""
    random, largest = (name + note for name in BASELINES)
    return {random: history, largest: [max(done, key=lambda t: t.metrics["macs"])]}


def is_finished(folder: Path) -> bool:
    """Whether a run came to its end: the manifest is written last."""
    return is_file(folder / MANIFEST)


def write_result(
    result: Result,
    *,
    image_shape: Sequence[int],
    title: str,
    alphas: Alphas | None = None,
    pictures: bool = True,
) -> None:
    """Writes every file of a finished run, pictures and report where wanted; the manifest is last."""
    folder, space, genotype = result.folder, result.space, result.genotype
    save_tensors(folder / "model.safetensors", dict(result.network.state_dict()), {"space": space.name})
    write_json(folder / "metrics.json", dict(result.metrics))
    write_json(folder / ARCHITECTURE, describe_architecture(space, genotype, result.metrics))
    write_graphml(folder / "architecture.graphml", result.graph)
    if len(result.goals.objectives) > 1:
        write_front(result, title=title, pictures=pictures)
    if alphas is not None:
        alphas.write(folder, pictures=pictures)
    if pictures:
        from nas.report import REPORT, write_report  # and matplotlib, which workers can do without

        _draw(result, image_shape, title)
        write_report([folder], folder / REPORT, space=space)
    write_manifest(folder)


def _draw(result: Result, image_shape: Sequence[int], title: str) -> None:
    from nas import draw

    folder, space, genotype = result.folder, result.space, result.genotype
    draw_architecture(folder, result.graphs, title=title)
    outline = skeleton(space.network(genotype, meta=True), image_shape)
    draw.save(draw.draw_network(outline, title=title), folder / "network.svg", folder / "network.png")
    if result.history:
        first = result.goals.objectives[0]
        figure = draw.draw_search(
            _valued(first, result.history),
            metric=first.name,
            maximize=first.maximize,
            title=f"Search: {title}",
            baselines={name: _valued(first, trials) for name, trials in result.baselines.items()},
        )
        draw.save(figure, folder / "search.svg", folder / "search.png")


def _valued(objective: Objective, trials: Sequence[Trial]) -> list[Trial]:
    """The trials with the objective's value among their metrics, under its name."""

    def valued(trial: Trial) -> Trial:
        value = {objective.name: objective.value(trial.metrics)}
        return replace(trial, metrics={**trial.metrics, **value})

    return [valued(trial) if trial.state == "done" else trial for trial in trials]


def write_front(result: Result, *, title: str, pictures: bool = True) -> None:
    """front.json, and with two objectives and pictures front.svg and front.png."""
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
    from nas import draw

    first, second = goals.objectives
    done = [t for t in result.history if t.state == "done"]
    figure = draw.draw_front(
        np.array([[first.value(t.metrics), second.value(t.metrics)] for t in done]),
        names=(first.name, second.name),
        maximize=(first.maximize, second.maximize),
        chosen=[i for i, t in enumerate(done) if t.genotype == result.genotype][:1],
        title=f"Pareto front: {title}",
        subtitle=f"{len(best)} of {len(done)} architectures are on it",
    )
    draw.save(figure, result.folder / "front.svg", result.folder / "front.png")


def describe_architecture(
    space: Space, genotype: Genotype, metrics: Mapping[str, float]
) -> dict[str, object]:
    """The content of architecture.json: all that is needed to build or draw the architecture again."""
    choices = space.choices(genotype)
    genotype = tuple(map(int, genotype))  # JSON knows no integers of numpy
    return {
        "format": FORMAT,
        "space": space.origin or space.name,
        "settings": dict(space.settings),
        "genotype": list(genotype),
        "choices": choices,
        "notation": space.notation.write(genotype) if space.notation is not None else None,
        "hash": architecture_hash(space, genotype),
        "cells": {kind: to_dict(graph) for kind, graph in cell_graphs(space, genotype).items()},
        "metrics": dict(metrics),
    }


def read_architecture(path: Path) -> dict[str, Any]:
    """An architecture.json, or that of a run's folder; nothing of it is executed.

    Raises:
        ConfigError: when there is none, or the folder's manifest says that it is damaged.
    """
    if not exists(path):
        raise ConfigError(
            f"no architecture at {shown(str(path))}: wanted a finished run's folder or an "
            "architecture.json; the text of a genotype needs --space"
        )
    file = path / ARCHITECTURE if path.is_dir() else path
    if path.is_dir() and exists(file):
        check_contents(path)
    require_intact(file.parent, file.name)
    data = read_json(file)
    if not isinstance(data, dict) or not {"space", "settings", "choices", "cells"} <= data.keys():
        raise ConfigError(f"{file} describes no architecture")
    if isinstance(data.get("format", FORMAT), int) and data.get("format", FORMAT) > FORMAT:
        raise ConfigError(
            f"{file} was written by a newer version (format {data['format']}, this one reads {FORMAT}); "
            "upgrade nas-engine"
        )
    checked(ArchitectureRecord, data, file, "architecture")
    return data


def graphs_of(architecture: Mapping[str, Any]) -> dict[str, Graph]:
    """The cells of an architecture as read, without its space."""
    return {kind: from_dict(graph) for kind, graph in architecture["cells"].items()}


def load_architecture(path: Path, *, space: str | None = None, **settings: object) -> tuple[Space, Genotype]:
    """The space and genotype of an architecture.json.

    space: must be given where the architecture came from a user's own file, which is never run unasked.
    settings: changes to the space's settings.

    Raises:
        ConfigError: when the space is a plug-in that was not named.
        SpaceError: when the space no longer has these decisions.
    """
    data = read_architecture(path)
    origin = str(data["space"])
    if space is None and is_plugin(origin):
        raise ConfigError(
            f"{path} was found in the space {origin!r}, which is code of your own; "
            "name it with --space to run it"
        )
    loaded = load(space or origin, **{**data["settings"], **settings})
    return loaded, loaded.genotype(data["choices"])


def load_result(folder: str | Path, *, space: str | Space | None = None) -> Result:
    """A finished run read back, with its trained network on the CPU.

    space: must be given where the run used a user's own space.
    """
    folder = Path(folder)
    if not is_finished(folder):
        raise ConfigError(f"{folder} holds no finished run; repeat its command to resume it")
    check_contents(folder)
    damage = check_manifest(folder)
    if needed := [line for line in damage if line.startswith(_READ)]:
        raise damaged(folder, needed)
    for line in damage:
        _log.warning("%s: %s in the manifest; the model and its figures are as recorded", folder, line)
    data = read_architecture(folder)
    if isinstance(space, Space):
        found, genotype = space, space.genotype(data["choices"])
    else:
        found, genotype = load_architecture(folder, space=space)
    tensors, _ = load_tensors(folder / "model.safetensors")
    network = _filled(found, genotype, tensors, folder)
    metrics = read_metrics(folder)
    record = read_run(folder)
    goals = Goals.from_dict(record["plan"]["goals"]) if "goals" in record["plan"] else Goals()
    history = Study.read(folder, "search", found)
    method = str(record["config"].get("method"))
    # A random search is its own baseline, and has no second study.
    own = history if (folder / "baselines.json").is_file() else []
    return Result(
        found,
        genotype,
        graphs_of(data),
        network.eval(),
        metrics,
        history,
        folder,
        Inputs.of_record(record["task"]),
        baselines_of(Study.read(folder, "random", found) or own, goals, method=method),
        goals,
    )


def _filled(space: Space, genotype: Genotype, tensors: Mapping[str, Tensor], folder: Path) -> nn.Module:
    """The network with these weights; what they do not fit is never built in full size."""
    outline = space.network(genotype, meta=True).state_dict()
    if {k: v.shape for k, v in outline.items()} != {k: v.shape for k, v in tensors.items()}:
        raise SpaceError(f"{folder}: the weights do not fit space {space.name!r} any more")
    network = space.network(genotype)
    network.load_state_dict(dict(tensors))
    return network


def read_metrics(folder: Path) -> dict[str, float]:
    """The content of a run's metrics.json."""
    file = folder / "metrics.json"
    return checked(MetricsRecord, {"metrics": read_json(file)}, file, "table of metrics").metrics


def draw_architecture(folder: Path, graphs: Mapping[str, Graph], *, title: str) -> None:
    """cells.svg and cells.png."""
    from nas import draw

    values = next(iter(graphs.values())).graph.get("values", {})
    subtitle = "  ".join(f"{name}: {value}" for name, value in values.items())
    figure = draw.draw_cells(graphs, title=title, subtitle=subtitle)
    draw.save(figure, folder / "cells.svg", folder / "cells.png")


def write_graphml(path: Path, graph: Graph) -> None:
    """A graph for other programs; networkx escapes whatever names hold."""
    import networkx as nx

    with replacing(path) as temporary:
        nx.write_graphml(graph, temporary)


@dataclass(frozen=True, eq=False)
class Alphas:
    """The strengths of all operations over a differentiable search.

    strengths: [T, E, O], NaN where a decision has fewer options.
    decisions: [E] names; options: for each of them.
    """

    strengths: NDArray[np.float64]
    decisions: tuple[str, ...]
    options: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, space: Space, epochs: Sequence[Sequence[NDArray[np.float64]]]) -> Alphas:
        """Collects the strengths `[O]` of each decision, epoch by epoch."""
        options = tuple(d.options for d in space.decisions)
        strengths = np.full((len(epochs), len(options), max(map(len, options))), math.nan)
        for t, rows in enumerate(epochs):
            for e, row in enumerate(rows):
                strengths[t, e, : len(row)] = row
        return cls(strengths, tuple(d.name for d in space.decisions), options)

    def write(self, folder: Path, *, pictures: bool = True) -> None:
        """alphas.npz, and with pictures alphas.svg and alphas.png."""
        names = json.dumps({"decisions": self.decisions, "options": self.options}).encode()
        with replacing(folder / "alphas.npz") as temporary:
            np.savez_compressed(temporary, strengths=self.strengths, names=np.frombuffer(names, np.uint8))
        if not pictures:
            return
        from nas import draw

        figure = draw.draw_alphas(
            self.strengths,
            decisions=self.decisions,
            options=self.options,
            title="Strength of every operation over the search",
        )
        draw.save(figure, folder / "alphas.svg", folder / "alphas.png")


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share in [0, 1] seen on `count` images (Wilson 1927)."""
    z = 1.959964
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics with as many digits as mean something."""
    return {name: float(f"{value:.6g}") for name, value in metrics.items()}


def to_cpu(network: nn.Module) -> nn.Module:
    """The network in evaluation mode on the CPU, in torch's plain memory layout."""
    return network.eval().to("cpu").to(memory_format=torch.contiguous_format)  # type: ignore[call-overload,no-any-return]
