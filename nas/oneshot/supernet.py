"""The supernet: every candidate operation of every decision lives at once and shares its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from types import TracebackType
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from nas.errors import SpaceError
from nas.oneshot.relaxations import Relaxation, Softmax
from nas.space.cell import Cell
from nas.space.choosers import Candidates
from nas.space.mixed_op import Chosen, MixedOp, Mixture, Share, Unweighed, Weighed
from nas.space.ops import MixtureNorm
from nas.space.space import Space
from nas.types import Genotype

T = TypeVar("T")
Mixtures = Sequence[Tensor]
"""Mixture weights `[D, O]`, and where edges are weighed against each other their weights `[D]`, too."""


class Supernet(nn.Module):
    """All architectures of a space in one module.

    alphas: `[D, O]`, a row for each decision in the space's order, O the options of the largest; drawn as
      1e-3 N(0, 1) (the code of DARTS). Options that a decision does not have are out of the race.
    betas: with `edge_norm`, `[D]`; those of the edges into one node of a `Cell` are softmaxed and weigh these
      edges (Xu et al., ICLR 2020, PC-DARTS, §3.3). Drawn like the alphas.
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
        self._mixture: dict[str, Share] = {}
        self.network = space.supernet(_Mixing(self._mixture, parts))
        # A step asks for them; to look for them among all modules takes longer than a GPU does for the step.
        self.mixed_ops = [module for module in self.network.modules() if isinstance(module, MixedOp)]
        as_searched(self.network, outermost(self.network))
        self._names = [d.name for d in space.decisions]
        widths = [len(d.options) for d in space.decisions]
        self.alphas = nn.Parameter(1e-3 * torch.randn(len(widths), max(widths, default=1)))
        self.betas = nn.Parameter(1e-3 * torch.randn(len(self._names))) if edge_norm else None
        self._into_nodes: Tensor
        self.register_buffer("_into_nodes", edges_into_nodes(self.network, self._names), persistent=False)
        self._in_race: Tensor
        self.register_buffer("_in_race", torch.ones_like(self.alphas, dtype=torch.bool), persistent=False)
        zeros = self.relaxation.competes
        self.keep([range(n) if zeros else _without_zeros(space, i) for i, n in enumerate(widths)])

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

    def mixture(self, weights: Mixtures | None = None, *, full: bool = False) -> dict[str, Share]:
        """What each decision runs under the given mixture weights, else under those of now.

        full: run all options, although the relaxation draws one of them in training.
        """
        if weights is None:
            weights = self.mixture_weights(expected=not self.training)
        shares: list[Unweighed] = list(weights[0])
        if not full and self.training and self.relaxation.samples_one_path:  # waits for the device
            options = weights[0].argmax(-1).tolist()
            shares = [Chosen(option, row[option]) for option, row in zip(options, weights[0], strict=True)]
        if self.betas is None:
            return dict(zip(self._names, shares, strict=True))
        weighed = [Weighed(share, edge) for share, edge in zip(shares, weights[1], strict=True)]
        return dict(zip(self._names, weighed, strict=True))

    def expected_mixture(self) -> dict[str, Share]:
        """All options under the weights that the mixture has in the mean."""
        return self.mixture(self.mixture_weights(expected=True), full=True)

    def path(self, genotype: Genotype) -> dict[str, Share]:
        """The mixture that runs one architecture only."""
        self.space.check(genotype)
        return dict(zip(self._names, genotype, strict=True))

    # -- what is searched ------------------------------------------------------------------------------

    def architecture(self) -> list[nn.Parameter]:
        """What a search moves beside the weights: the alphas, and the betas if there are any."""
        return [self.alphas] if self.betas is None else [self.alphas, self.betas]

    def weights(self) -> list[nn.Parameter]:
        """Everything trained but the alphas and betas."""
        return list(self.network.parameters())

    def logits(self) -> Tensor:
        """The alphas `[D, O]`, minus infinity where an option is out of the race."""
        return torch.where(self._in_race, self.alphas, -torch.inf)

    def mixture_weights(self, *, expected: bool = False) -> list[Tensor]:
        """The relaxed alphas `[D, O]`, and the edges' weights `[D]` if they are normalised: a `Mixtures`.

        expected: without any draw.
        """
        relaxation, alphas = self.relaxation, self.logits()
        mixed = relaxation.expected(alphas) if expected else relaxation.mix(alphas, self.progress)
        return [mixed] if self.betas is None else [mixed, _edge_weights(self.betas, self._into_nodes)]

    @torch.no_grad()
    def preferences(self) -> Tensor:
        """How much each option is preferred to the others of its decision, `[D, O]` like the alphas."""
        return self.relaxation.strength(self.logits())

    @torch.no_grad()
    def strengths(self) -> list[NDArray[np.float64]]:
        """How much each option is preferred, `[O]` in [0, 1] for each decision in the space's order.

        Edges that are weighed against each other are preferred by their weight, too.
        """
        rows = self.preferences().double()
        if self.betas is not None:
            rows *= _edge_weights(self.betas, self._into_nodes)[:, None]
        decisions = self.space.decisions
        return [row[: len(d.options)] for d, row in zip(decisions, rows.cpu().numpy(), strict=True)]

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
        race = [[o in options for o in range(self.alphas.shape[1])] for options in self._alive]
        self._in_race.copy_(torch.tensor(race).view(self._in_race.shape))
        by_name = dict(zip(self._names, self._alive, strict=True))
        for mixed in self.mixed_ops:
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
        logs = [(row / row.sum()).log() for row in rows]
        self.set_alphas([row - row.mean() for row in logs])

    @torch.no_grad()
    def set_alphas(self, rows: Sequence[Tensor]) -> None:
        """Sets the alphas to one row `[O]` for each decision in the space's order."""
        for alphas, row in zip(self.alphas, rows, strict=True):
            alphas[: len(row)] = row

    def drop_skips(self, probability: float) -> None:
        """Sets the dropout on identities, in [0, 1)."""
        self.skip_dropout.fill_(probability)
        for mixed in self.mixed_ops:
            mixed.skip_dropout = self.skip_dropout if probability else None

    # -- leaving ---------------------------------------------------------------------------------------

    def extract(self, genotype: Genotype) -> nn.Module:
        """The stand-alone network of one architecture with a copy of its shared weights.

        It is built by the space anew and given the supernet's form (no affine part), so that loading the
        weights proves that both come from the same wiring.

        Raises:
            SpaceError: when they do not, or when only a part of the channels was computed on, so that the
              weights do not fit.
        """
        space, choices = self.space, self.space.choices(genotype)
        if self.parts > 1:
            raise SpaceError(
                f"space {space.name!r}: the supernet computes on 1/{self.parts} of the channels, so no "
                "stand-alone network has its weights; run supernet(x, genotype) instead"
            )
        state = self.network.state_dict()
        shared = {to: state[key].clone() for key, to in used(self.network, choices) if key in state}
        network = space.network(genotype, meta=True)
        as_searched(network, outermost(self.network))
        if differing := sorted(shared.keys() ^ network.state_dict().keys()):
            raise SpaceError(
                f"space {space.name!r}: the supernet and the network of {choices} differ in {differing[:3]}; "
                "build must wire both alike"
            )
        network.load_state_dict(shared, assign=True)
        return network.train(self.training)


class _Mixing:
    """The chooser that answers every decision with a `MixedOp`."""

    def __init__(self, mixture: dict[str, Share], parts: int) -> None:
        self.mixture, self.parts = mixture, parts

    def op(self, name: str, candidates: Candidates) -> nn.Module:
        return MixedOp(name, candidates, self.mixture, parts=self.parts)

    def value(self, name: str, options: Sequence[T]) -> T:
        raise SpaceError(f"decision {name!r} chooses among {list(options)}, which no supernet can mix")


def _edge_weights(betas: Tensor, into_nodes: Tensor) -> Tensor:
    """`[E]`, softmaxed over the edges into each node; 1 for what is no edge of a cell."""
    rows = torch.where(into_nodes, betas, -torch.inf).softmax(-1)
    return rows.sum(0) + ~into_nodes.any(0)


def _without_zeros(space: Space, decision: int) -> Sequence[int]:
    """The options but for `none`, which no gradient reaches; of a decision that has no other, all."""
    options = space.decisions[decision].options
    roles = space.trace.roles.get(space.decisions[decision].name, dict.fromkeys(options, "op"))
    return [o for o, role in enumerate(roles.values()) if role != "zero"] or range(len(options))


# -- a network inside a supernet --------------------------------------------------------------------------


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


def edges_into_nodes(network: nn.Module, names: Sequence[str]) -> Tensor:
    """Which decisions are on the edges into each node of each kind of cell, `[nodes, E]` bool."""
    nodes: list[set[str]] = []
    for cell in network.modules():
        for incoming in cell.incoming if isinstance(cell, Cell) else ():
            own = {op.decision for op in cast(nn.ModuleList, incoming) if isinstance(op, MixedOp)}
            if own and not any(own & other for other in nodes):
                nodes.append(own)
    rows = [[name in own for name in names] for own in nodes]
    return torch.tensor(rows, dtype=torch.bool).view(len(nodes), len(names))


# -- blocks of code that leave a supernet as it was -------------------------------------------------------


@contextmanager
def preserving(tensors: Iterable[Tensor]) -> Iterator[Callable[[], None]]:
    """Runs a block, then gives the tensors back their values; so does calling what the block is given."""
    own = [tensor.detach() for tensor in tensors]
    saved = [torch.empty_like(tensor) for tensor in own]
    _put(saved, own)
    restore = partial(_put, own, saved)
    try:
        yield restore
    finally:
        restore()


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
    before = [(module, "training", module.training) for module in network.modules()]
    changed: list[tuple[nn.Module, str, Any, Any]] = []
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            changed.append((module, "track_running_stats", module.track_running_stats, False))
        elif isinstance(module, Cell):
            changed.append((module, "drop_path", module.drop_path, 0.0))
        elif isinstance(module, MixedOp):
            changed.append((module, "skip_dropout", module.skip_dropout, None))
    network.train()
    for module, name, _, now in changed:
        setattr(module, name, now)
    try:
        yield
    finally:
        for module, name, value in [*before, *(entry[:3] for entry in changed)]:
            setattr(module, name, value)


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


# -- activation checkpointing -----------------------------------------------------------------------------


def recompute_cells(supernet: Supernet, *, enabled: bool) -> None:
    """Makes the cells of a supernet keep only their inputs while training (Chen et al. 2016), or not."""
    for cell in supernet.network.modules():
        if isinstance(cell, Cell):
            cell.recompute = partial(_recomputed, supernet, cell) if enabled else None


def _recomputed(supernet: Supernet, cell: Cell, forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    def contexts() -> tuple[Any, Any]:
        return nullcontext(), _SecondPass(supernet, cell)

    out: Tensor = checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)
    return out


class _SecondPass:
    """The second pass of a cell sees the first one's mixture and leaves the running statistics alone.

    It is entered once for every backward pass through the same graph.
    """

    def __init__(self, supernet: Supernet, cell: Cell) -> None:
        self._supernet, self._cell, self._mixture = supernet, cell, dict(supernet._mixture)
        self._preserved = ExitStack()

    def __enter__(self) -> None:
        self._supernet._mixture.update(self._mixture)
        self._preserved.enter_context(preserving(self._cell.buffers()))

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._preserved.close()
        self._supernet._mixture.clear()
