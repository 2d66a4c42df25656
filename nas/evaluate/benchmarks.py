"""Published tables of trained architectures, NAS-Bench-201 and NAS-Bench-101, and the evaluator by them."""

from __future__ import annotations

import csv
import io
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from nas.data.decode import load_arrays, read_bounded
from nas.errors import ConfigError, SpaceError, TrialError, unknown
from nas.space.loading import load
from nas.space.space import Space
from nas.types import Genotype, Trial

VARIABLE = "NAS_BENCHMARKS"
FOLDER = Path("benchmarks")
"""Where tables are looked for when the variable is not set, from the working directory."""
FILES: Mapping[str, str] = {"nasbench101": "nasbench101.npz", "nasbench201": "nasbench201.csv.gz"}
"""The file of each table."""
MAX_BYTES = 64 << 20
"""Of each unpacked file; none takes more than 6 MB."""


class Benchmark(ABC):
    """A table of architectures that others have trained.

    name: as typed by a user. space: what the table covers. fidelities: the epochs that figures exist for,
      ascending.
    signal: the metric that a search selects by. report: the metric of its choice that is reported, after the
      longest training. note: how the two are separated, in words.
    """

    space: Space
    name: ClassVar[str]
    fidelities: ClassVar[tuple[int, ...]]
    signal: ClassVar[str]
    report: ClassVar[str]
    note: ClassVar[str]

    @property
    @abstractmethod
    def optimum(self) -> float:
        """The best reported value of the whole table."""

    @abstractmethod
    def metrics(self, genotype: Genotype, fidelity: int) -> Mapping[str, float]:
        """All figures of one architecture after so many epochs.

        Raises:
            TrialError: with reason `missing`, when the table has none.
            ConfigError: for other epochs than `fidelities`.
        """

    @abstractmethod
    def seconds(self, genotype: Genotype, fidelity: int) -> float:
        """The seconds that its training took; ConfigError where the table has no times."""

    def check(self, fidelity: int) -> None:
        """Raises ConfigError for epochs that there are no figures for."""
        if fidelity not in self.fidelities:
            raise ConfigError(f"{self.name} knows {self.fidelities} epochs, not {fidelity}")


@dataclass(frozen=True, eq=False)
class Tabular:
    """Looks architectures up instead of training them."""

    benchmark: Benchmark

    def __call__(self, trial: Trial, rng: np.random.Generator) -> Mapping[str, float]:  # noqa: ARG002
        """The table's figures after the trial's epochs."""
        return self.benchmark.metrics(trial.genotype, trial.fidelity)


def load_benchmark(name: str, *, dataset: str | None = None, folder: Path | None = None) -> Benchmark:
    """A published table by name: `nasbench201` or `nasbench101`.

    dataset: of NAS-Bench-201, `cifar10` (default), `cifar100` or `imagenet16`.
    folder: where its file lies; else `$NAS_BENCHMARKS` or `benchmarks/`.

    Raises:
        ConfigError: naming every place that was looked at.
    """
    path = table_file(name, folder)
    if name == "nasbench201":
        return load_nasbench201(path, dataset=dataset or "cifar10")
    if dataset is not None:
        raise ConfigError(f"benchmark {name!r} has a single data set; leave dataset {dataset!r} out")
    return load_nasbench101(path)


def table_file(name: str, folder: Path | None = None) -> Path:
    """Where the file of a benchmark lies; folder as of `load_benchmark`.

    Raises:
        ConfigError: naming the place that was looked at.
    """
    if name not in FILES:
        raise ConfigError(unknown("benchmark", name, FILES))
    file = FILES[name]
    place = folder or Path(os.environ.get(VARIABLE) or FOLDER)
    if (place / file).is_file():
        return place / file
    looked = (place / file).resolve()
    raise ConfigError(f"no table {file} (looked for {looked}); set {VARIABLE} to the folder that holds it")


# -- NAS-Bench-201 ----------------------------------------------------------------------------------------

SIZES = ("params", "flops_c10_M")
"""Columns of the trainable parameters and of the millions of multiply-adds on CIFAR-10."""
SECONDS = "train_s_c10v_200_v10_est"
"""Column of the seconds that 200 epochs on CIFAR-10's 25,000 training images take on a GTX 1080 Ti.

Measured where the table was converted from the official results; in the published collections that the engine
reads too, estimated from the cells that were measured there.
"""
ALWAYS = (*SIZES, SECONDS)
HARDWARE = "nasbench201_hardware.npz"


@dataclass(frozen=True)
class Columns:
    """Where one data set's figures stand in the table, in percent.

    val: of the validation mean, by epochs trained. test: of the test mean after 200 epochs.
    seconds: how much longer than CIFAR-10's half of 25,000 images one epoch takes, by the number of images,
      as the published searchers estimate it. prefix: of the hardware columns.
    """

    val: Mapping[int, str]
    test: str
    seconds: float
    prefix: str

    @property
    def needed(self) -> tuple[str, ...]:
        """Every column that the data set's figures are made of."""
        return (*ALWAYS, *self.val.values(), self.test)


DATASETS: Mapping[str, Columns] = {
    "cifar10": Columns(
        {12: "c10_valid_12", 200: "c10_valid_200"},
        "c10_test_200_nats",
        seconds=1.0,
        prefix="c10_",
    ),
    "cifar100": Columns(
        {12: "c100_valid_12", 200: "c100_valid_200_v10"},
        "c100_test_200",
        seconds=2.0,
        prefix="c100_",
    ),
    "imagenet16": Columns(
        {12: "in16_valid_12", 200: "in16_valid_200_v10"},
        "in16_test_200",
        seconds=151_700 / 25_000,
        prefix="in16_",
    ),
}


@dataclass(frozen=True, eq=False)
class NasBench201(Benchmark):
    """NAS-Bench-201 (Dong & Yang, ICLR 2020): all 15,625 cells trained for 12 and for 200 epochs.

    dataset: `cifar10`, `cifar100` or `imagenet16`.
    rows: what the table holds, by genotype and by column.
    hardware: HW-NAS-Bench's figures by genotype, or nothing.
    """

    space: Space
    dataset: str
    rows: Mapping[Genotype, Mapping[str, float]]
    hardware: Mapping[Genotype, Mapping[str, float]]
    name = "nasbench201"
    fidelities = (12, 200)
    signal = "val_acc"
    report = "test_acc"
    note = "selected by validation, reported by test accuracy"

    def metrics(self, genotype: Genotype, fidelity: int) -> dict[str, float]:
        """`val_acc` after so many epochs, `params`, `macs`, `test_acc` and `test_err` after 200.

        Also whatever HW-NAS-Bench measured for the data set: `edgegpu_latency` in ms, and so on.
        """
        self.check(fidelity)
        columns = DATASETS[self.dataset]
        test = self._figure(genotype, columns.test) / 100
        params, millions = (self._figure(genotype, column) for column in SIZES)
        return {
            "val_acc": self._figure(genotype, columns.val[fidelity]) / 100,
            "test_acc": test,
            "test_err": 1.0 - test,
            "params": params,
            "macs": 1e6 * millions,
            **self.hardware.get(genotype, {}),
        }

    def seconds(self, genotype: Genotype, fidelity: int) -> float:
        """GPU seconds that training for so many epochs takes: linear in the epochs.

        Deviation from the published protocol, which adds the seconds of one validation: those are left out.
        """
        self.check(fidelity)
        return self._figure(genotype, SECONDS) * DATASETS[self.dataset].seconds * fidelity / 200

    @cached_property
    def optimum(self) -> float:
        """The best test accuracy."""
        column = DATASETS[self.dataset].test
        return max(row.get(column, 0.0) for row in self.rows.values()) / 100

    def _figure(self, genotype: Genotype, column: str) -> float:
        row = self.rows.get(genotype, {})
        if column not in row:
            raise TrialError("missing", f"{self.name} has no {column} for {self.space.choices(genotype)}")
        return row[column]


def load_nasbench201(path: Path, *, dataset: str = "cifar10") -> NasBench201:
    """Reads `nasbench201.csv.gz`, and `nasbench201_hardware.npz` where it lies beside it.

    Raises:
        ConfigError: when the file is damaged or the data set unknown.
    """
    if dataset not in DATASETS:
        raise ConfigError(unknown("data set of nasbench201", dataset, DATASETS))
    space = load("nasbench201")
    table = _rows(path, space, DATASETS[dataset].needed)
    if len(table) != space.size.count:
        raise ConfigError(f"{path} has {len(table):,} different cells, wanted {space.size.count:,}")
    return NasBench201(space, dataset, table, _hardware(path.with_name(HARDWARE), list(table), dataset))


def _rows(path: Path, space: Space, columns: Sequence[str]) -> dict[Genotype, dict[str, float]]:
    """The figures in `columns` by genotype, in the order of the file; an accuracy may be missing."""
    assert space.notation is not None
    table: dict[Genotype, dict[str, float]] = {}
    try:
        text = read_bounded(path, max_bytes=MAX_BYTES).decode()
        with io.StringIO(text, newline="") as file:
            for row in csv.DictReader(file, strict=True):
                genotype = space.notation.read(row["arch"])
                if genotype in table:
                    raise ValueError(f"{row['arch']} stands there twice")
                table[genotype] = {
                    name: _finite(row[name]) for name in columns if row[name] or name in ALWAYS
                }
    except KeyError as error:
        raise ConfigError(f"{path} is damaged: it has no column {error}") from error
    except (csv.Error, SpaceError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    return table


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text!r} is no finite number")
    return number


def _hardware(path: Path, genotypes: Sequence[Genotype], dataset: str) -> dict[Genotype, dict[str, float]]:
    """HW-NAS-Bench (Li et al., ICLR 2021) by cell; a figure of -1 means that the device cannot run it."""
    if not path.is_file():
        return {}
    arrays = _arrays(path, ("columns", "values"))
    columns, values = list(map(str, arrays["columns"])), arrays["values"]
    wanted = (len(genotypes), len(columns))
    if values.shape != wanted or values.dtype.kind != "f":
        raise ConfigError(
            f"{path} is damaged: values are {values.dtype} {values.shape}, wanted float {wanted}"
        )
    prefix = DATASETS[dataset].prefix
    own = {name.removeprefix(prefix): i for i, name in enumerate(columns) if name.startswith(prefix)}
    return {
        genotype: {name: float(row[i]) for name, i in own.items() if row[i] >= 0}
        for genotype, row in zip(genotypes, values, strict=True)
    }


def _arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    try:
        arrays, _ = load_arrays(path, list(names), max_bytes=MAX_BYTES)
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}") from error
    if missing := [name for name in names if name not in arrays]:
        raise ConfigError(f"{path} is damaged: it has no {', '.join(missing)}")
    return arrays


# -- NAS-Bench-101 ----------------------------------------------------------------------------------------

VERTICES, EDGES = 7, 21
RUNS, TEST_IMAGES = 3, 9984
CELLS = 423_624
COLUMNS: Mapping[str, str] = {
    "n_vertices": "uint8",
    "adj_bits": "uint32",
    "ops": "uint16",
    "test_correct_sum3": "uint16",
    "params": "int32",
}
_BLOCK = 1 << 14
_NO_EDGE = 31
_WORD = np.uint64
_SELF, _IN, _OUT = map(_WORD, (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93))
_BIT = np.full((VERTICES, VERTICES), _NO_EDGE, dtype=np.uint32)
"""Where an adjacency code holds the edge from row to column."""
for _dst in range(VERTICES):
    _BIT[:_dst, _dst] = np.arange(_dst) + _dst * (_dst - 1) // 2


@dataclass(frozen=True, eq=False)
class NasBench101(Benchmark):
    """NAS-Bench-101 (Ying et al., ICML 2019): 423,624 cells, each trained three times for 108 epochs.

    A cell is found by a hash that does not depend on the order of its vertices. The published set was itself
    enumerated by such a hash (§2.2), and here, too, all its cells have different ones. The table is sorted
    by it, and holds no validation accuracies.

    space: with a single cell, which is all that searchers look at; its genotypes are those of the full size.
    hashes: [423,624] of the cells, ascending.
    test_acc: [423,624] mean test accuracy of three runs on CIFAR-10, in [0, 1].
    params: [423,624] trainable parameters, of the published order of vertices: where channels do not divide
      evenly, an isomorphic cell may have a few more or less.
    """

    space: Space
    hashes: NDArray[np.uint64]
    test_acc: NDArray[np.float64]
    params: NDArray[np.int32]
    name = "nasbench101"
    fidelities = (108,)
    signal = "test_acc"
    report = "test_acc"
    note = "selected and reported by test accuracy, the only one in the table"

    def metrics(self, genotype: Genotype, fidelity: int) -> dict[str, float]:
        """`test_acc` in [0, 1], the mean of three runs of 108 epochs, `test_err` = 1 - it, and `params`.

        It is `missing` for edges that are not pruned, too many or lead nowhere.
        """
        self.check(fidelity)
        sought = cell_hashes(*_codes(genotype))
        row = min(int(np.searchsorted(self.hashes, sought)[0]), len(self.hashes) - 1)
        if self.hashes[row] != sought[0]:
            raise TrialError(
                "missing",
                f"{self.name} has no cell {self.space.choices(genotype)}; project it with space.nearest",
            )
        accuracy = float(self.test_acc[row])
        return {"test_acc": accuracy, "test_err": 1.0 - accuracy, "params": float(self.params[row])}

    def seconds(self, genotype: Genotype, fidelity: int) -> float:  # noqa: ARG002 - a benchmark's signature
        """Always refuses."""
        raise ConfigError(f"{self.name} has no training times; give the search a number of trials instead")

    @property
    def optimum(self) -> float:
        """The best test accuracy."""
        return float(self.test_acc.max())


def load_nasbench101(path: Path) -> NasBench101:
    """Reads `nasbench101.npz`.

    Raises:
        ConfigError: when the file is damaged.
    """
    table = _arrays(path, tuple(COLUMNS))
    for name, column in table.items():
        if column.shape != (CELLS,) or column.dtype != COLUMNS[name]:
            raise ConfigError(
                f"{path} is damaged: {name} is {column.dtype} {column.shape}, "
                f"wanted {COLUMNS[name]} ({CELLS},)"
            )
    hashes = cell_hashes(table["adj_bits"], _labels(table["n_vertices"], table["ops"]))
    order = np.argsort(hashes)
    if not (np.diff(hashes[order]) > 0).all():
        raise ConfigError(f"{path} is damaged: some of its cells are isomorphic")
    return NasBench101(
        load("nasbench101", stacks=1, cells=1),
        hashes[order],
        table["test_correct_sum3"][order] / (RUNS * TEST_IMAGES),
        table["params"][order],
    )


def cell_hashes(codes: NDArray[np.uint32], labels: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A 64-bit name for each cell that isomorphic ones share: colour refinement (Weisfeiler & Leman 1968).

    As in the published code, every vertex mixes its name with those of the vertices that it reads and of
    those that read it, as often as there are vertices. Here neighbours are added up instead of sorted.

    codes: [N] adjacency, bit `src + dst (dst - 1) / 2` set for an edge from src to dst.
    labels: [N, 7] operation of each vertex, 0 where there is none.
    """
    hashes = np.empty(len(codes), dtype=_WORD)
    for start in range(0, len(codes), _BLOCK):
        block = slice(start, start + _BLOCK)
        edges = (codes[block, None, None] >> _BIT & 1).astype(_WORD)
        weights = edges * _OUT + edges.transpose(0, 2, 1) * _IN + np.eye(VERTICES, dtype=_WORD) * _SELF
        names = labels[block, :, None].astype(_WORD)
        for _ in range(VERTICES):
            names = _mixed(weights @ names)
        hashes[block] = _mixed(names).sum(axis=(1, 2))
    return hashes


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014): a bijection without pattern that keeps 0."""
    x = (x ^ x >> _WORD(30)) * _WORD(0xBF58476D1CE4E5B9)
    x = (x ^ x >> _WORD(27)) * _WORD(0x94D049BB133111EB)
    return x ^ x >> _WORD(31)


def _labels(n_vertices: NDArray[np.uint8], ops: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """`[N, 7]`: 0 no vertex, 1 the input, 2 the output, then the operations."""
    place = np.arange(VERTICES)
    last = n_vertices[:, None] - 1
    packed = ops[:, None] >> np.maximum(0, 2 * (place - 1)).astype(np.uint16) & 3
    labels = np.where(place < last, 3 + packed, np.where(place == last, 2, 0))
    labels[:, 0] = 1
    return labels.astype(np.uint8)


def _codes(genotype: Genotype) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """One genotype as `cell_hashes` takes it: its edges come in the order of the bits."""
    code = sum(on << bit for bit, on in enumerate(genotype[:EDGES]))
    labels = np.array([[1, *(3 + op for op in genotype[EDGES:]), 2]], dtype=np.uint8)
    codes = np.array([code], dtype=np.uint32)
    edges = codes[:, None, None] >> _BIT & 1
    return codes, labels * (edges.any(axis=1) | edges.any(axis=2))
