"""Cells: small directed acyclic graphs with their operations on the edges (`Cell`) or on the vertices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn

from nas.errors import SpaceError, shown
from nas.space.choosers import Zero


class Cell(nn.Module):
    """A dense graph: every computed node sums one operation of every earlier node.

    kind: cells of one kind share their decisions ("normal", "reduce").
    inputs: number of input feature maps, nodes 0 to `inputs - 1`.
    nodes: number of computed nodes after them.
    edge: called once as `edge(src, dst)` for every `src < dst`; returns that edge's operation.
    concat: output all computed nodes side by side (DARTS), or else the last one (NAS-Bench-201).
    preprocess: one module for each input, or none at all.
    drop_path: probability, a number or a scalar, of dropping an edge's output for one image while training
      (Larsson et al. 2017, FractalNet, §3, as used by DARTS); identities are never dropped, and in a
      supernet the whole mixture of an edge is.
    recompute: runs the cell's function in place of a plain call while training, e.g. so that its inner maps
      are computed again in the backward pass.
    execute: computes the nodes from the inputs, which it preprocesses too, in place of one module after the
      other.
    """

    def __init__(
        self,
        kind: str,
        inputs: int,
        nodes: int,
        edge: Callable[[int, int], nn.Module],
        *,
        concat: bool = False,
        preprocess: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        _check_kind(kind)
        if inputs < 1 or nodes < 1 or len(preprocess) not in (0, inputs):
            raise SpaceError(
                f"cell {kind!r}: got {inputs} inputs, {nodes} nodes, {len(preprocess)} preprocess modules; "
                "wanted at least one of each of the first two and none or one module for each input"
            )
        self.kind, self.inputs, self.concat = kind, inputs, concat
        self.drop_path: float | Tensor = 0.0
        self.recompute: Callable[..., Tensor] | None = None
        self.execute: Callable[[Cell, list[Tensor]], list[Tensor]] | None = None
        self.preprocess = nn.ModuleList(preprocess or [nn.Identity() for _ in range(inputs)])
        self.incoming = nn.ModuleList(
            nn.ModuleList(_checked(f"{kind!r}: edge({src}, {dst})", edge(src, dst)) for src in range(dst))
            for dst in range(inputs, inputs + nodes)
        )

    @property
    def drops(self) -> bool:
        """Whether paths are dropped; a scalar is not looked at, since that would wait for its device."""
        return self.training and (isinstance(self.drop_path, Tensor) or self.drop_path > 0)

    def edges(self) -> Iterator[tuple[int, int, nn.Module]]:
        """Every `(src, dst, operation)`, grouped by `dst`."""
        for dst, ops in enumerate(self.incoming, start=self.inputs):
            for src, op in enumerate(cast(nn.ModuleList, ops)):
                yield src, dst, op

    def forward(self, *inputs: Tensor) -> Tensor:
        """`inputs` maps `[B, C, H, W]` to one `[B, nodes * C, H, W]` (concat) or `[B, C, H, W]`."""
        if self.recompute is not None and self.training and torch.is_grad_enabled():
            return self.recompute(self._run, *inputs)
        return self._run(*inputs)

    def _run(self, *inputs: Tensor) -> Tensor:
        nodes = (self.execute or Cell.plain)(self, list(inputs))
        return torch.cat(nodes, dim=1) if self.concat else nodes[-1]

    def plain(self, inputs: list[Tensor]) -> list[Tensor]:
        """The maps of the computed nodes from those of the inputs, one module after the other."""
        return self.computed(self.preprocessed(inputs))

    def preprocessed(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The maps that the edges read."""
        return [pre(x) for pre, x in zip(self.preprocess, inputs, strict=True)]

    def computed(self, states: list[Tensor]) -> list[Tensor]:
        """The same from the preprocessed inputs."""
        states = list(states)
        for ops in self.incoming:
            states.append(self._node(cast(nn.ModuleList, ops), states))
        return states[self.inputs :]

    def _node(self, ops: nn.ModuleList, states: list[Tensor]) -> Tensor:
        live = [(op, x) for op, x in zip(ops, states, strict=True) if not isinstance(op, Zero)]
        if not live:
            return cast(Tensor, ops[0](states[0]))
        return reduce(torch.add, (self._edge(op, x) for op, x in live))

    def _edge(self, op: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = op(x)
        return y * drop_mask(y, self.drop_path) if self.drops and not isinstance(op, nn.Identity) else y


class VertexCell(nn.Module):
    """A graph whose operations stand on its vertices; an edge only says who reads what.

    kind: cells of one kind share their decisions.
    edges: pairs `(src, dst)` with `src < dst`. Vertex 0 is the input, the last one the output, and every
      vertex that occurs lies between the two; the numbers of others may be left out.
    vertex: called once as `vertex(dst, sources)` for every vertex but the input, in order; returns the module
      that takes the maps of `sources`, as so many arguments, to that of `dst`.
    decisions: names of the decisions on plain values that `edges` alone shows, so that graphs leave them out.
    """

    def __init__(
        self,
        kind: str,
        edges: Sequence[tuple[int, int]],
        vertex: Callable[[int, tuple[int, ...]], nn.Module],
        *,
        decisions: Sequence[str] = (),
    ) -> None:
        super().__init__()
        _check_kind(kind)
        self.kind, self.decisions = kind, tuple(decisions)
        self.sources = _sources(kind, edges)
        self.vertices = nn.ModuleDict()
        for dst, sources in self.sources.items():
            self.vertices[str(dst)] = _checked(f"{kind!r}: vertex({dst}, {sources})", vertex(dst, sources))

    def edges(self) -> Iterator[tuple[int, int]]:
        """Every `(src, dst)`, grouped by `dst`."""
        for dst, sources in self.sources.items():
            for src in sources:
                yield src, dst

    def forward(self, x: Tensor) -> Tensor:
        """A map `[B, C, H, W]` to that of the last vertex."""
        states = {0: x}
        for (dst, sources), op in zip(self.sources.items(), self.vertices.values(), strict=True):
            states[dst] = op(*(states[src] for src in sources))
        return states[dst]


CELLS = (Cell, VertexCell)
"""Both kinds, for `isinstance`."""


def drop_mask(x: Tensor, probability: float | Tensor) -> Tensor:
    """Factors `[B, 1, ...]` that zero images of `x` with `probability` and scale others to keep the mean."""
    shape = (len(x), *[1] * (x.ndim - 1))
    keep = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(1 - probability)
    return keep / (1 - probability)


def _check_kind(kind: str) -> None:
    """Refuses what no picture and no GraphML could hold."""
    if not 0 < len(kind) <= 200 or not kind.isprintable():
        raise SpaceError(f"a cell's kind is {shown(kind)}, but must be printable text of 1 to 200 characters")


def _checked(who: str, op: object) -> nn.Module:
    if not isinstance(op, nn.Module):
        raise SpaceError(f"cell {who} returned {op!r}, wanted an nn.Module")
    return op


def _sources(kind: str, edges: Sequence[tuple[int, int]]) -> dict[int, tuple[int, ...]]:
    """What each vertex but the input reads, both in ascending order."""
    reading = {dst for _, dst in edges}
    read = {src for src, _ in edges}
    output = max(reading, default=0)
    if not edges or any(src >= dst for src, dst in edges) or reading ^ read != {0, output}:
        raise SpaceError(
            f"cell {kind!r}: got the edges {list(edges)}; wanted each to lead to a later vertex, and a path "
            "from vertex 0 to the last one through every vertex"
        )
    return {dst: tuple(sorted({a for a, b in edges if b == dst})) for dst in sorted(reading)}
