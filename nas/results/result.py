"""What a job leaves behind, in memory and in its folder; none of it is code of anybody."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.data.arrays import Array
from nas.data.decode import load_arrays
from nas.data.preprocessing import Inputs
from nas.data.problem import CLASSIFICATION, Problem
from nas.errors import ConfigError, SpaceError, counted, shown
from nas.evaluate import failure_summary
from nas.files.atomic import read_json, replacing
from nas.files.folder import (
    HISTORY,
    MANIFEST,
    check_contents,
    check_manifest,
    damaged,
    exists,
    is_file,
    is_folder,
    require_intact,
)
from nas.files.schemas import AlphasRecord, ArchitectureRecord, MetricsRecord, check_format, checked
from nas.results.run_record import RANDOM, SEARCH, read_run
from nas.searchers.goals import Goals, longest
from nas.searchers.method_names import by_gradients
from nas.space.graph import Graph, architecture_hash, cell_graphs, from_dict, merged, to_dict
from nas.space.loading import is_plugin, load
from nas.space.space import Space
from nas.training.checkpoint import load_tensors
from nas.types import Genotype, Trial

ARCHITECTURE = "architecture.json"
FORMAT = 1
"""Grows when the meaning of architecture.json changes."""
BASELINES = ("random search at equal cost", "largest of these by MACs")
_READ = ("architecture.json", "baselines.json", "metrics.json", "model.safetensors", "run.json")
_MOST_BYTES = 256 << 20
"""That alphas.npz may unpack to."""
_log = logging.getLogger("nas")


@dataclass(frozen=True, eq=False)
class Result:
    """A finished job.

    space: at the size of `network`.
    genotype: the best architecture found; `graphs` are its cells, `graph` all of them in one.
    network: trained, in evaluation mode.
    metrics: see metrics.json; `test_acc`, or what else the problem has, was measured once, on this network.
    history: the trials of the search; for a differentiable one, one for each epoch.
    inputs: how raw images are normalised, and the names of the classes.
    random: the trials of the random search that it was compared with.
    goals: what the search was for. method: by which it searched.
    """

    space: Space
    genotype: Genotype
    graphs: Mapping[str, Graph]
    network: nn.Module
    metrics: Mapping[str, float]
    history: Sequence[Trial]
    folder: Path
    inputs: Inputs
    random: Sequence[Trial] = ()
    goals: Goals = Goals()  # noqa: RUF009 - a frozen value
    method: str = ""

    @property
    def by_gradients(self) -> bool:
        """Whether the trials of `history` are the epochs of one supernet."""
        return by_gradients(self.method)

    @property
    def baselines(self) -> dict[str, Sequence[Trial]]:
        """The trials of what the search was compared with, by name; a choice made without trials is one."""
        return baselines_of(self.random, self.goals, method=self.method)

    @property
    def front(self) -> list[Trial]:
        """The trials of the longest training that no other one dominates, and that keep all constraints."""
        return self.goals.front(longest(self.history, self.goals))

    @property
    def failures(self) -> dict[str, int]:
        """The number of failed trials of the search by reason, the commonest first."""
        return failure_summary.count(self.history)

    @property
    def graph(self) -> Graph:
        """All cells as one networkx graph, its nodes named `kind/node`."""
        return merged(self.graphs)

    def __repr__(self) -> str:
        """A line for people; the fields hold the rest."""
        problem, params = self.inputs.problem, self.metrics.get("params")
        value = self.metrics.get(problem.test)
        measured = [
            *([] if value is None else [f"{problem.test} {problem.text(value)}"]),
            *([] if params is None else [f"{params:,.0f} params"]),
            counted(len(self.history), "epoch" if self.by_gradients else "trial"),
        ]
        return f"<Result of {self.space.name!r} in {str(self.folder)!r}: {', '.join(measured)}>"

    def predict(self, images: Array | Tensor | Sequence[Any], *, batch: int = 512) -> NDArray[Any]:
        """What the network says of each raw image, `[N]`: its class number, which `inputs.classes` names.

        images: numpy `[N, H, W]` or `[N, H, W, C]`, torch `[N, C, H, W]`.
        """
        with torch.no_grad():
            outputs = [self.network(x) for x in torch.split(self.inputs.prepare(images), batch)]
        return self.inputs.problem.predict(torch.cat(outputs)).numpy()


@dataclass(frozen=True, eq=False)
class Alphas:
    """How strong each operation was over a differentiable search, as alphas.npz holds it.

    strengths: [T, E, O], NaN where a decision has fewer options.
    decisions: [E] names; options: for each of them.
    """

    strengths: NDArray[np.float64]
    decisions: Sequence[str]
    options: Sequence[Sequence[str]]

    @classmethod
    def of(cls, space: Space, epochs: Sequence[Sequence[NDArray[np.float64]]]) -> Self:
        """Collects the strengths `[O]` of each decision, epoch by epoch."""
        options = tuple(d.options for d in space.decisions)
        strengths = np.full((len(epochs), len(options), max(map(len, options))), math.nan)
        for t, rows in enumerate(epochs):
            for e, row in enumerate(rows):
                strengths[t, e, : len(row)] = row
        return cls(strengths, tuple(d.name for d in space.decisions), options)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The content of an alphas.npz.

        Raises:
            ConfigError: when it is damaged.
        """
        try:
            arrays, _ = load_arrays(path, ("strengths", "names"), max_bytes=_MOST_BYTES)
            names = checked(AlphasRecord, json.loads(arrays["names"].tobytes()), path, "table of alphas")
            strengths = np.asarray(arrays["strengths"], dtype=float)
            fitting = (len(names.decisions), max(map(len, names.options), default=0))
            if strengths.shape[1:] != fitting or len(names.options) != len(names.decisions):
                raise ValueError(f"its strengths are {strengths.shape}, which do not fit its names")
        except (KeyError, ValueError, TypeError) as error:
            raise ConfigError(f"{path} is damaged: {error}") from error
        return cls(strengths, names.decisions, names.options)

    def write(self, folder: Path) -> None:
        """alphas.npz."""
        names = json.dumps({"decisions": self.decisions, "options": self.options}).encode()
        with replacing(folder / "alphas.npz") as temporary:
            np.savez_compressed(temporary, strengths=self.strengths, names=np.frombuffer(names, np.uint8))


class Recorded(Sequence[Trial]):
    """The trials of a study in a finished run's folder, read when they are first looked at.

    A prediction looks at none, so it need not wait for Optuna.

    is_damaged: whether the history is not as the manifest says; where it then cannot be read, there is a
      warning and no trial.
    """

    def __init__(self, folder: Path, name: str, space: Space, *, is_damaged: bool) -> None:
        self.folder, self.name, self.space, self.is_damaged = folder, name, space, is_damaged

    @cached_property
    def _trials(self) -> list[Trial]:
        from nas.study.storage import read_trials

        try:
            return read_trials(self.folder, self.name, self.space)
        except ConfigError as error:
            if not self.is_damaged:
                raise
            _log.warning("%s", error)
            return []

    @overload
    def __getitem__(self, index: int) -> Trial: ...
    @overload
    def __getitem__(self, index: slice) -> list[Trial]: ...
    def __getitem__(self, index: int | slice) -> Trial | list[Trial]:
        return self._trials[index]

    def __len__(self) -> int:
        return len(self._trials)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._trials == list(other)

    __hash__ = None  # type: ignore[assignment]


def baselines_of(history: Sequence[Trial], goals: Goals, *, method: str) -> dict[str, Sequence[Trial]]:
    """What a search is drawn against: all random trials, and the one of the largest allowed architecture.

    Accuracies of a method that searches by gradients are those of its supernet; the names say that these
    are not.
    """
    done = goals.kept_by(history)
    if not done:
        return {}
    note = ", trained alone" if by_gradients(method) else ""
    random, largest = (name + note for name in BASELINES)
    return {random: history, largest: [max(done, key=lambda t: t.metrics["macs"])]}


def is_finished(folder: Path) -> bool:
    """Whether a run came to its end: the manifest is written last."""
    return is_file(folder / MANIFEST)


def load_result(
    folder: str | Path, *, space: str | Space | None = None, problem: Problem = CLASSIFICATION
) -> Result:
    """A finished run read back, with its trained network on the CPU.

    space: must be given where the run used a user's own space. problem: of its task.

    Raises:
        ConfigError: when there is no finished run, or what a result is made of is damaged.
        SpaceError: when the space is another one by now.
    """
    folder = Path(folder)
    if not is_folder(folder):
        raise ConfigError(f"no folder {folder} (looked from {Path.cwd()}); wanted that of a finished run")
    if not is_finished(folder):
        raise ConfigError(f"{folder} holds no finished run; repeat its command to resume it")
    damage = check_manifest(folder)
    if needed := [line for line in damage if line.startswith(_READ)]:
        raise damaged(folder, needed)
    for line in damage:
        _log.warning("%s: %s in the manifest; the model and its figures are as recorded", folder, line)
    found, genotype = load_architecture(folder, space=space)
    record, metrics = read_run(folder), read_metrics(folder)
    method = str(record["config"].get("method"))
    # A random search is its own baseline, and has no second study.
    is_own = method == "random" and is_file(folder / "baselines.json")
    is_damaged = any(line.startswith(HISTORY) for line in damage)
    history = Recorded(folder, SEARCH, found, is_damaged=is_damaged)
    return Result(
        found,
        genotype,
        graphs_of(read_architecture(folder)),
        _trained(found, genotype, folder),
        metrics,
        history,
        folder,
        Inputs.of_record(record["task"], problem),
        history if is_own else Recorded(folder, RANDOM, found, is_damaged=is_damaged),
        Goals.from_dict(record["plan"]["goals"]) if "goals" in record["plan"] else Goals(),
        method,
    )


def _trained(space: Space, genotype: Genotype, folder: Path) -> nn.Module:
    """The network with the weights of a run; what they do not fit is never built in full size."""
    tensors, _ = load_tensors(folder / "model.safetensors")
    outline = space.network(genotype, meta=True).state_dict()
    if {k: v.shape for k, v in outline.items()} != {k: v.shape for k, v in tensors.items()}:
        raise SpaceError(f"{folder}: the weights do not fit space {space.name!r} any more")
    network = space.network(genotype)
    network.load_state_dict(dict(tensors))
    return network.eval()


def read_metrics(folder: Path) -> dict[str, float]:
    """The content of a run's metrics.json."""
    file = folder / "metrics.json"
    return checked(MetricsRecord, {"metrics": read_json(file)}, file, "table of metrics").metrics


def to_cpu(network: nn.Module) -> nn.Module:
    """The network in evaluation mode on the CPU, in torch's plain memory layout."""
    return network.eval().to("cpu").to(memory_format=torch.contiguous_format)  # type: ignore[call-overload,no-any-return]


# -- architecture.json ----------------------------------------------------------------------------------


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
    if path.is_dir():
        check_contents(path)
    require_intact(file.parent, file.name)
    data = read_json(file)
    check_format(data, FORMAT, file)
    checked(ArchitectureRecord, data, file, "architecture")
    return dict(data)  # type: ignore[call-overload,no-any-return]  # which it is by now


def architecture_of(source: str, *, space: str | None) -> Mapping[str, Any]:
    """That of a run's folder or of a file; with a space also that of a genotype's text.

    Raises:
        ConfigError: when there is none, or the space has no notation for genotypes.
    """
    if exists(Path(source)) or space is None:
        return read_architecture(Path(source))
    loaded = load(space)
    if loaded.notation is None:
        raise ConfigError(
            f"space {space!r} has no notation for genotypes; give a folder or architecture.json"
        )
    return describe_architecture(loaded, loaded.notation.read(source), {})


def graphs_of(architecture: Mapping[str, Any]) -> dict[str, Graph]:
    """The cells of an architecture as read, without its space."""
    return {kind: from_dict(graph) for kind, graph in architecture["cells"].items()}


def load_architecture(
    path: Path, *, space: str | Space | None = None, **settings: object
) -> tuple[Space, Genotype]:
    """The space and genotype of an architecture.json.

    space: must be given where the architecture came from a user's own file, which is never run unasked.
    settings: changes to the space's settings, where it is loaded.

    Raises:
        ConfigError: when the space is a plug-in that was not named.
        SpaceError: when the space no longer has these decisions.
    """
    data = read_architecture(path)
    origin = str(data["space"])
    if space is None and is_plugin(origin):
        raise ConfigError(
            f"{path} was found in the space {origin!r}, which is code of your own; "
            "name it with --space to run it, in Python with space="
        )
    if not isinstance(space, Space):
        space = load(space or origin, **{**data["settings"], **settings})
    return space, space.genotype(data["choices"])


def write_graphml(path: Path, graph: Graph) -> None:
    """A graph for other programs; networkx escapes whatever names hold."""
    import networkx as nx

    with replacing(path) as temporary:
        nx.write_graphml(graph, temporary)
