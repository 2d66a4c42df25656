"""What each option adds to the cost of the whole network, so that a mixture has an expected cost."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nas.cost import cost
from nas.errors import ConfigError
from nas.latency import LatencyTable
from nas.oneshot.regularizers import ExpectedCost
from nas.space import Space
from nas.types import Constraint, Genotype

ADDITIVE = ("params", "macs")
LATENCY = "latency_ms"


def expected_cost(
    space: Space,
    image_shape: Sequence[int],
    bound: Constraint,
    *,
    table: LatencyTable | None = None,
    weight: float = 1.0,
) -> ExpectedCost:
    """The penalty that pulls a mixture below a bound on `params`, `macs` or, by a table, `latency_ms`.

    space: at the size that the bound is meant for.

    Raises:
        ConfigError: when the bound is a lower one, or its metric does not add up over decisions.
    """
    if not bound.at_most:
        raise ConfigError(f"constraint {bound}: a differentiable search can only keep costs below a bound")
    if bound.metric == LATENCY and table is not None:
        return _of_table(space, table, bound, weight)
    if bound.metric not in ADDITIVE:
        raise ConfigError(
            f"constraint {bound}: a differentiable search can bound {', '.join(ADDITIVE)} and {LATENCY}, "
            f"whose parts add up; {bound.metric} cannot be told from the parts"
        )
    fixed, rows = option_costs(space, image_shape, bound.metric)
    return ExpectedCost(_grouped(rows), fixed, bound.limit, weight, bound.metric)


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


def _of_table(space: Space, table: LatencyTable, bound: Constraint, weight: float) -> ExpectedCost:
    if table.base is None:
        raise ConfigError(
            f"constraint {bound}: the latency table names whole architectures; a differentiable search needs "
            "one by options, e.g. of nas.latency.measure_table"
        )
    rows = [[table.entries.get(f"{d.name}={o}", 0.0) for o in d.options] for d in space.decisions]
    return ExpectedCost(_grouped(rows), table.base, bound.limit, weight, bound.metric)


def _grouped(rows: Sequence[Sequence[float]]) -> list[torch.Tensor]:
    """Rows of equally many options together, as a supernet groups its alphas."""
    groups: dict[int, list[Sequence[float]]] = {}
    for row in rows:
        groups.setdefault(len(row), []).append(row)
    return [torch.tensor(members, dtype=torch.float32) for members in groups.values()]
