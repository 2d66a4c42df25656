"""All that a run's folder tells, finished or not; nothing in it is executed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nas.errors import NasError
from nas.files.atomic import read_json
from nas.files.manifest import MANIFEST, require_intact
from nas.files.paths import is_file
from nas.files.schemas import (
    ComparedRecord,
    EpochRecord,
    HealthRecord,
    MetricsRecord,
    ReportedArchitectureRecord,
    ReportedRecord,
    checked,
)
from nas.results.alphas import Alphas
from nas.results.run_record import RANDOM, SEARCH, compared_of, read_run
from nas.searchers.goals import Goals
from nas.searchers.method_names import SHARED, by_gradients
from nas.show.report.history import Past, read_studies
from nas.space.graph import Graph, cell_graphs, from_dict
from nas.space.loading import is_plugin, load
from nas.space.space import Space
from nas.types import Genotype, Trial

_READ = (
    *("run.json", "architecture.json", "metrics.json", "baselines.json", "health.json"),
    *("alphas.npz", "config.toml"),
)
_EMPTY = Past((), Goals(), (), ())


@dataclass(frozen=True, eq=False)
class Run:
    """One run, as far as it has come.

    record: run.json; told: what else stands in there. search, random: studies, empty where there are none.
    architecture: the content of architecture.json, None until it is finished. metrics: empty until then.
    space: that of the trials, None where it is code of the user's own that was not named, or cannot be
    loaded any more.
    """

    folder: Path
    record: Mapping[str, Any]
    told: ReportedRecord
    search: Past
    random: Past
    architecture: Mapping[str, Any] | None
    metrics: Mapping[str, float]
    compared: ComparedRecord | None
    health: Sequence[EpochRecord]
    alphas: Alphas | None
    space: Space | None

    @property
    def name(self) -> str:
        """That of its folder."""
        return self.folder.name

    @property
    def method(self) -> str:
        """How it searched; empty for a retraining."""
        return "" if self.record["architecture"] is not None else str(self.record["config"].get("method", ""))

    @cached_property
    def winner(self) -> Trial | None:
        """The first trial of the architecture that was chosen; None where the search has none of it."""
        if self.architecture is None:
            return None
        past = self.search
        choices = self.architecture["choices"]
        return next((t for t in past.done if past.choices(t.genotype) == choices), None)

    @property
    def best(self) -> Trial | None:
        """The best trial of the search by its goals."""
        past = self.search
        return past.goals.ordered(past.longest)[0] if past.longest else None

    @property
    def is_finished(self) -> bool:
        """Whether it has a result."""
        return self.architecture is not None and bool(self.metrics)

    @property
    def is_by_gradients(self) -> bool:
        """Whether its trials are the epochs of a supernet."""
        return by_gradients(self.method)

    def called(self, trial: Trial) -> tuple[str, str]:
        """What a trial of the search is, and its number: epochs are counted from 1, as everywhere."""
        return ("epoch", str(trial.number + 1)) if self.is_by_gradients else ("trial", str(trial.number))

    @property
    def shares_weights(self) -> bool:
        """Whether its trials are evaluated on the weights of a supernet."""
        return bool(self.method) and (
            self.method in SHARED or self.record["config"].get("evaluator") == "shared"
        )

    @cached_property
    def final(self) -> Space | None:
        """The space at the size of the last network, where it is one of the engine's own."""
        return (
            None
            if self.architecture is None
            else _space(self.architecture["space"], self.architecture["settings"])
        )

    @cached_property
    def graphs(self) -> dict[str, Graph]:
        """The cells that were found, without the space."""
        cells = self.architecture["cells"] if self.architecture is not None else {}
        return {kind: from_dict(graph) for kind, graph in cells.items()}

    def cells(self, genotype: Genotype) -> dict[str, Graph]:
        """The cells of a trial; none without the space or where it has changed."""
        if self.space is None or [d.name for d in self.space.decisions] != self.search.names:
            return {}
        try:
            return cell_graphs(self.space, self.space.genotype(self.search.choices(genotype)))
        except NasError:
            return {}


def read(folder: Path, space: Space | None = None) -> Run:
    """What there is of the run in a folder.

    space: that of the trials, where it is code of the user's own, which is never run unasked.

    Raises:
        ConfigError: when there is no run, or what is there is damaged.
    """
    record = read_run(folder)
    told = checked(ReportedRecord, record, folder / "run.json", "record of a run")
    if (folder / MANIFEST).is_file():
        require_intact(folder, *(name for name in _READ if is_file(folder / name)))
    studies = read_studies(folder)
    architecture, metrics = folder / "architecture.json", folder / "metrics.json"
    alphas = folder / "alphas.npz"
    if (found := _json(architecture)) is not None:
        checked(ReportedArchitectureRecord, found, architecture, "architecture")
    numbers = _json(metrics)
    health = _json(folder / "health.json")
    return Run(
        folder.resolve(),
        record,
        told,
        studies.get(SEARCH, _EMPTY),
        studies.get(RANDOM, _EMPTY),
        found,
        {} if numbers is None else checked(MetricsRecord, {"metrics": numbers}, metrics, "metrics").metrics,
        compared_of(folder),
        checked(HealthRecord, health, folder / "health.json", "record of health").epochs if health else (),
        Alphas.read(alphas) if is_file(alphas) else None,
        space
        if space is not None
        else _space(record["space"].get("origin"), record["space"].get("settings")),
    )


def _json(path: Path) -> Any | None:  # noqa: ANN401 - whatever the file holds
    return read_json(path) if is_file(path) else None


def _space(origin: object, settings: object) -> Space | None:
    """One of the engine's own spaces; code of the user's own is not run."""
    if not isinstance(origin, str) or not origin or is_plugin(origin) or not isinstance(settings, dict):
        return None
    try:
        return load(origin, **settings)
    except NasError:  # one of another version
        return None
