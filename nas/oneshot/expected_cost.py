"""The expected cost of a mixture, as a regulariser that keeps a search below a bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nas.errors import ConfigError
from nas.oneshot.regularizers import Progress, Regularizer
from nas.space.cost import cost
from nas.space.latency import LATENCY, LatencyTable
from nas.space.space import Space
from nas.types import Constraint, Genotype

ADDITIVE = ("params", "macs")
"""Costs of a network that are the sums of what its options cost."""
_DRAWS = 200
"""Random architectures that the mean cost of a space with rules is taken of."""


@dataclass(frozen=True, eq=False)
class ExpectedCost(Regularizer):
    """The expected cost of the mixture above a target, in units of the target.

    FBNet (Wu et al., CVPR 2019) and ProxylessNAS (Cai et al., ICLR 2019) estimate the cost of a mixture by
    the mean of its options' costs, too. Deviation: only the excess is punished, linearly, so
    that an architecture cheap enough is not made cheaper.

    costs: `[D, O]` like the alphas and on their device, what each option adds to the whole network; fixed:
      what all have in common.
    target: the largest cost that is not punished. weight: loss of an excess as large as the target.
    """

    costs: Tensor
    fixed: float
    target: float
    weight: float = 1.0
    metric: str = "macs"

    def expected(self, weights: Tensor) -> Tensor:
        """`fixed + Σ over decisions Σ over options p · cost`, in the metric's unit."""
        return self.fixed + (weights / weights.sum(-1, keepdim=True) * self.costs).sum()

    def __call__(self, alphas: Tensor, weights: Tensor, progress: Progress) -> Tensor:  # noqa: ARG002
        """`weight · max(0, expected / target - 1)`."""
        return self.weight * F.relu(self.expected(weights) / self.target - 1)


def expected_cost(
    space: Space,
    image_shape: Sequence[int],
    bound: Constraint,
    *,
    table: LatencyTable | None = None,
    weight: float = 1.0,
    device: torch.device | str = "cpu",
) -> ExpectedCost:
    """The penalty that pulls a mixture below a bound on `params`, `macs` or, by a table, `latency_ms`.

    Where the space forbids combinations, so that not every decision counts in the end, the options' costs are
    scaled down by as much as random architectures cost less than a uniform mixture.

    space: at the size that the bound is meant for. device: that of the alphas.

    Raises:
        ConfigError: when the bound is a lower one, or its metric does not add up over decisions.
    """
    check_bound(bound, table)
    if bound.metric != LATENCY:
        fixed, rows = option_costs(space, image_shape, bound.metric)
    elif table is None or table.base is None:
        raise ConfigError(
            f"constraint {bound}: no latency table is given; nas.space.latency.measure_table makes one"
        )
    else:
        fixed = table.base
        rows = [[table.entries.get(f"{d.name}={o}", 0.0) for o in d.options] for d in space.decisions]
    least = [min(row) for row in rows]
    excess = [[c - low for c in row] for row, low in zip(rows, least, strict=True)]
    share = _share_of_uniform(space, excess)
    costs = torch.zeros(len(excess), max(map(len, excess), default=1))
    for costs_of, row in zip(costs, excess, strict=True):
        costs_of[: len(row)] = share * torch.tensor(row)
    return ExpectedCost(costs.to(device), fixed + sum(least), bound.limit, weight, bound.metric)


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


def _share_of_uniform(space: Space, rows: Sequence[Sequence[float]]) -> float:
    """What random architectures cost beyond the cheapest options, as a share of a uniform mixture."""
    uniform = sum(sum(row) / len(row) for row in rows)
    if space.is_free or not uniform:
        return 1.0
    rng = np.random.default_rng(0)
    drawn = [space.sample(rng) for _ in range(_DRAWS)]
    return sum(row[o] for g in drawn for row, o in zip(rows, g, strict=True)) / _DRAWS / uniform
