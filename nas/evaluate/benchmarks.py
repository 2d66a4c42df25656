"""What a tabular benchmark answers, where its files are looked for, and the evaluator that reads it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from nas.errors import ConfigError, TrialError, unknown
from nas.evaluate.nasbench101 import load_nasbench101
from nas.evaluate.nasbench201 import load_nasbench201
from nas.space.space import Space
from nas.types import Genotype, Trial

VARIABLE = "NAS_BENCHMARKS"
FOLDER = Path("benchmarks")
"""Where tables are looked for when the variable is not set, from the working directory."""


class Benchmark(Protocol):
    """A table of architectures that others have trained."""

    @property
    def name(self) -> str:
        """As typed by a user."""

    @property
    def space(self) -> Space:
        """The space that the table covers."""

    @property
    def fidelities(self) -> tuple[int, ...]:
        """The epochs that figures exist for, ascending."""

    @property
    def signal(self) -> str:
        """The metric that a search selects by."""

    @property
    def report(self) -> str:
        """The metric of its choice that is reported, after the longest training."""

    @property
    def note(self) -> str:
        """How selection and report are separated, in words."""

    @property
    def optimum(self) -> float:
        """The best reported value in the table."""

    def metrics(self, genotype: Genotype, fidelity: int) -> Mapping[str, float]:
        """All figures of one architecture after so many epochs; TrialError where there are none."""

    def seconds(self, genotype: Genotype, fidelity: int) -> float:
        """The seconds that its training took; ConfigError where the table has no times."""


LOADERS: Mapping[str, tuple[str, Callable[[Path], Benchmark]]] = {
    "nasbench101": ("nasbench101.npz", load_nasbench101),
    "nasbench201": ("nasbench201.csv.gz", load_nasbench201),
}
BENCHMARKS = tuple(LOADERS)


def load_benchmark(name: str, *, dataset: str | None = None, folder: Path | None = None) -> Benchmark:
    """A published table by name: `nasbench201` or `nasbench101`.

    dataset: of NAS-Bench-201, `cifar10` (default), `cifar100` or `imagenet16`.
    folder: where its file lies; else `$NAS_BENCHMARKS` or `benchmarks/`.

    Raises:
        ConfigError: naming every place that was looked at.
    """
    path = table_file(name, folder)
    _, read = LOADERS[name]
    if name == "nasbench201":
        return load_nasbench201(path, dataset=dataset or "cifar10")
    if dataset is not None:
        raise ConfigError(f"benchmark {name!r} has a single data set; leave dataset {dataset!r} out")
    return read(path)


@dataclass(frozen=True, eq=False)
class Tabular:
    """Looks architectures up instead of training them."""

    benchmark: Benchmark

    def __call__(self, trial: Trial, rng: np.random.Generator) -> Mapping[str, float]:  # noqa: ARG002
        """The table's figures after the trial's epochs."""
        if trial.fidelity not in self.benchmark.fidelities:
            raise TrialError(
                "missing",
                f"{self.benchmark.name} knows {self.benchmark.fidelities} epochs, not {trial.fidelity}",
            )
        return self.benchmark.metrics(trial.genotype, trial.fidelity)


def table_file(name: str, folder: Path | None = None) -> Path:
    """Where the file of a benchmark lies; folder as of `load_benchmark`.

    Raises:
        ConfigError: naming the place that was looked at.
    """
    if name not in LOADERS:
        raise ConfigError(unknown("benchmark", name, LOADERS))
    file, _ = LOADERS[name]
    place = folder or Path(os.environ.get(VARIABLE) or FOLDER)
    if (place / file).is_file():
        return place / file
    looked = (place / file).resolve()
    raise ConfigError(f"no table {file} (looked for {looked}); set {VARIABLE} to the folder that holds it")
