"""Cells: which edges exist, what a node sums, how outputs are joined, and what drop-path may touch."""

import pytest
import torch
from torch import nn

from nas.errors import SpaceError
from nas.space.cell import Cell, VertexCell
from nas.space.choosers import Zero


class Times(nn.Module):
    """Multiplies by a number, so that sums can be read off."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


@pytest.mark.parametrize("concat", [False, True])
def test_a_node_sums_its_edges(concat):
    factor = {(0, 1): 2, (0, 2): 3, (1, 2): 5}
    cell = Cell("cell", 1, 2, lambda i, j: Times(factor[i, j]), concat=concat)
    y = cell(torch.ones(1, 1, 2, 2))
    assert y[0, :, 0, 0].tolist() == ([2, 13] if concat else [13])


def test_a_zero_edge_adds_nothing_even_to_a_map_that_is_not_a_number():
    cell = Cell("cell", 2, 1, lambda i, j: Zero(3) if i == 0 else nn.Identity())
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(cell(torch.full_like(x, torch.nan), x), x)


def test_a_node_without_a_live_edge_is_zero_in_the_right_shape():
    cell = Cell("reduce", 1, 1, lambda i, j: Zero(6, stride=2))
    y = cell(torch.randn(2, 3, 5, 5))
    assert y.shape == (2, 6, 3, 3) and not y.any()


def test_drop_path_spares_identities_and_evaluation():
    x = torch.ones(64, 1, 2, 2)
    dropped = Cell("cell", 1, 1, lambda i, j: Times(1))
    spared = Cell("cell", 1, 1, lambda i, j: nn.Identity())
    dropped.drop_path = spared.drop_path = 0.5
    assert (dropped(x) == 0).any()
    assert torch.equal(spared(x), x)
    assert torch.equal(dropped.eval()(x), x)


@pytest.mark.parametrize(
    ("inputs", "nodes", "preprocess"), [(0, 1, ()), (1, 0, ()), (2, 1, (nn.Identity(),))]
)
def test_impossible_cells_are_refused(inputs, nodes, preprocess):
    with pytest.raises(SpaceError, match=f"got {inputs} inputs, {nodes} nodes, {len(preprocess)} pre"):
        Cell("cell", inputs, nodes, lambda i, j: nn.Identity(), preprocess=preprocess)


class Read(nn.Module):
    """Adds up what it reads, then a number of its own."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, *maps):
        return sum(maps) + self.number


def test_a_vertex_reads_its_sources_in_order():
    asked = []

    def vertex(dst, sources):
        asked.append((dst, sources))
        return Read(10**dst)

    cell = VertexCell("cell", [(2, 4), (0, 4), (0, 2), (0, 1), (1, 2)], vertex)
    assert asked == [(1, (0,)), (2, (0, 1)), (4, (0, 2))]
    assert list(cell.edges()) == [(0, 1), (0, 2), (1, 2), (0, 4), (2, 4)]
    assert cell(torch.ones(1, 1, 1, 1)).item() == 1 + (1 + 11 + 100) + 10_000
    assert list(cell.vertices) == ["1", "2", "4"]


@pytest.mark.parametrize("edges", [[], [(1, 0)], [(1, 2)], [(0, 1), (0, 2)], [(0, 2), (1, 2)]])
def test_vertices_off_the_path_are_refused(edges):
    with pytest.raises(SpaceError, match=r"cell 'cell': got the edges \["):
        VertexCell("cell", edges, lambda dst, sources: nn.Identity())
