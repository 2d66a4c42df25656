"""What a user does with a finished run: predict, read it back, see its graph, train it again, deploy it."""

import json
import math
import shutil
import subprocess
import sys

import networkx as nx
import numpy as np
import pytest
import surface
import torch
from safetensors.torch import load_file
from small_spaces import CELL, cell

import nas


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A finished search of a cell by trials, trained for long enough that it tells classes apart."""
    folder = tmp_path_factory.mktemp("found")
    recipe = {"epochs": 12, "batch": 16, "crop": False}
    return surface.search(folder, "random", trials=4, space_settings={"width": 8}, retrain=recipe)


def live(words):
    """The connected part of a cell of three nodes, from its choices `"i->j"` in words: edges `(i, j, op)`."""
    edges = {tuple(map(int, name.split("->"))): op for name, op in words.items() if op != "none"}
    graph = nx.DiGraph(list(edges))
    graph.add_nodes_from(range(4))
    reached = {0} | nx.descendants(graph, 0)
    reaching = {3} | nx.ancestors(graph, 3)
    return {(i, j, op) for (i, j), op in edges.items() if {i, j} <= reached & reaching}


# -- predictions -------------------------------------------------------------------------------------------


def test_predictions_are_those_of_the_network_by_hand(found):
    x, y = surface.stripes(40, seed=5)
    task = surface.task()
    pixels = torch.from_numpy(x)[:, None].float() / 255
    with torch.no_grad():
        logits = found.network((pixels - task.mean) / task.std)
    wanted = logits.argmax(1).tolist()
    assert len(set(wanted)) == 3 and np.mean(wanted == y) > 0.5
    layouts = [x, x[..., None], torch.from_numpy(x)[:, None], x.astype(np.int64), x / 255.0]
    for images in layouts:
        assert found.predict(images).tolist() == wanted
    assert found.predict(x, batch=3).tolist() == wanted
    assert surface.result_of(found.folder, space=CELL).predict(x).tolist() == wanted
    assert tuple(found.inputs.classes) == task.classes
    assert not found.network.training


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 9, 8), np.uint8),
        np.zeros((2, 8, 8, 3), np.uint8),
        np.full((2, 8, 8), 40.0),
        np.full((2, 8, 8), np.nan),
    ],
    ids=["another size", "colour", "floats of another scale", "NaN"],
)
def test_images_of_another_kind_are_refused_in_place_of_wrong_answers(found, images):
    with pytest.raises(nas.DataError):
        found.predict(images)


def test_the_test_accuracy_comes_with_its_wilson_interval(found):
    metrics, n, z = found.metrics, len(surface.task().test), 1.959964
    p = metrics["test_acc"]
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert metrics["test_acc_low"] == pytest.approx(middle - half, abs=1e-4)
    assert metrics["test_acc_high"] == pytest.approx(middle + half, abs=1e-4)
    assert p * n == pytest.approx(round(p * n), abs=1e-3)


# -- what was found ------------------------------------------------------------------------------------------


def test_what_is_read_back_is_what_the_search_returned(found):
    again = surface.result_of(found.folder, space=CELL)
    assert surface.outcome(again) == surface.outcome(found)
    assert again.space.choices(again.genotype) == found.space.choices(found.genotype)
    own, other = found.network.state_dict(), again.network.state_dict()
    assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)
    assert nx.utils.graphs_equal(again.graph, found.graph)


def test_a_folder_does_not_run_a_users_code_unasked(found):
    with pytest.raises(nas.NasError, match="space"):
        nas.load_result(found.folder)


@pytest.mark.parametrize(
    ("text", "edges"),
    [
        (
            "|nor_conv_1x1~0|+|skip_connect~0|nor_conv_3x3~1|+|avg_pool_3x3~0|nor_conv_1x1~1|skip_connect~2|",
            6,
        ),
        ("|nor_conv_3x3~0|+|skip_connect~0|none~1|+|none~0|none~1|avg_pool_3x3~2|", 2),
        ("|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|nor_conv_1x1~1|nor_conv_3x3~2|", 3),
    ],
    ids=["whole", "a node that nobody reads", "a node without an input"],
)
def test_the_graph_has_the_live_nodes_and_edges_of_the_cell(tmp_path, text, edges):
    """In memory and as GraphML, whatever its nodes are called."""
    space = cell(classes=3)
    genotype = nas.load("nasbench201").notation.parse(text)
    only = nas.Space("only", space.build, lambda decisions, scores: genotype)
    result = surface.search(tmp_path, space=only, trials=1, epochs=1)
    wanted = nx.DiGraph()
    wanted.add_nodes_from((node, {"role": role}) for node, role in ((0, "input"), (3, "output")))
    wanted.add_edges_from((i, j, {"op": op}) for i, j, op in live(space.choices(genotype)))
    nx.set_node_attributes(wanted, {node: "node" for node in wanted if node not in (0, 3)}, "role")
    assert wanted.number_of_edges() == edges
    same_role, same_op = (
        nx.algorithms.isomorphism.categorical_node_match("role", None),
        nx.algorithms.isomorphism.categorical_edge_match("op", None),
    )
    for graph in (result.graph, nx.read_graphml(tmp_path / "architecture.graphml")):
        assert isinstance(graph, nx.DiGraph)
        assert nx.is_isomorphic(graph, wanted, node_match=same_role, edge_match=same_op)


def test_what_alphas_prefer_at_the_end_is_what_is_chosen(tmp_path):
    """Without guards and without training others again."""
    result = surface.search(tmp_path, "darts", epochs=3, guard=False, alphas={"lr": 0.1})
    strengths = surface.strengths(tmp_path)
    assert strengths.shape == (3, 6, 5) == (len(result.history), *strengths.shape[1:])
    assert np.allclose(strengths.sum(-1), 1, atol=1e-5)
    assert result.genotype == result.space.nearest(list(strengths[-1]))


# -- training again, and away --------------------------------------------------------------------------------


def test_a_retraining_is_of_the_same_architecture_and_of_its_own_length(found, tmp_path):
    """From the run's folder, and from the content of its file."""
    file = found.folder / "architecture.json"
    results = []
    for i, source in enumerate((found.folder, json.loads(file.read_text()))):
        results.append(
            nas.retrain(
                source,
                surface.task(),
                out=tmp_path / str(i),
                space=CELL,
                settings={"retrain": {"epochs": 2}, "export": False},
            )
        )
    words = surface.read(file)["choices"]
    for result in results:
        assert surface.read(result.folder / "architecture.json")["choices"] == words
        assert result.metrics["params"] == found.metrics["params"]
        assert result.metrics["retrain_epochs"] == 2
        assert surface.outcome(result)["model"] == surface.outcome(results[0])["model"]
    assert surface.outcome(results[0])["model"] != surface.outcome(found)["model"]


ALONE = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("nas", "spaces", "optuna", "networkx"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Nothing())
import torch
from safetensors.torch import load_file, save_file
import model

x = load_file("images.safetensors")["x"]
network = model.build()
network.eval()
with torch.no_grad():
    save_file({"logits": network(x)}, "answers.safetensors")
"""


def test_the_model_runs_where_the_engine_is_not_installed(runs, tmp_path):
    """Its weights and its source alone, on bytes divided by 255."""
    from safetensors.torch import save_file

    folder = runs("evolution")
    for name in ("model.py", "model.safetensors"):
        shutil.copy(folder / name, tmp_path)
    digits = nas.load_task("digits")
    save_file({"x": digits.test.x[:50].float() / 255}, tmp_path / "images.safetensors")
    (tmp_path / "alone.py").write_text(ALONE)
    done = subprocess.run(
        [sys.executable, "alone.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = nas.load_result(folder)
    with torch.no_grad():
        wanted = result.network(digits.normalise(digits.test.x[:50]))
    answers = load_file(tmp_path / "answers.safetensors")["logits"]
    assert torch.allclose(answers, wanted, rtol=1e-3, atol=1e-3)
    assert answers.argmax(1).tolist() == result.predict(digits.test.x[:50]).tolist()
