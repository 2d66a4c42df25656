"""How strong each operation was over a differentiable search: `alphas.npz`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nas.data.safe_npz import load_arrays
from nas.errors import ConfigError
from nas.files.atomic import replacing
from nas.files.schemas import AlphasRecord, checked
from nas.space.space import Space

_LARGEST = 256 << 20
"""Bytes that a file may unpack to."""


@dataclass(frozen=True, eq=False)
class Alphas:
    """The strengths of all operations over a differentiable search.

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
            arrays, _ = load_arrays(path, ("strengths", "names"), max_bytes=_LARGEST)
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
