"""The supernet: every candidate operation of every decision lives at once and shares its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.cell import Cell
from nas.choosers import Candidates, built
from nas.errors import SpaceError
from nas.oneshot.relaxations import Relaxation, softmax
from nas.ops import MixtureNorm, Zero
from nas.space import Space
from nas.types import Genotype

T = TypeVar("T")
Mixture = Mapping[str, Tensor | int]
"""Per decision name: mixture weights `[O]` over all options, or the index of the one option to run."""


class Supernet(nn.Module):
    """All architectures of a space in one module.

    alphas: one parameter `[E, O]` for each set of E decisions with equally many options O, in the order of
      the space's decisions; drawn as 1e-3 N(0, 1) (the code of DARTS).
    relax: maps alphas to mixture weights.

    Inside cells and candidates batch-norm has no affine part, which would rescale what the alphas weigh
    (Liu et al. 2019, §A.1.1).
    """

    def __init__(self, space: Space, *, relax: Relaxation = softmax) -> None:
        super().__init__()
        self.space, self.relax = space, relax
        self._mixture: dict[str, Tensor | int] = {}
        self.network = space.supernet(_Mixing(self._mixture))
        as_searched(self.network, _outermost(self.network))
        self._rows = _rows([len(d.options) for d in space.decisions])
        self.alphas = nn.ParameterList(
            1e-3 * torch.randn(len(rows), options) for options, rows in self._rows.items()
        )

    def forward(self, x: Tensor, genotype: Genotype | None = None) -> Tensor:
        """Images `[B, C, H, W]` to logits `[B, classes]`: of the mixture, or of one architecture's path."""
        return self.mix(x, self.mixture() if genotype is None else self.path(genotype))

    def mix(self, x: Tensor, mixture: Mixture) -> Tensor:
        """The output under any mixture."""
        self._mixture.update(mixture)
        out: Tensor | tuple[Tensor, ...] = self.network(x)
        self._mixture.clear()
        return out[0] if isinstance(out, tuple) else out

    def mixture(self) -> dict[str, Tensor]:
        """The relaxed alphas, `[O]` for each decision name."""
        names = [d.name for d in self.space.decisions]
        found: dict[str, Tensor] = {}
        for rows, alphas in zip(self._rows.values(), self.alphas, strict=True):
            found |= {names[row]: weights for row, weights in zip(rows, self.relax(alphas), strict=True)}
        return found

    def path(self, genotype: Genotype) -> dict[str, int]:
        """The mixture that runs one architecture only."""
        self.space.check(genotype)
        return {d.name: option for d, option in zip(self.space.decisions, genotype, strict=True)}

    def strengths(self) -> list[NDArray[np.float64]]:
        """The softmax of the alphas, `[O]` for each decision in the space's order."""
        found = {
            row: values
            for rows, alphas in zip(self._rows.values(), self.alphas, strict=True)
            for row, values in zip(rows, alphas.detach().double().softmax(-1).cpu().numpy(), strict=True)
        }
        return [found[i] for i in range(len(found))]

    def genotype(self) -> Genotype:
        """Discretises: the valid architecture that the alphas prefer."""
        return self.space.nearest(self.strengths())

    def weights(self) -> list[nn.Parameter]:
        """Everything trained but the alphas."""
        return list(self.network.parameters())

    def extract(self, genotype: Genotype) -> nn.Module:
        """The stand-alone network of one architecture with a copy of its shared weights.

        It is built by the space anew and given the supernet's form (no affine part), so that loading
        the weights proves that both come from the same wiring.
        """
        choices = self.space.choices(genotype)
        state = self.network.state_dict()
        shared = {to: state[key].clone() for key, to in _used(self.network, choices) if key in state}
        network = self.space.network(genotype, meta=True)
        as_searched(network, _outermost(self.network))
        expected = network.state_dict().keys()
        if differing := sorted(shared.keys() ^ expected):
            raise SpaceError(
                f"space {self.space.name!r}: the supernet and the network of {choices} differ in "
                f"{differing[:3]}; build must wire both alike"
            )
        network.load_state_dict(shared, assign=True)
        return network.train(self.training)


class MixedOp(nn.Module):
    """The candidates of one decision at one place, run as their mixture says.

    ops: the candidates, in the order of the decision's options.
    """

    def __init__(self, decision: str, candidates: Candidates, mixture: Mapping[str, Tensor | int]) -> None:
        super().__init__()
        self.decision = decision
        self.options = tuple(map(str, candidates))
        self.ops = nn.ModuleList(built(decision, option, make) for option, make in candidates.items())
        self._mixture = mixture

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the weighted sum of all candidates, or to the output of the one chosen."""
        weights = self._mixture[self.decision]
        if isinstance(weights, int):
            return cast(Tensor, self.ops[weights](x))
        live = [(w, op) for w, op in zip(weights.unbind(), self.ops, strict=True) if not isinstance(op, Zero)]
        if not live:
            return cast(Tensor, self.ops[0](x))
        total = live[0][0] * live[0][1](x)
        for weight, op in live[1:]:
            total = total + weight * op(x)
        return cast(Tensor, total)


def as_searched(network: nn.Module, places: Iterable[str] = ()) -> None:
    """Gives a network the form it has inside a supernet, in all its cells and at the paths in `places`.

    Batch-norm loses its affine part, and the norms that exist only in a mixture are switched on.
    """
    cells = [module for module in network.modules() if isinstance(module, Cell)]
    for root in [*cells, *(network.get_submodule(place) for place in places)]:
        for module in root.modules():
            if isinstance(module, MixtureNorm):
                module.active = True
            elif isinstance(module, nn.BatchNorm2d):
                module.affine = False
                module.weight = module.bias = None  # type: ignore[assignment]


class _Mixing:
    """The chooser that answers every decision with a `MixedOp`."""

    def __init__(self, mixture: Mapping[str, Tensor | int]) -> None:
        self.mixture = mixture

    def op(self, name: str, candidates: Candidates) -> nn.Module:
        return MixedOp(name, candidates, self.mixture)

    def value(self, name: str, options: Sequence[T]) -> T:
        raise SpaceError(f"decision {name!r} chooses among {list(options)}, which no supernet can mix")


def _rows(widths: Sequence[int]) -> dict[int, list[int]]:
    """Which decisions, by position, have how many options."""
    rows: dict[int, list[int]] = {}
    for i, width in enumerate(widths):
        rows.setdefault(width, []).append(i)
    return rows


def _outermost(network: nn.Module) -> list[str]:
    """Paths of the mixed operations that lie in no other one."""
    paths: list[str] = []
    for path, module in network.named_modules():
        if isinstance(module, MixedOp) and not any(path.startswith(f"{outer}.") for outer in paths):
            paths.append(path)
    return paths


def _used(
    module: nn.Module, choices: Mapping[str, str], source: str = "", target: str = ""
) -> Iterator[tuple[str, str]]:
    """Names of the tensors that one architecture uses: in the supernet, and in its own network."""
    if isinstance(module, MixedOp):
        chosen = module.options.index(choices[module.decision])
        yield from _used(module.ops[chosen], choices, f"{source}ops.{chosen}.", target)
        return
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    yield from ((source + name, target + name) for name, _ in own)
    for name, child in module.named_children():
        yield from _used(child, choices, f"{source}{name}.", f"{target}{name}.")
