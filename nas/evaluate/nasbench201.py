"""NAS-Bench-201 (Dong & Yang, ICLR 2020): all 15,625 cells trained for 12 and for 200 epochs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.data.decode import load_arrays, read_bounded
from nas.errors import ConfigError, SpaceError, TrialError, unknown
from nas.space.loading import load
from nas.space.space import Space
from nas.types import Genotype

SIZES = ("params", "flops_c10_M")
"""Columns of the trainable parameters and of the millions of multiply-adds on CIFAR-10."""
SECONDS = "train_s_c10v_200_v10_est"
"""Column of the seconds that 200 epochs on CIFAR-10's 25,000 training images take on a GTX 1080 Ti.

Measured where the table was converted from the official results; in the published collections that the engine
reads too, estimated from the cells that were measured there.
"""
ALWAYS = (*SIZES, SECONDS)
HARDWARE = "nasbench201_hardware.npz"
MAX_BYTES = 64 << 20
"""Of each unpacked file; the figures of the table take 5 MB, those of the hardware 4 MB."""


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
class NasBench201:
    """One data set of the table.

    dataset: `cifar10`, `cifar100` or `imagenet16`.
    rows: what the table holds, by genotype and by column.
    hardware: HW-NAS-Bench's figures by genotype, or nothing.
    signal: what a search selects by; report: what is reported of its choice, after 200 epochs.
    """

    space: Space
    dataset: str
    rows: Mapping[Genotype, Mapping[str, float]]
    hardware: Mapping[Genotype, Mapping[str, float]]
    name: str = "nasbench201"
    fidelities: tuple[int, ...] = (12, 200)
    signal: str = "val_acc"
    report: str = "test_acc"
    note: str = "selected by validation, reported by test accuracy"

    def metrics(self, genotype: Genotype, fidelity: int) -> dict[str, float]:
        """`val_acc` after so many epochs, `params`, `macs`, `test_acc` and `test_err` after 200.

        Also whatever HW-NAS-Bench measured for the data set: `edgegpu_latency` in ms, and so on.

        Raises:
            TrialError: with reason `missing`, when the table has no such figure for this cell.
        """
        self._check(fidelity)
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
        self._check(fidelity)
        return self._figure(genotype, SECONDS) * DATASETS[self.dataset].seconds * fidelity / 200

    @cached_property
    def optimum(self) -> float:
        """The best reported accuracy of the whole table."""
        column = DATASETS[self.dataset].test
        return max(row.get(column, 0.0) for row in self.rows.values()) / 100

    def _check(self, fidelity: int) -> None:
        if fidelity not in self.fidelities:
            raise ConfigError(f"{self.name} knows {self.fidelities} epochs, not {fidelity}")

    def _figure(self, genotype: Genotype, column: str) -> float:
        row = self.rows.get(genotype, {})
        if column not in row:
            raise TrialError("missing", f"{self.name} has no {column} for {self._named(genotype)}")
        return row[column]

    def _named(self, genotype: Genotype) -> str:
        assert self.space.notation is not None
        return self.space.notation.write(genotype)


def load_nasbench201(path: Path, *, dataset: str = "cifar10") -> NasBench201:
    """Reads `nasbench201.csv.gz`, and `nasbench201_hardware.npz` where it lies beside it.

    Raises:
        ConfigError: when the file is damaged or the data set unknown.
    """
    if dataset not in DATASETS:
        raise ConfigError(unknown("data set of nasbench201", dataset, DATASETS))
    space = load("nasbench201")
    table = _read(path, space, DATASETS[dataset].needed)
    if len(table) != space.size.count:
        raise ConfigError(f"{path} has {len(table):,} different cells, wanted {space.size.count:,}")
    return NasBench201(space, dataset, table, _hardware(path.with_name(HARDWARE), list(table), dataset))


def _read(path: Path, space: Space, columns: Sequence[str]) -> dict[Genotype, dict[str, float]]:
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
    columns, values = _archive(path, len(genotypes))
    prefix = DATASETS[dataset].prefix
    own = {name.removeprefix(prefix): i for i, name in enumerate(columns) if name.startswith(prefix)}
    return {
        genotype: {name: float(row[i]) for name, i in own.items() if row[i] >= 0}
        for genotype, row in zip(genotypes, values, strict=True)
    }


def _archive(path: Path, rows: int) -> tuple[list[str], NDArray[np.float64]]:
    try:
        arrays, _ = load_arrays(path, ["columns", "values"], max_bytes=MAX_BYTES)
        columns, values = [str(column) for column in arrays["columns"]], arrays["values"].astype(np.float64)
    except KeyError as error:
        raise ConfigError(f"{path} is damaged: it has no array {error}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from error
    if values.shape != (rows, len(columns)):
        raise ConfigError(
            f"{path} is damaged: its values are {values.shape}, wanted ({rows}, {len(columns)})"
        )
    return columns, values
