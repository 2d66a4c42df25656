"""The supernet: every candidate operation of every decision lives at once and shares its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.oneshot.extract import as_searched, extracted
from nas.oneshot.relaxations import Relaxation, Softmax
from nas.oneshot.topology import into_nodes, outermost
from nas.space.choosers import Candidates
from nas.space.mixed_op import Drawn, MixedOp, Mixture, Share, Unweighed, Weighed
from nas.space.space import Space
from nas.types import Genotype

T = TypeVar("T")


class Supernet(nn.Module):
    """All architectures of a space in one module.

    alphas: one parameter `[E, O]` for each set of E decisions with equally many options O, in the order of
      the space's decisions; drawn as 1e-3 N(0, 1) (the code of DARTS).
    betas: with `edge_norm`, one parameter for each decision; those of the edges into one node of a `Cell`
      are softmaxed and weigh these edges (Xu et al., ICLR 2020, PC-DARTS, §3.3). Drawn like the alphas.
    relaxation: maps alphas to mixture weights.
    parts: how many parts the channels of a mixed operation are divided into; one of them is computed on.
    progress: share of the search that is done, a scalar in [0, 1] on the device; what is annealed follows it.

    Inside cells and candidates batch-norm has no affine part, which would rescale what the alphas weigh
    (Liu et al. 2019, §A.1.1).
    """

    def __init__(
        self,
        space: Space,
        *,
        relaxation: Relaxation | None = None,
        parts: int = 1,
        edge_norm: bool = False,
    ) -> None:
        super().__init__()
        self.space, self.parts = space, parts
        self.relaxation = relaxation or Softmax()
        # On the device, since in a CUDA graph numbers would stay what they were.
        self.progress: Tensor
        self.skip_dropout: Tensor
        self.register_buffer("progress", torch.zeros(()), persistent=False)
        self.register_buffer("skip_dropout", torch.zeros(()), persistent=False)
        self._constants: dict[tuple[torch.device, object], Tensor] = {}
        self._mixture: dict[str, Share] = {}
        self.network = space.supernet(_Mixing(self._mixture, parts))
        # A step asks for them; to look for them among all modules takes longer than a GPU does for the step.
        self._mixed = [module for module in self.network.modules() if isinstance(module, MixedOp)]
        as_searched(self.network, outermost(self.network))
        self._names = [d.name for d in space.decisions]
        self._rows = _rows([len(d.options) for d in space.decisions])
        self.alphas = nn.ParameterList(
            1e-3 * torch.randn(len(rows), options) for options, rows in self._rows.items()
        )
        self._nodes = into_nodes(self.network, self._names) if edge_norm else []
        self.betas = nn.Parameter(1e-3 * torch.randn(len(self._names))) if edge_norm else None
        self._alive = [tuple(range(len(d.options))) for d in space.decisions]
        if not self.relaxation.competes:
            self.keep(self._without_zeros())

    # -- running ---------------------------------------------------------------------------------------

    def forward(self, x: Tensor, genotype: Genotype | None = None) -> Tensor:
        """Images `[B, C, H, W]` to logits `[B, classes]`: of the mixture, or of one architecture's path.

        The mixture is that of the relaxation while training, which may be drawn, and the expected one else.
        """
        return self.mix(x, self.mixture() if genotype is None else self.path(genotype))

    def mix(self, x: Tensor, mixture: Mixture) -> Tensor:
        """The output under any mixture."""
        self._mixture.update(mixture)
        out: Tensor | tuple[Tensor, ...] = self.network(x)
        self._mixture.clear()
        return out[0] if isinstance(out, tuple) else out

    def mixture(self, points: Sequence[Tensor] | None = None, *, whole: bool = False) -> dict[str, Share]:
        """What each decision runs under the given points, else under those of now.

        whole: run all options, although the relaxation draws one of them in training.
        """
        if points is None:
            points = self.points() if self.training else self.expected()
        mixed = points[: len(self.alphas)]
        rows = self._by_decision(mixed)
        shares: list[Unweighed] = list(rows)
        if not whole and self.training and self.relaxation.one_at_a_time:
            asked = cache(lambda: [int(o) for o in self._by_decision([p.argmax(-1).cpu() for p in mixed])])
            shares = [Drawn(row, partial(_item, asked, i)) for i, row in enumerate(rows)]
        if self.betas is None:
            return dict(zip(self._names, shares, strict=True))
        weighed = [Weighed(share, edge) for share, edge in zip(shares, points[-1], strict=True)]
        return dict(zip(self._names, weighed, strict=True))

    def path(self, genotype: Genotype) -> dict[str, Share]:
        """The mixture that runs one architecture only."""
        self.space.check(genotype)
        return dict(zip(self._names, genotype, strict=True))

    def remixed(self) -> Callable[[], AbstractContextManager[None]]:
        """A context, for later, in which the parts of the network run under the mixture of now."""
        now = dict(self._mixture)

        @contextmanager
        def again() -> Iterator[None]:
            self._mixture.update(now)
            try:
                yield
            finally:
                self._mixture.clear()

        return again

    # -- what is searched ------------------------------------------------------------------------------

    def architecture(self) -> list[nn.Parameter]:
        """What a search moves beside the weights: the alphas, and the betas if there are any."""
        return [*self.alphas, *([self.betas] if self.betas is not None else [])]

    def weights(self) -> list[nn.Parameter]:
        """Everything trained but the alphas and betas."""
        return list(self.network.parameters())

    def logits(self) -> list[Tensor]:
        """The alphas, minus infinity where an option is out of the race."""
        return [
            torch.where(self._mask(rows), alphas, -torch.inf)
            for rows, alphas in zip(self._rows.values(), self.alphas, strict=True)
        ]

    def points(self) -> list[Tensor]:
        """The relaxed alphas `[E, O]`, and last the edges' weights `[E]` if they are normalised."""
        mixed = [self.relaxation.mix(alphas, self.progress) for alphas in self.logits()]
        return [*mixed, *self._edges()]

    def expected(self) -> list[Tensor]:
        """As `points`, but without any draw."""
        return [*map(self.relaxation.expected, self.logits()), *self._edges()]

    def preferences(self) -> list[Tensor]:
        """How much each option is preferred to the others of its decision, `[E, O]` like the alphas."""
        with torch.no_grad():
            return [self.relaxation.strength(alphas) for alphas in self.logits()]

    def strengths(self) -> list[NDArray[np.float64]]:
        """How much each option is preferred, `[O]` in [0, 1] for each decision in the space's order.

        Edges that are weighed against each other are preferred by their weight, too.
        """
        rows = self._by_decision([rows.double().cpu() for rows in self.preferences()])
        with torch.no_grad():
            edges = [weight for weights in self._edges() for weight in weights.tolist()]
        return [row.numpy() * (edges[i] if edges else 1.0) for i, row in enumerate(rows)]

    def genotype(self) -> Genotype:
        """Discretises: the valid architecture that the alphas prefer."""
        return self.space.nearest(self.strengths())

    @property
    def alive(self) -> list[tuple[int, ...]]:
        """The options still in the race, for each decision in the space's order."""
        return list(self._alive)

    def keep(self, alive: Sequence[Sequence[int]]) -> None:
        """Takes all other options out of the race: they get no weight and are not computed."""
        for name, options in zip(self._names, alive, strict=True):
            if not options:
                raise SpaceError(f"decision {name!r}: no option is left; keep at least one")
        self._alive = [tuple(sorted(options)) for options in alive]
        by_name = dict(zip(self._names, self._alive, strict=True))
        for mixed in self.mixed():
            mixed.alive = by_name[mixed.decision]

    def prefer(self, genotypes: Sequence[Genotype]) -> None:
        """Sets the alphas to the logarithm of how often each option occurs in given architectures.

        A half is added to every count, so that no option is out of the race.
        """
        rows = [torch.full((len(d.options),), 0.5) for d in self.space.decisions]
        for genotype in genotypes:
            self.space.check(genotype)
            for row, option in zip(rows, genotype, strict=True):
                row[option] += 1
        with torch.no_grad():
            for alphas, found in zip(
                self.alphas, self.grouped([(r / r.sum()).log() for r in rows]), strict=True
            ):
                alphas.copy_(found - found.mean(-1, keepdim=True))

    def mixed(self) -> Iterator[MixedOp]:
        """Every mixed operation; a decision that is asked at several places has several."""
        yield from self._mixed

    def drop_skips(self, probability: float) -> None:
        """Sets the dropout on identities, in [0, 1)."""
        self.skip_dropout.fill_(probability)
        for mixed in self.mixed():
            mixed.skip_dropout = self.skip_dropout if probability else None

    def grouped(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """One row `[O]` per decision in the space's order as tensors `[E, O]` like the alphas."""
        return [torch.stack([rows[i] for i in members]) for members in self._rows.values()]

    # -- leaving ---------------------------------------------------------------------------------------

    def extract(self, genotype: Genotype) -> nn.Module:
        """The stand-alone network of one architecture with a copy of its shared weights.

        Raises:
            SpaceError: when only a part of the channels was computed on, so that the weights do not fit.
        """
        if self.parts > 1:
            raise SpaceError(
                f"space {self.space.name!r}: the supernet computes on 1/{self.parts} of the channels, so no "
                "stand-alone network has its weights; run supernet(x, genotype) instead"
            )
        return extracted(self.network, self.space, genotype).train(self.training)

    # -- helpers ---------------------------------------------------------------------------------------

    def _edges(self) -> list[Tensor]:
        """The weights of the edges, `[E]`, 1 for what is no edge of a cell; nothing without betas."""
        if self.betas is None:
            return []
        weights = torch.ones_like(self.betas)
        for members in self._nodes:
            index = self._constant(tuple(members), partial(torch.tensor, members))
            weights = weights.index_put((index,), self.betas.index_select(0, index).softmax(0))
        return [weights]

    def _without_zeros(self) -> list[tuple[int, ...]]:
        """The options but for `none`, which no gradient reaches; of a decision that has no other, all."""
        roles = self.space.trace.roles
        found = []
        for decision, options in zip(self.space.decisions, self._alive, strict=True):
            own = list(roles.get(decision.name, dict.fromkeys(decision.options, "op")).values())
            found.append(tuple(o for o in options if own[o] != "zero") or options)
        return found

    def _mask(self, rows: Sequence[int]) -> Tensor:
        """Which options `[E, O]` of some decisions are in the race."""
        alive = tuple(self._alive[i] for i in rows)
        options = len(self.space.decisions[rows[0]].options)

        def make() -> Tensor:
            return torch.tensor([[option in own for option in range(options)] for own in alive])

        return self._constant((*rows, alive), make)

    def _constant(self, name: object, make: Callable[[], Tensor]) -> Tensor:
        """A constant on the device of the alphas, which is made once: a copy from the host would wait."""
        key = (self.alphas[0].device, name)
        if key not in self._constants:
            self._constants[key] = make().to(key[0])
        return self._constants[key]

    def _by_decision(self, groups: Sequence[Tensor]) -> list[Tensor]:
        """Rows of `[E, O]` tensors in the order of the space's decisions."""
        found: dict[int, Tensor] = {}
        for members, group in zip(self._rows.values(), groups, strict=True):
            found |= dict(zip(members, group, strict=True))
        return [found[i] for i in range(len(found))]


class _Mixing:
    """The chooser that answers every decision with a `MixedOp`."""

    def __init__(self, mixture: dict[str, Share], parts: int) -> None:
        self.mixture, self.parts = mixture, parts

    def op(self, name: str, candidates: Candidates) -> nn.Module:
        return MixedOp(name, candidates, self.mixture, parts=self.parts)

    def value(self, name: str, options: Sequence[T]) -> T:
        raise SpaceError(f"decision {name!r} chooses among {list(options)}, which no supernet can mix")


def _item(options: Callable[[], Sequence[int]], at: int) -> int:
    return options()[at]


def _rows(widths: Sequence[int]) -> dict[int, list[int]]:
    """Which decisions, by position, have how many options."""
    rows: dict[int, list[int]] = {}
    for i, width in enumerate(widths):
        rows.setdefault(width, []).append(i)
    return rows
