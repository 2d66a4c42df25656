"""The supernet: every candidate operation of every decision lives at once and shares its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.errors import SpaceError
from nas.oneshot.relaxations import Relaxation, Softmax
from nas.space.cell import Cell
from nas.space.choosers import Candidates
from nas.space.mixed_op import Drawn, MixedOp, Mixture, Share, Unweighed, Weighed
from nas.space.ops import MixtureNorm
from nas.space.space import Space
from nas.types import Genotype


def extracted(supernet: nn.Module, space: Space, genotype: Genotype) -> nn.Module:
    """The network of one architecture with a copy of its weights in the network of a supernet.

    It is built by the space anew and given the supernet's form (no affine part), so that loading the weights
    proves that both come from the same wiring.

    Raises:
        SpaceError: when they do not.
    """
    choices = space.choices(genotype)
    state = supernet.state_dict()
    shared = {to: state[key].clone() for key, to in used(supernet, choices) if key in state}
    network = space.network(genotype, meta=True)
    as_searched(network, outermost(supernet))
    if differing := sorted(shared.keys() ^ network.state_dict().keys()):
        raise SpaceError(
            f"space {space.name!r}: the supernet and the network of {choices} differ in {differing[:3]}; "
            "build must wire both alike"
        )
    network.load_state_dict(shared, assign=True)
    return network


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


def used(
    module: nn.Module, choices: Mapping[str, str], source: str = "", target: str = ""
) -> Iterator[tuple[str, str]]:
    """Names of the tensors that one architecture uses: in the supernet, and in the network of its own."""
    if isinstance(module, MixedOp):
        chosen = module.options.index(choices[module.decision])
        yield from used(module.ops[chosen], choices, f"{source}ops.{chosen}.", target)
        return
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    yield from ((source + name, target + name) for name, _ in own)
    for name, child in module.named_children():
        yield from used(child, choices, f"{source}{name}.", f"{target}{name}.")


def outermost(network: nn.Module) -> list[str]:
    """Paths of the mixed operations that lie in no other one."""
    paths: list[str] = []
    for path, module in network.named_modules():
        if isinstance(module, MixedOp) and not any(path.startswith(f"{outer}.") for outer in paths):
            paths.append(path)
    return paths


def into_nodes(network: nn.Module, names: Sequence[str]) -> list[list[int]]:
    """The decisions, by position, on the edges into each node of each kind of cell; each in one group."""
    position = {name: i for i, name in enumerate(names)}
    found: list[list[int]] = []
    seen: set[int] = set()
    for cell in network.modules():
        for incoming in cell.incoming if isinstance(cell, Cell) else ():
            ops = [op for op in cast(nn.ModuleList, incoming) if isinstance(op, MixedOp)]
            members = list(dict.fromkeys(position[op.decision] for op in ops))
            if members and seen.isdisjoint(members):
                found.append(members)
                seen.update(members)
    return found


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


@contextmanager
def kept(tensors: Iterable[Tensor]) -> Iterator[Callable[[], None]]:
    """Runs a block, then gives the tensors back their values; so does calling what the block is given."""
    own = [tensor.detach() for tensor in tensors]
    saved = [torch.empty_like(tensor) for tensor in own]
    _put(saved, own)

    def back() -> None:
        _put(own, saved)

    try:
        yield back
    finally:
        back()


@torch.no_grad()
def _put(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Gives tensors values, all of a type in one call: a supernet has thousands, each a launch of its own."""
    for kind in dict.fromkeys(tensor.dtype for tensor in tensors):
        pairs = [(a, b) for a, b in zip(tensors, values, strict=True) if a.dtype == kind]
        torch._foreach_copy_([a for a, _ in pairs], [b for _, b in pairs])


@contextmanager
def in_training(network: nn.Module) -> Iterator[None]:
    """Runs a block with batch-norm on batch statistics, without drop-path or dropout on identities.

    Batch-norm records none of these statistics: a graph that is to be differentiated twice must not see them
    change.
    """
    before = {module: module.training for module in network.modules()}
    rates = {cell: cell.drop_path for cell in network.modules() if isinstance(cell, Cell)}
    skips = {op: op.skip_dropout for op in network.modules() if isinstance(op, MixedOp)}
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    recording = [norm.track_running_stats for norm in norms]
    network.train()
    for norm in norms:
        norm.track_running_stats = False
    for cell in rates:
        cell.drop_path = 0.0
    for op in skips:
        op.skip_dropout = None
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode
        for norm, records in zip(norms, recording, strict=True):
            norm.track_running_stats = records
        for cell, rate in rates.items():
            cell.drop_path = rate
        for op, share in skips.items():
            op.skip_dropout = share


@contextmanager
def without_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Runs a block in which no gradients of the parameters are computed, whatever they have had before."""
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad = True


def copied(state: Any) -> Any:  # noqa: ANN401 - whatever a state is made of
    """A copy of a state, its tensors on the CPU; of dicts, lists, tuples, tensors and plain values."""
    if isinstance(state, Tensor):
        return torch.empty_like(state, device="cpu").copy_(state.detach())
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(copied(value) for value in state)
    return state
