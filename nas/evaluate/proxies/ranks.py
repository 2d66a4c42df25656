"""Ranks: how several proxies are made into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nas.errors import ConfigError

DEFAULT = ("params", "macs", "l2_norm")
"""The proxies that rank well on every published space, if none the best; others fail on some."""


def log_rank(scores: Mapping[str, Sequence[float]]) -> NDArray[np.float64]:
    """One score `[m]` for each of m architectures: the sum over proxies of log(rank / m), at most 0.

    Lee & Ham 2024 (AZ-NAS), "Non-linear ranking aggregation": rank m is the best, so that being among the
    worst for one proxy costs more than being the best for another gains.

    scores: by proxy, of the same m architectures in the same order; larger is better.
    """
    lengths = {name: len(values) for name, values in scores.items()}
    if len(set(lengths.values())) != 1:
        raise ConfigError(f"log_rank: got {lengths or 'nothing'}, wanted the same number of scores by proxy")
    logs = np.stack([np.log(ranks(values) / len(values)) for values in scores.values()])
    total: NDArray[np.float64] = logs.sum(axis=0)
    return total


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Ascending ranks `[m]` from 1, equal values sharing the mean of theirs."""
    from scipy.stats import rankdata

    values = np.asarray(values, dtype=np.float64)
    if np.isnan(values).any():
        raise ConfigError(f"ranks: got nan at {np.flatnonzero(np.isnan(values)).tolist()}; leave these out")
    found: NDArray[np.float64] = rankdata(values)
    return found
