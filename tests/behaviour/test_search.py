"""A finished search: what is in its folder, and that it can be read back."""

import json

import networkx
import pytest

import nas


@pytest.mark.parametrize("name", ["evolution", "darts", "spos", "pareto"])
def test_a_finished_folder_is_as_recorded_and_gives_back_its_result(runs, name):
    folder = runs(name)
    result = nas.load_result(folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 0 <= metrics["test_acc_low"] <= metrics["test_acc"] <= metrics["test_acc_high"] <= 1
    assert result.metrics == metrics
    assert (
        result.space.choices(result.genotype)
        == json.loads((folder / "architecture.json").read_text())["choices"]
    )
    assert networkx.read_graphml(folder / "architecture.graphml").number_of_edges() > 0
