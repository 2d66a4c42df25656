"""NAS-Bench-101 (Ying et al., ICML 2019): 423,624 cells, each trained three times for 108 epochs.

A cell is found by a hash that does not depend on the order of its vertices. The published set was itself
enumerated by such a hash (§2.2), and here, too, all its cells have different ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.data.decode import load_arrays
from nas.errors import ConfigError, TrialError
from nas.space.loading import load
from nas.space.space import Space
from nas.types import Genotype

VERTICES, EDGES, EPOCHS = 7, 21, 108
RUNS, TEST_IMAGES = 3, 9984
CELLS = 423_624
MAX_BYTES = 16 << 20
"""Of the unpacked table, which takes 5.5 MB."""
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
class NasBench101:
    """The table, sorted by hash.

    space: with a single cell, which is all that searchers look at; its genotypes are those of the full size.
    hashes: [423,624] of the cells, ascending.
    test_acc: [423,624] mean test accuracy of three runs on CIFAR-10, in [0, 1].
    params: [423,624] trainable parameters, of the published order of vertices: where channels do not divide
      evenly, an isomorphic cell may have a few more or less.
    signal, report: what a search selects by and what is reported; the table holds no validation accuracies.
    """

    space: Space
    hashes: NDArray[np.uint64]
    test_acc: NDArray[np.float64]
    params: NDArray[np.int32]
    name: str = "nasbench101"
    fidelities: tuple[int, ...] = (EPOCHS,)
    signal: str = "test_acc"
    report: str = "test_acc"
    note: str = "selected and reported by test accuracy, the only one in the table"

    def metrics(self, genotype: Genotype, fidelity: int) -> dict[str, float]:
        """`test_acc` in [0, 1], the mean of three runs of 108 epochs, `test_err` = 1 - it, and `params`.

        Raises:
            TrialError: with reason `missing`, for edges that are not pruned, too many or lead nowhere.
        """
        if fidelity not in self.fidelities:
            raise ConfigError(f"{self.name} knows {self.fidelities} epochs, not {fidelity}")
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
        """Always refuses: the table has no times."""
        raise ConfigError(f"{self.name} has no training times; give the search a number of trials instead")

    @property
    def optimum(self) -> float:
        """The best accuracy of the whole table."""
        return float(self.test_acc.max())


def load_nasbench101(path: Path) -> NasBench101:
    """Reads `nasbench101.npz`.

    Raises:
        ConfigError: when the file is damaged.
    """
    table = _read(path)
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


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        table, _ = load_arrays(path, list(COLUMNS), max_bytes=MAX_BYTES)
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}") from error
    if missing := [name for name in COLUMNS if name not in table]:
        raise ConfigError(f"{path} is damaged: it has no {', '.join(missing)}")
    for name, column in table.items():
        if column.shape != (CELLS,) or column.dtype != COLUMNS[name]:
            raise ConfigError(
                f"{path} is damaged: {name} is {column.dtype} {column.shape}, "
                f"wanted {COLUMNS[name]} ({CELLS},)"
            )
    return table
