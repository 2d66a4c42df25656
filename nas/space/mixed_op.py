"""The mixed operation: all candidates of one decision at one place, run as the current mixture says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.space.choosers import Candidates, built
from nas.space.ops import Candidate, Zero


@dataclass(frozen=True)
class Chosen:
    """One option that is run alone.

    weight: a scalar that its output is multiplied by; it carries the gradient to the alphas.
    """

    option: int
    weight: Tensor


@dataclass(frozen=True)
class Drawn:
    """One option that is run alone; which, the device knows, and Python only if it asks and waits.

    row: [O] weights, 0 but for that option. ask: gives the option.
    """

    row: Tensor
    ask: Callable[[], int]

    def chosen(self) -> Chosen:
        """The same, known to Python."""
        option = self.ask()
        return Chosen(option, self.row[option])


@dataclass(frozen=True)
class Many:
    """Another option for each of G groups of equally many images that follow each other in the batch.

    options: [G]
    """

    options: tuple[int, ...]


Unweighed = Tensor | int | Chosen | Drawn | Many


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


def chosen_of(mixture: Mixture) -> list[int]:
    """The options that a mixture runs alone, of the decisions for which it does; waits for the device."""
    shares = (share.share if isinstance(share, Weighed) else share for share in mixture.values())
    known = (share.chosen() if isinstance(share, Drawn) else share for share in shares)
    return [s.option if isinstance(s, Chosen) else s for s in known if isinstance(s, Chosen | int)]


@dataclass(frozen=True)
class Terms:
    """What a mixture runs of the candidates of one decision at one place.

    options: those that are run. row: a tensor with their weights, None where one runs unweighed; at: where
      each weight is in it. edge: the weight of the whole, if there is one.
    """

    options: tuple[int, ...]
    row: Tensor | None = None
    at: tuple[int, ...] = ()
    edge: Tensor | None = None


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
        share = self._mixture[self.decision]
        if isinstance(share, Weighed):
            return share.weight * self._whole(x, share.share)
        return self._whole(x, share)

    def terms(self) -> Terms | None:
        """What the mixture of now runs; None where it differs from one part of the batch to another."""
        share = self._mixture[self.decision]
        edge = share.weight if isinstance(share, Weighed) else None
        inner = share.share if isinstance(share, Weighed) else share
        if isinstance(inner, Many):
            return None
        if isinstance(inner, int):
            return Terms((inner,), edge=edge)
        live = tuple(self._live())
        if isinstance(inner, Drawn):
            inner = inner.chosen()
        if isinstance(inner, Chosen):
            return Terms((inner.option,), inner.weight.view(1), (0,), edge)
        return Terms(live, inner, live, edge) if live else Terms(self.alive[:1], edge=edge)

    def _live(self) -> list[int]:
        return [option for option in self.alive if not isinstance(self.ops[option], Zero)]

    def _whole(self, x: Tensor, share: Unweighed) -> Tensor:
        """On all channels, with those that bypass the candidates."""
        if self.parts == 1:
            return self._mixed(x, share)
        size = x.shape[1] // self.parts
        y, rest = self._mixed(x[:, :size], share), x[:, size:]
        if y.shape[2:] != rest.shape[2:]:
            rest = F.max_pool2d(rest, 2, 2, ceil_mode=True)
        return shuffled(torch.cat([y, rest], dim=1), self.parts)

    def _mixed(self, x: Tensor, share: Unweighed) -> Tensor:
        if isinstance(share, int):
            return self._run(share, x)
        if isinstance(share, Drawn):
            share = share.chosen()
        if isinstance(share, Chosen):
            return share.weight * self._run(share.option, x)
        if isinstance(share, Many):
            return self._many(x, share.options)
        live = self._live()
        if not live:
            return self._run(self.alive[0], x)
        total = share[live[0]] * self._run(live[0], x)
        for option in live[1:]:
            total = total + share[option] * self._run(option, x)
        return total

    def _many(self, x: Tensor, options: tuple[int, ...]) -> Tensor:
        """Every option once, on all groups that chose it."""
        if len(distinct := sorted(set(options))) == 1:
            return self._run(distinct[0], x)
        groups, found = x.chunk(len(options)), dict[int, Tensor]()
        for option in distinct:
            rows = [g for g, chosen in enumerate(options) if chosen == option]
            # Not by an index, which would be copied to the device and waited for.
            y = self._on(rows, option, torch.cat([groups[row] for row in rows]))
            found |= zip(rows, y.chunk(len(rows)), strict=True)
        return torch.cat([found[g] for g in range(len(options))])

    def _on(self, rows: list[int], option: int, x: Tensor) -> Tensor:
        """One option on some groups; decisions inside of it see these groups only."""
        whole = dict(self._mixture)
        for module in self.ops[option].modules():
            if isinstance(module, MixedOp) and isinstance(share := whole[module.decision], Many):
                self._mixture[module.decision] = Many(tuple(share.options[row] for row in rows))
        y = self._run(option, x)
        self._mixture.update(whole)
        return y

    def _run(self, option: int, x: Tensor) -> Tensor:
        op = self.ops[option]
        y = cast(Tensor, op(x))
        return self.dropped(y) if self.training and isinstance(op, nn.Identity) else y

    def dropped(self, x: Tensor) -> Tensor:
        """Zeroes entries with the probability of `skip_dropout`, scaling the others to keep the mean."""
        if self.skip_dropout is None:
            return x
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
