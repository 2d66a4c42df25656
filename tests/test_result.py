"""What a run leaves behind, read back without running anybody's code."""

import json

import networkx as nx
import numpy as np
import pytest
from jobs import SMALL, snapshot
from torch import nn

import nas
from nas.errors import ConfigError
from nas.results.result import (
    Alphas,
    describe_architecture,
    graphs_of,
    load_architecture,
    load_result,
    read_architecture,
    write_graphml,
)
from nas.space.graph import cell_graphs, merged

HOSTILE = "<script>alert(1)</script> & '$x$'"


def test_an_architecture_is_drawn_and_built_again_from_its_file(tmp_path):
    space = nas.load("darts", width=4, cells=3)
    genotype = space.sample(np.random.default_rng(0))
    file = tmp_path / "architecture.json"
    file.write_text(json.dumps(describe_architecture(space, genotype, {"test_acc": 0.5})))
    data = read_architecture(file)
    pairs = zip(graphs_of(data).items(), cell_graphs(space, genotype).items(), strict=True)
    assert all(one == other and nx.utils.graphs_equal(read, made) for (one, read), (other, made) in pairs)
    assert space.notation.read(data["notation"]) == genotype
    again, same = load_architecture(file, width=6)
    assert same == genotype
    assert (again.settings["width"], again.settings["cells"]) == (6, 3)


def test_strengths_are_read_back_as_they_were_written(tmp_path):
    space = nas.load("toy")
    rows = [np.full(len(decision.options), 1 / len(decision.options)) for decision in space.decisions]
    Alphas.of(space, [rows, rows]).write(tmp_path)
    read = Alphas.read(tmp_path / "alphas.npz")
    assert list(read.decisions) == [decision.name for decision in space.decisions]
    assert len(read.strengths) == 2 and np.allclose(np.nansum(read.strengths, axis=2), 1)
    (tmp_path / "alphas.npz").write_bytes(b"PK no archive")
    with pytest.raises(ConfigError, match="alphas"):
        Alphas.read(tmp_path / "alphas.npz")


def test_graphml_holds_whatever_names_hold(tmp_path):
    options = {HOSTILE: nn.Identity, "b": nn.Tanh}
    space = nas.Space("odd", lambda choose: nn.Sequential(choose.op("a " + HOSTILE, options), nn.Flatten()))
    write_graphml(tmp_path / "a.graphml", merged(cell_graphs(space, (0,))))
    assert "<script>" not in (tmp_path / "a.graphml").read_text()
    read = nx.read_graphml(tmp_path / "a.graphml")
    assert [op for _, _, op in read.edges(data="op")] == [HOSTILE]


def test_a_result_is_read_without_a_trace_also_where_a_file_for_people_is_lost(tmp_path):
    settings = SMALL | {"trials": 1}
    folder = nas.search("toy", "digits", "random", out=tmp_path / "run", settings=settings).folder
    (folder / "architecture.graphml").unlink()
    before = snapshot(folder)
    assert load_result(folder).metrics["trials"] == 1
    assert snapshot(folder) == before
