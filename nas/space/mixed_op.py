"""The mixed operation: all candidates of one decision at one place, run as the current mixture says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.space.choosers import Candidate, Candidates, Zero, built


@dataclass(frozen=True)
class Chosen:
    """One option that is run alone.

    weight: a scalar of value 1 that its output is multiplied by; it carries the gradient to the alphas. The
      options that are not run count as the constant 1 under what is left of the weight, `1 - weight`, as in
      the code of GDAS.
    """

    option: int
    weight: Tensor


Unweighed = Tensor | int | Chosen


@dataclass(frozen=True)
class Weighed:
    """A share whose outcome, with whatever channels bypass it, is multiplied by the weight of its edge.

    weight: a scalar.
    """

    share: Unweighed
    weight: Tensor


Share = Unweighed | Weighed
Mixture = Mapping[str, Share]
"""By decision: mixture weights `[O]` over all options, the index of the one to run, or one of the above."""


@dataclass(frozen=True)
class Terms:
    """What a mixture runs of the candidates of one decision at one place.

    options: those that are run. row: a tensor with their weights, None where one runs unweighed; at: where
      each weight is in it. edge: the weight of the whole, if there is one. rest: a scalar of value 0 that is
      added to what is run, where one option was sampled, see `Chosen`.
    """

    options: tuple[int, ...]
    row: Tensor | None = None
    at: tuple[int, ...] = ()
    edge: Tensor | None = None
    rest: Tensor | None = None


class MixedOp(nn.Module):
    """The candidates of one decision at one place, run as their mixture says.

    ops: the candidates, in the order of the decision's options.
    alive: the options that a mixture of weights `[O]` runs; the others count as having weight 0.
    parts: the candidates see the first 1/parts of the channels, the rest is passed on, and then the channels
      are shuffled (Xu et al., ICLR 2020, PC-DARTS, §3.2). 1 for all channels.
    skip_dropout: probability of zeroing an entry of an identity's output while training, a scalar on the
      device (Chen et al., ICCV 2019, P-DARTS, §3.3.2); None where none is zeroed.
    """

    def __init__(
        self, decision: str, candidates: Candidates, mixture: dict[str, Share], *, parts: int = 1
    ) -> None:
        """As described. mixture: looked up whenever the operation runs; a supernet changes it."""
        super().__init__()
        self.decision, self.parts = decision, parts
        self.options = tuple(map(str, candidates))
        self.ops = nn.ModuleList(
            built(decision, option, make if parts == 1 else narrowed(decision, option, make, parts))
            for option, make in candidates.items()
        )
        self.alive = tuple(range(len(self.options)))
        self.skip_dropout: Tensor | None = None
        self._mixture = mixture

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the weighted sum of the candidates, or to the output of the one chosen."""
        terms = self.terms()
        if self.parts == 1:
            y = self._mixed(x, terms)
        else:
            size = x.shape[1] // self.parts
            y, rest = self._mixed(x[:, :size], terms), x[:, size:]
            if y.shape[2:] != rest.shape[2:]:
                rest = F.max_pool2d(rest, 2, 2, ceil_mode=True)
            y = shuffled(torch.cat([y, rest], dim=1), self.parts)
        return y if terms.edge is None else terms.edge * y

    def terms(self) -> Terms:
        """What the mixture of now runs here."""
        share: Share = self._mixture[self.decision]
        edge: Tensor | None = None
        if isinstance(share, Weighed):
            edge, share = share.weight, share.share
        if isinstance(share, int):
            return Terms((share,), edge=edge)
        if isinstance(share, Chosen):
            return Terms((share.option,), share.weight.view(1), (0,), edge, 1 - share.weight)
        live = tuple(o for o in self.alive if not isinstance(self.ops[o], Zero))
        return Terms(live, share, live, edge) if live else Terms(self.alive[:1], edge=edge)

    def _mixed(self, x: Tensor, terms: Terms) -> Tensor:
        total = self._run(terms.options[0], x)
        if terms.row is None:
            return total
        total = terms.row[terms.at[0]] * total
        for option, at in zip(terms.options[1:], terms.at[1:], strict=True):
            total = total + terms.row[at] * self._run(option, x)
        return total if terms.rest is None else total + terms.rest

    def _run(self, option: int, x: Tensor) -> Tensor:
        op = self.ops[option]
        y = cast(Tensor, op(x))
        if self.skip_dropout is None or not self.training or not isinstance(op, nn.Identity):
            return y
        return self.dropped(y)

    def dropped(self, x: Tensor) -> Tensor:
        """Zeroes entries with the probability of `skip_dropout`, scaling the others to keep the mean."""
        assert self.skip_dropout is not None
        keep = 1 - self.skip_dropout
        return x * (torch.rand_like(x, dtype=torch.float32) < keep) / keep


def narrowed(decision: str, option: str, make: object, parts: int) -> Candidate:
    """The candidate on 1/parts of its channels.

    Raises:
        SpaceError: when it is none that can be built so, or its channels cannot be divided.
    """
    if not isinstance(make, Candidate):
        raise SpaceError(
            f"decision {decision!r}, option {option!r}: partial channels need candidates that can be built "
            "with other channels; wrap it as nas.Candidate(make, c_in, c_out, stride), where make takes "
            "these three"
        )
    if make.c_in != make.c_out or make.c_in % parts:
        raise SpaceError(
            f"decision {decision!r}, option {option!r}: {make.c_in} channels in and {make.c_out} out cannot "
            f"be divided into {parts} parts; choose a width that is a multiple of {parts}, or fewer parts"
        )
    return Candidate(make.make, make.c_in // parts, make.c_out // parts, make.stride)


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Interleaves the channels `[B, C, ...]` of equal groups (Zhang et al., CVPR 2018, ShuffleNet)."""
    batch, channels, *sides = x.shape
    return x.view(batch, groups, channels // groups, *sides).transpose(1, 2).reshape(x.shape)
