"""NAS-Bench-101 (Ying et al., ICML 2019): 423,624 cells of up to 7 vertices, written in 1,824,025 ways.

A cell has at most 9 edges; operations stand on the vertices. The network is that of the published code: a 3x3
stem, stacks of cells with a max-pool and twice the channels from one to the next, global pooling and a linear
classifier. Batch-norm keeps torch's momentum of 0.1, where the published 0.003 needs thousands of steps
before a network can be evaluated.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial, reduce
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.errors import SpaceError, unknown
from nas.space.cell import VertexCell
from nas.space.choosers import Chooser
from nas.space.space import Notation, Scores, Space
from nas.types import Decision, Genotype

Edge = tuple[int, int]
OPTIONS = ("conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3")
VERTICES, MAX_EDGES = 7, 9
OUTPUT = VERTICES - 1
INNER = range(1, OUTPUT)
EDGES: tuple[Edge, ...] = tuple((src, dst) for dst in range(1, VERTICES) for src in range(dst))
NAMES = tuple(f"{src}->{dst}" for src, dst in EDGES)
COUNT = 1_824_025
"""Genotypes, of which isomorphic ones differ in the order of their vertices."""

RESIDUAL = [[0, 1, 0, 0, 1], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]
"""Three 3x3 convolutions in a row beside a shortcut: 93.51 % on CIFAR-10."""


def nasbench101(
    width: int = 128, stacks: int = 3, cells: int = 3, classes: int = 10, in_channels: int = 3
) -> Space:
    """Images `[B, in_channels, H, W]` to `[B, classes]`; `width` channels in the first of `stacks` stacks.

    A genotype is one choice of 0 or 1 for each of `EDGES` and then one of `OPTIONS` for each inner vertex;
    vertices off every path from input to output have no edges and the first option.
    """
    # All inner vertices may feed the output, which divides its channels among them.
    for name, value, least in (("width", width, len(INNER)), ("stacks", stacks, 1), ("cells", cells, 1)):
        if value < least:
            raise SpaceError(f"{name} is {value}, but must be at least {least}")

    def build(choose: Chooser) -> nn.Module:
        edges = prune(e for e, name in zip(EDGES, NAMES, strict=True) if choose.value(name, (0, 1)))
        blocks: list[nn.Module] = [conv_bn_relu(in_channels, width, kernel=3)]
        for stack in range(stacks):
            c_in, c_out = width << max(0, stack - 1), width << stack
            if stack:
                blocks.append(nn.MaxPool2d(2, stride=2, ceil_mode=True))
            blocks += [_cell(choose, edges, c_out if i else c_in, c_out) for i in range(cells)]
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(*blocks, head, nn.Linear(c_out, classes))

    notation = Notation(to_json, from_json)
    return Space(
        "nasbench101",
        build,
        project,
        count=COUNT,
        notation=notation,
        conditional=False,
        default=from_json(json.dumps({"matrix": RESIDUAL, "ops": ["input", *3 * OPTIONS[:1], "output"]})),
    )


# -- what is valid ------------------------------------------------------------------------------------


def project(decisions: Sequence[Decision], scores: Scores) -> Genotype:  # noqa: ARG001 - a projection's signature
    """The valid cell that has the strongest preference of all edges, and the greatest total score besides.

    Exact, by comparing all 13,839 wirings. Of uniform noise it gives mostly cells of 6 or 7 vertices and 9
    edges; the published sampler, which draws every edge with probability 1/2 and prunes, gives smaller ones.
    """
    gains = np.array([off_on[1] - off_on[0] for off_on in scores[: len(EDGES)]])
    # So much that all others together cannot outvote it: an edge forced on or off stays so.
    gains[np.abs(gains).argmax()] *= len(EDGES)
    wiring = wirings()[np.argmax(wirings() @ gains)]
    live = {dst for (_, dst), on in zip(EDGES, wiring, strict=True) if on}
    ops = [
        int(np.argmax(row)) if v in live else 0 for v, row in zip(INNER, scores[len(EDGES) :], strict=True)
    ]
    return (*map(int, wiring), *ops)


@cache
def wirings() -> NDArray[np.float64]:
    """Every valid choice of edges, `[13839, 21]` of 0 and 1: pruned, and at most 9.

    Pruned means that an inner vertex is read exactly if it reads; edges only lead forward, so each then lies
    on a path from input to output.
    """
    codes = np.arange(1 << len(EDGES), dtype=np.uint32)

    def any_of(chosen: Callable[[Edge], bool]) -> NDArray[np.bool_]:
        return codes & sum(1 << i for i, edge in enumerate(EDGES) if chosen(edge)) > 0

    valid = (np.bitwise_count(codes) <= MAX_EDGES) & any_of(lambda e: e[1] == OUTPUT)
    for v in INNER:
        valid &= any_of(lambda e: e[0] == v) == any_of(lambda e: e[1] == v)  # noqa: B023 - called at once
    return (codes[valid, None] >> np.arange(len(EDGES)) & 1).astype(np.float64)


def prune(edges: Iterable[Edge]) -> tuple[Edge, ...]:
    """The edges that lie on a path from input to output, in the order of `EDGES`.

    Raises:
        SpaceError: when there is no such path.
    """
    ordered = sorted(edges, key=EDGES.index)
    fed, read = {0}, {OUTPUT}
    for src, dst in ordered:
        if src in fed:
            fed.add(dst)
    for src, dst in reversed(ordered):
        if dst in read:
            read.add(src)
    live = tuple((src, dst) for src, dst in ordered if src in fed and dst in read)
    if not live:
        raise SpaceError(
            f"the edges {ordered} lead from vertex 0 to no vertex {OUTPUT}; project scores with space.nearest"
        )
    return live


# -- the network --------------------------------------------------------------------------------------


class Vertex(nn.Module):
    """An operation on the sum of what its vertex reads, all maps cut to its width.

    op: the operation proper. projection: of the cell's input, which comes first if it is read at all.
    """

    def __init__(
        self, make: Callable[[int], nn.Module], channels: int, projection: Callable[[], nn.Module] | None
    ) -> None:
        super().__init__()
        self.channels = channels
        self.op = make(channels)
        self.projection = projection() if projection else None

    def forward(self, *maps: Tensor) -> Tensor:
        """Maps of `[B, at least channels, H, W]`, the cell's input aside, to `[B, channels, H, W]`."""
        if self.projection is not None:
            maps = (self.projection(maps[0]), *maps[1:])
        return cast(Tensor, self.op(reduce(torch.add, (x[:, : self.channels] for x in maps))))


class Output(nn.Module):
    """What it reads side by side, plus a projection of the cell's input, which comes first if it is read."""

    def __init__(self, projection: Callable[[], nn.Module] | None) -> None:
        super().__init__()
        self.projection = projection() if projection else None

    def forward(self, *maps: Tensor) -> Tensor:
        """Maps `[B, C_i, H, W]` to `[B, sum of C_i, H, W]`, the cell's input aside."""
        if self.projection is None:
            return torch.cat(maps, dim=1)
        shortcut: Tensor = self.projection(maps[0])
        return torch.cat(maps[1:], dim=1) + shortcut if maps[1:] else shortcut


def vertex_channels(edges: Sequence[Edge], channels: int) -> dict[int, int]:
    """Channels of every inner vertex of a pruned cell with `channels` at its output.

    They are divided among the vertices that feed the output, the first ones taking one more of what remains;
    any other vertex is as wide as its widest reader (`compute_vertex_channels` of the published code).
    """
    feeding = [src for src, dst in edges if dst == OUTPUT and src in INNER]
    share, rest = divmod(channels, max(1, len(feeding)))
    widths = {v: share + (i < rest) for i, v in enumerate(feeding)}
    for v in reversed(INNER):
        readers = [widths[dst] for src, dst in edges if src == v and dst in INNER]
        if readers and v not in feeding:
            widths[v] = max(readers)
    return widths


def conv_bn_relu(c_in: int, c_out: int, *, kernel: int) -> nn.Module:
    """Convolution, batch-norm, ReLU."""
    conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())


OPS: Mapping[str, Callable[[int], nn.Module]] = {
    "conv3x3-bn-relu": lambda channels: conv_bn_relu(channels, channels, kernel=3),
    "conv1x1-bn-relu": lambda channels: conv_bn_relu(channels, channels, kernel=1),
    "maxpool3x3": lambda _: nn.MaxPool2d(3, stride=1, padding=1),
}


def _cell(choose: Chooser, edges: Sequence[Edge], c_in: int, c_out: int) -> VertexCell:
    widths = vertex_channels(edges, c_out)

    def vertex(v: int, sources: Sequence[int]) -> nn.Module:
        channels = widths.get(v, c_out)
        projection = partial(conv_bn_relu, c_in, channels, kernel=1) if 0 in sources else None
        if v == OUTPUT:
            return Output(projection)
        return choose.op(f"op{v}", {o: partial(Vertex, OPS[o], channels, projection) for o in OPTIONS})

    return VertexCell("cell", edges, vertex, decisions=NAMES)


# -- the published notation ---------------------------------------------------------------------------


def to_json(genotype: Genotype) -> str:
    """The arguments of the published code's `ModelSpec`: `{"matrix": [[0, 1, ...], ...], "ops": [...]}`."""
    matrix = np.zeros((VERTICES, VERTICES), dtype=int)
    for (src, dst), on in zip(EDGES, genotype, strict=False):
        matrix[src, dst] = on
    ops = ["input", *(OPTIONS[option] for option in genotype[len(EDGES) :]), "output"]
    return json.dumps({"matrix": matrix.tolist(), "ops": ops})


def from_json(text: str) -> Genotype:
    """The genotype of a `ModelSpec` of 2 to 7 vertices, pruned; the vertices keep their order.

    Raises:
        SpaceError: when the text has another form, or the cell is not in the space.
    """
    matrix, ops = _read(text)
    last = len(ops) - 1
    edges = [(int(src), int(dst)) for src, dst in zip(*matrix.nonzero(), strict=True)]
    live = prune((src, OUTPUT if dst == last else dst) for src, dst in edges)
    if len(live) > MAX_EDGES:
        raise SpaceError(f"the cell has {len(live)} edges after pruning, wanted at most {MAX_EDGES}")
    for op in ops[1:-1]:
        if op not in OPTIONS:
            raise SpaceError(unknown("NAS-Bench-101 operation", op, OPTIONS))
    alive = {src for src, _ in live}
    chosen = [OPTIONS.index(ops[v]) if v in alive else 0 for v in INNER]
    return (*(int(edge in live) for edge in EDGES), *chosen)


def _read(text: str) -> tuple[NDArray[np.int64], list[str]]:
    """The square upper triangular matrix of 0 and 1 and as many labels, or else a SpaceError."""
    try:
        data = json.loads(text)
        matrix, ops = np.array(data["matrix"]), [str(op) for op in data["ops"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise SpaceError(
            f"got {text!r}, wanted the form " + '{"matrix": [[0, 1], [0, 0]], "ops": [...]}'
        ) from error
    count = len(ops)
    if not 2 <= count <= VERTICES or matrix.shape != (count, count) or matrix.dtype != np.int64:
        raise SpaceError(
            f"got a matrix {matrix.shape} and {count} operations, "
            f"wanted integers in 2 to {VERTICES} rows and columns, and as many operations"
        )
    if not np.isin(matrix, (0, 1)).all() or np.tril(matrix).any():
        raise SpaceError("wanted a matrix of 0 and 1 with ones only above the diagonal")
    return matrix, ops
