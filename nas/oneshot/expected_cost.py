"""What each option adds to the cost of the whole network, so that a mixture has an expected cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from nas.errors import ConfigError
from nas.oneshot.regularizers import ExpectedCost
from nas.space.cost import cost
from nas.space.latency import LATENCY, LatencyTable
from nas.space.space import Space
from nas.types import Constraint, Genotype

ADDITIVE = ("params", "macs")
_DRAWS = 200


def expected_cost(
    space: Space,
    image_shape: Sequence[int],
    bound: Constraint,
    *,
    table: LatencyTable | None = None,
    weight: float = 1.0,
) -> ExpectedCost:
    """The penalty that pulls a mixture below a bound on `params`, `macs` or, by a table, `latency_ms`.

    Where the space forbids combinations, so that not every decision counts in the end, the options' costs are
    scaled down by as much as random architectures cost less than a uniform mixture.

    space: at the size that the bound is meant for.

    Raises:
        ConfigError: when the bound is a lower one, or its metric does not add up over decisions.
    """
    check_bound(bound, table)
    if bound.metric != LATENCY:
        return _penalty(space, *option_costs(space, image_shape, bound.metric), bound, weight)
    if table is None:
        raise ConfigError(
            f"constraint {bound}: no latency table is given; nas.space.latency.measure_table makes one"
        )
    rows = [[table.entries.get(f"{d.name}={o}", 0.0) for o in d.options] for d in space.decisions]
    assert table.base is not None, "wanted by check_bound"
    return _penalty(space, table.base, rows, bound, weight)


def check_bound(bound: Constraint, table: LatencyTable | None = None) -> None:
    """Raises ConfigError for a lower bound, a metric that does not add up, or a table of whole networks."""
    if not bound.at_most:
        raise ConfigError(f"constraint {bound}: a differentiable search can only keep costs below a bound")
    if bound.metric not in (*ADDITIVE, LATENCY):
        raise ConfigError(
            f"constraint {bound}: a differentiable search can bound {', '.join(ADDITIVE)} and {LATENCY}, "
            f"whose parts add up; {bound.metric} cannot be told from the parts"
        )
    if bound.metric == LATENCY and table is not None and table.base is None:
        raise ConfigError(
            f"constraint {bound}: the latency table names whole architectures; a differentiable search needs "
            "one by options, e.g. of nas.space.latency.measure_table"
        )


def option_costs(space: Space, image_shape: Sequence[int], metric: str) -> tuple[float, list[list[float]]]:
    """The cost with all first options, and for each decision what each of its options costs more, `[O]`."""
    base = (0,) * len(space.decisions)

    def counted(genotype: Genotype) -> float:
        return float(getattr(cost(space, genotype, image_shape), metric))

    rows = [
        [counted((*base[:i], o, *base[i + 1 :])) - counted(base) for o in range(len(d.options))]
        for i, d in enumerate(space.decisions)
    ]
    return counted(base), rows


def _penalty(
    space: Space, fixed: float, rows: Sequence[Sequence[float]], bound: Constraint, weight: float
) -> ExpectedCost:
    least = [min(row) for row in rows]
    share = _kept_share(space, [[c - low for c in row] for row, low in zip(rows, least, strict=True)])
    scaled = [[share * (c - low) for c in row] for row, low in zip(rows, least, strict=True)]
    return ExpectedCost(_grouped(scaled), fixed + sum(least), bound.limit, weight, bound.metric)


def _kept_share(space: Space, rows: Sequence[Sequence[float]]) -> float:
    """What random architectures cost beyond the cheapest options, as a share of a uniform mixture."""
    uniform = sum(sum(row) / len(row) for row in rows)
    if space.is_free or not uniform:
        return 1.0
    rng = np.random.default_rng(0)
    drawn = [space.sample(rng) for _ in range(_DRAWS)]
    return sum(row[o] for g in drawn for row, o in zip(rows, g, strict=True)) / _DRAWS / uniform


def _grouped(rows: Sequence[Sequence[float]]) -> list[torch.Tensor]:
    """Rows of equally many options together, as a supernet groups its alphas."""
    groups: dict[int, list[Sequence[float]]] = {}
    for row in rows:
        groups.setdefault(len(row), []).append(row)
    return [torch.tensor(members, dtype=torch.float32) for members in groups.values()]
