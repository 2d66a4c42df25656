"""What a job leaves behind, in memory and in its folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.data.arrays import Array
from nas.data.preprocessing import Inputs
from nas.errors import ConfigError, SpaceError
from nas.evaluate import failure_summary
from nas.files.atomic import read_json
from nas.files.manifest import HISTORY, MANIFEST, check_manifest, damaged
from nas.files.paths import check_contents, is_file, is_folder
from nas.files.schemas import MetricsRecord, checked
from nas.results.architecture_file import graphs_of, load_architecture, read_architecture
from nas.results.run_record import RANDOM, SEARCH, read_run
from nas.searchers.goals import Goals
from nas.searchers.halving import longest
from nas.searchers.method_names import by_gradients
from nas.space.graph import Graph, merged
from nas.space.space import Space
from nas.study.study import Study
from nas.text import counted
from nas.training.checkpoint import load_tensors
from nas.types import Genotype, Trial

BASELINES = ("random search at equal cost", "largest of these by MACs")
_READ = ("architecture.json", "baselines.json", "metrics.json", "model.safetensors", "run.json")
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
    by_gradients: whether the trials of `history` are the epochs of one supernet.
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
    by_gradients: bool = False

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
        accuracy, params = self.metrics.get("test_acc"), self.metrics.get("params")
        measured = [
            *([] if accuracy is None else [f"test_acc {accuracy:.4f}"]),
            *([] if params is None else [f"{params:,.0f} params"]),
            f"{counted(len(self.history), 'epoch' if self.by_gradients else 'trial')}",
        ]
        return f"<Result of {self.space.name!r} in {str(self.folder)!r}: {', '.join(measured)}>"

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
    done = goals.kept_by(history)
    if not done:
        return {}
    note = ", trained alone" if by_gradients(method) else ""
    random, largest = (name + note for name in BASELINES)
    return {random: history, largest: [max(done, key=lambda t: t.metrics["macs"])]}


def is_finished(folder: Path) -> bool:
    """Whether a run came to its end: the manifest is written last."""
    return is_file(folder / MANIFEST)


def load_result(folder: str | Path, *, space: str | Space | None = None) -> Result:
    """A finished run read back, with its trained network on the CPU.

    space: must be given where the run used a user's own space.
    """
    folder = Path(folder)
    if not is_folder(folder):
        raise ConfigError(f"no folder {folder} (looked from {Path.cwd()}); wanted that of a finished run")
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
    try:
        history, random = (Study.read(folder, name, found) for name in (SEARCH, RANDOM))
    except ConfigError as error:
        if not any(line.startswith(HISTORY) for line in damage):
            raise
        _log.warning("%s", error)
        history, random = [], []
    method = str(record["config"].get("method"))
    # A random search is its own baseline, and has no second study.
    own = history if method == "random" and (folder / "baselines.json").is_file() else []
    return Result(
        found,
        genotype,
        graphs_of(data),
        network.eval(),
        metrics,
        history,
        folder,
        Inputs.of_record(record["task"]),
        baselines_of(random or own, goals, method=method),
        goals,
        by_gradients(method),
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


def to_cpu(network: nn.Module) -> nn.Module:
    """The network in evaluation mode on the CPU, in torch's plain memory layout."""
    return network.eval().to("cpu").to(memory_format=torch.contiguous_format)  # type: ignore[call-overload,no-any-return]
