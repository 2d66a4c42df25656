"""Regularisers: what is added to the validation loss that the alphas descend.

Each is a function of the alphas `[E, O]` (minus infinity where an option is out of the race), of the mixture
weights `[E, O]` that they give, and of the progress of the search in [0, 1].
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nas.errors import ConfigError
from nas.space.cost import cost
from nas.space.latency import LATENCY, LatencyTable
from nas.space.space import Space
from nas.types import Constraint, Genotype

Rows = Sequence[Tensor]
Progress = float | Tensor
"""A number, or a scalar on the alphas' device."""


@dataclass(frozen=True)
class Regularizer(ABC):
    """A term of the alphas' loss, whose numbers are finite."""

    def __post_init__(self) -> None:
        for name in (own.name for own in dataclasses.fields(self)):
            value = getattr(self, name)
            if isinstance(value, int | float) and not math.isfinite(value):
                raise ConfigError(f"{type(self).__name__}: {name} is {value}, but must be finite")

    @property
    def reads_mixture(self) -> bool:
        """Whether it depends on the mixture weights, and not on the alphas alone."""
        return True

    @abstractmethod
    def __call__(self, alphas: Rows, weights: Rows, progress: Progress) -> Tensor:
        """A scalar, smaller is better."""


@dataclass(frozen=True)
class BetaDecay(Regularizer):
    """β-DARTS (Ye et al., CVPR 2022), the Beta-Decay loss: `λ · mean over edges of log Σ exp α`.

    end: λ at the end of the search; it grows linearly from 0 (the code: 0 to 50 in 100 epochs, so 25 in 50).
    """

    end: float = 25.0

    @property
    def reads_mixture(self) -> bool:
        """The alphas alone."""
        return False

    def __call__(self, alphas: Rows, weights: Rows, progress: Progress) -> Tensor:  # noqa: ARG002
        """λ times the mean smooth maximum."""
        return self.end * progress * torch.cat([rows.logsumexp(-1) for rows in alphas]).mean()


@dataclass(frozen=True)
class ZeroOne(Regularizer):
    """FairDARTS (Chu et al., ECCV 2020), the zero-one loss: away from 1/2 by `-w · mean (σ(α) - 1/2)²`."""

    weight: float = 10.0

    def __call__(self, alphas: Rows, weights: Rows, progress: Progress) -> Tensor:  # noqa: ARG002
        """Between -w/4 and 0."""
        alive = torch.cat([rows.flatten() for rows in alphas]) > -torch.inf
        squares = (torch.cat([rows.flatten() for rows in weights]) - 0.5).square()
        return -self.weight * torch.where(alive, squares, 0.0).sum() / alive.sum()


@dataclass(frozen=True)
class PullBack(Regularizer):
    """DrNAS (Chen et al., ICLR 2021), §3.2: keeps the concentrations near 1, `scale / 2 · Σ α²`.

    At α = 0 the concentration elu(α) + 1 is 1, the uniform distribution over the simplex. Its gradient is
    that of a weight decay of `scale`, which is how the code does it.
    """

    scale: float = 1e-3

    @property
    def reads_mixture(self) -> bool:
        """The alphas alone."""
        return False

    def __call__(self, alphas: Rows, weights: Rows, progress: Progress) -> Tensor:  # noqa: ARG002
        """The squared distance."""
        return self.scale / 2 * torch.stack([_finite(rows).square().sum() for rows in alphas]).sum()


@dataclass(frozen=True, eq=False)
class ExpectedCost(Regularizer):
    """The expected cost of the mixture above a target, in units of the target.

    FBNet (Wu et al., CVPR 2019) and ProxylessNAS (Cai et al., ICLR 2019) estimate the cost of a mixture by
    the mean of its options' costs, too. Deviation: only the excess is punished, linearly, so
    that an architecture cheap enough is not made cheaper.

    costs: `[E, O]` like the alphas, what each option adds to the whole network; fixed: what all have in
      common.
    target: the largest cost that is not punished. weight: loss of an excess as large as the target.
    """

    costs: Rows
    fixed: float
    target: float
    weight: float = 1.0
    metric: str = "macs"
    _placed: dict[torch.device, list[Tensor]] = field(default_factory=dict, init=False, repr=False)

    def expected(self, weights: Rows) -> Tensor:
        """`fixed + Σ over decisions Σ over options p · cost`, in the metric's unit."""
        parts = [
            (row / row.sum(-1, keepdim=True) * cost).sum()
            for row, cost in zip(weights, self._on(weights[0].device), strict=True)
        ]
        return self.fixed + torch.stack(parts).sum()

    def _on(self, device: torch.device) -> list[Tensor]:
        """The costs on a device, brought there once: a copy in every step would wait, and not be captured."""
        if device not in self._placed:
            self._placed[device] = [cost.to(device) for cost in self.costs]
        return self._placed[device]

    def __call__(self, alphas: Rows, weights: Rows, progress: Progress) -> Tensor:  # noqa: ARG002
        """`weight · max(0, expected / target - 1)`."""
        return self.weight * F.relu(self.expected(weights) / self.target - 1)


def _divergence(alphas: Tensor) -> Tensor:
    """KL(Dir(c) ‖ Dir(1)) of each row `[E]`, with c = elu(α) + 1 of the options that are there.

    `log Γ(Σc) - log Γ(n) - Σ log Γ(c) + Σ (c - 1) (ψ(c) - ψ(Σc))`.
    """
    alive = alphas > -torch.inf
    c = torch.where(alive, F.elu(_finite(alphas)) + 1, 1.0)
    total, count = (c * alive).sum(-1, keepdim=True), alive.sum(-1, keepdim=True).to(c.dtype)
    each = (c - 1) * (c.digamma() - total.digamma()) - c.lgamma()
    return (total.lgamma() - count.lgamma()).squeeze(-1) + (each * alive).sum(-1)


def _finite(alphas: Tensor) -> Tensor:
    return torch.where(alphas > -torch.inf, alphas, 0.0)


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
