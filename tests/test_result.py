"""What a run leaves behind, read back without running anybody's code."""

import json
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from jobs import SMALL, snapshot
from torch import nn

import nas
from nas.data.preprocessing import Inputs
from nas.errors import ConfigError, DataError
from nas.evaluate.significance import wilson
from nas.results.architecture_file import (
    describe_architecture,
    graphs_of,
    load_architecture,
    read_architecture,
    write_graphml,
)
from nas.results.result import BASELINES, Result, baselines_of, load_result
from nas.run.result_files import write_front
from nas.searchers.goals import Goals, parse_goals
from nas.space.graph import cell_graphs, merged
from nas.types import Trial

HOSTILE = "<script>alert(1)</script> & '$x$'"


@pytest.fixture
def found():
    space = nas.load("darts", width=4, cells=3)
    return space, space.sample(np.random.default_rng(0))


def edges(graphs):
    return {kind: sorted(graph.edges(data="op")) for kind, graph in graphs.items()}


def test_the_interval_is_wilsons():
    low, high = wilson(0.9, 100)
    assert (round(low, 4), round(high, 4)) == (0.8256, 0.9448)
    assert wilson(1.0, 50)[1] == pytest.approx(1.0)
    assert wilson(0.0, 50)[0] == pytest.approx(0.0)


def test_an_architecture_is_drawn_and_built_again_from_its_file(found, tmp_path):
    space, genotype = found
    file = tmp_path / "architecture.json"
    file.write_text(json.dumps(describe_architecture(space, genotype, {"test_acc": 0.5})))
    data = read_architecture(file)
    assert edges(graphs_of(data)) == edges(cell_graphs(space, genotype))
    assert space.notation.read(data["notation"]) == genotype
    again, same = load_architecture(file, width=6)
    assert same == genotype
    assert again.settings["width"] == 6
    assert again.settings["cells"] == 3


def test_a_result_is_shown_in_a_line(found):
    space, genotype = found
    metrics = {"test_acc": 0.98765, "params": 12345.0}
    inputs = Inputs(("a", "b"), (1, 8, 8), (0.0,), (1.0,))
    result = Result(space, genotype, {}, nn.Identity(), metrics, (), Path("results/run"), inputs)
    assert repr(result) == "<Result of 'darts' in 'results/run': test_acc 0.9877, 12,345 params, 0 trials>"


PIXELS = np.arange(128, dtype=np.uint8).reshape(2, 8, 8)


@pytest.mark.parametrize(
    "images", [PIXELS, PIXELS.astype(np.int64), PIXELS / 255, PIXELS.astype(np.float32) / 255]
)
def test_bytes_may_be_given_as_such_and_from_0_to_1(images):
    inputs = Inputs(("a", "b"), (1, 8, 8), (0.0,), (1.0,), "uint8")
    assert np.allclose(inputs.prepare(images)[:, 0].numpy(), PIXELS / 255)


@pytest.mark.parametrize(
    ("images", "pixels", "words"),
    [
        (PIXELS.astype(np.float32), "uint8", "floats from 0 to 127, but the network was trained on bytes"),
        (-(PIXELS / 255), "uint8", "floats from -0.498039 to 0, but"),
        (PIXELS, "float32", "integers, but the network was trained on floats"),
        ("cat.png", "uint8", "got 'cat.png', wanted an array of images; nas predict reads files"),
    ],
)
def test_images_of_another_scale_are_refused_in_place_of_wrong_answers(images, pixels, words):
    with pytest.raises(DataError, match=words):
        Inputs(("a", "b"), (1, 8, 8), (0.0,), (1.0,), pixels).prepare(images)


def test_inputs_know_of_what_type_the_images_were():
    task = nas.load_task("digits")
    told = {"classes": ["a"], "image_shape": [1, 8, 8], "mean": [0.0], "std": [1.0]}
    assert Inputs.of(task).pixels == Inputs.of_record(told | {"pixels": "uint8"}).pixels == "uint8"
    assert Inputs.of_record(told).pixels is None


def test_the_picture_of_a_front_shows_what_can_be_on_it(tmp_path, monkeypatch):
    space, goals = nas.load("toy"), parse_goals(["val_acc", "-params"], ["params<=100"])
    rows = [(1, 0.99, 50), (3, 0.5, 40), (3, 0.6, 60), (3, 0.9, 200), (3, 0.4, 70)]
    history = [
        Trial(i, space.sample(np.random.default_rng(i)), epochs, "done", {"val_acc": a, "params": float(p)})
        for i, (epochs, a, p) in enumerate(rows)
    ]
    found = Result(space, history[2].genotype, {}, nn.Identity(), {}, history, tmp_path, None, {}, goals)
    drawn = {}
    monkeypatch.setattr("nas.show.draw.draw_front", lambda points, **more: drawn.update(more, points=points))
    monkeypatch.setattr("nas.show.draw.save", lambda *_: None)
    write_front(found, title="toy")
    assert drawn["points"].tolist() == [[0.5, 40], [0.6, 60], [0.4, 70]] and drawn["chosen"] == [1]
    assert drawn["subtitle"] == "2 of 3 architectures are on it"
    assert [entry["trial"] for entry in json.loads((tmp_path / "front.json").read_text())["front"]] == [1, 2]


@pytest.mark.parametrize("method", ["darts", "own:mine", "my_method.py:make"])
def test_baselines_of_a_search_by_gradients_say_that_they_were_trained_alone(method):
    history = [Trial(0, (0,), 1, "done", {"val_acc": 0.5, "macs": 1.0})]
    assert all(name.endswith(", trained alone") for name in baselines_of(history, Goals(), method=method))
    assert set(baselines_of(history, Goals(), method="evolution")) == set(BASELINES)


def test_graphml_holds_whatever_names_hold(tmp_path):
    options = {HOSTILE: nn.Identity, "b": nn.Tanh}
    space = nas.Space("odd", lambda choose: nn.Sequential(choose.op("a " + HOSTILE, options), nn.Flatten()))
    graph = merged(cell_graphs(space, (0,)))
    write_graphml(tmp_path / "a.graphml", graph)
    assert "<script>" not in (tmp_path / "a.graphml").read_text()
    read = nx.read_graphml(tmp_path / "a.graphml")
    assert [op for _, _, op in read.edges(data="op")] == [HOSTILE]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "describes no architecture"),
        ("[1", "line 1"),
        ('{"space": "toy", "settings": {}, "choices": {}, "cells": {"a": {}}}', "damaged"),
    ],
)
def test_a_damaged_architecture_is_named(text, words, tmp_path):
    (tmp_path / "architecture.json").write_text(text)
    with pytest.raises(ConfigError, match=words):
        graphs_of(read_architecture(tmp_path))


def test_a_plug_in_is_never_run_unasked(found, tmp_path):
    space, genotype = found
    plugin = tmp_path / "evil.py"
    plugin.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    data = describe_architecture(space, genotype, {}) | {"space": f"{plugin}:make"}
    (tmp_path / "architecture.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="name it with --space"):
        load_architecture(tmp_path)
    graphs_of(read_architecture(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_an_unfinished_folder_has_no_result(tmp_path):
    with pytest.raises(
        ConfigError, match=r"no folder .*gone \(looked from .*\); wanted that of a finished run"
    ):
        load_result(tmp_path / "gone")
    with pytest.raises(ConfigError, match="holds no finished run"):
        load_result(tmp_path)


@pytest.fixture
def finished(tmp_path):
    settings = SMALL | {"trials": 1, "pictures": True}
    return nas.search("toy", "digits", "random", out=tmp_path / "run", settings=settings).folder


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.json", "architecture.json", "run.json"])
def test_one_flipped_bit_is_noticed(finished, name):
    data = bytearray((finished / name).read_bytes())
    data[len(data) // 2] ^= 1
    (finished / name).write_bytes(data)
    with pytest.raises(ConfigError, match=f"is damaged: {name}: differs from what was recorded"):
        load_result(finished)


def test_a_lost_picture_is_no_reason_to_refuse_a_model(finished):
    (finished / "cells.png").unlink()
    assert load_result(finished).metrics["trials"] == 1


@pytest.mark.parametrize(("constraint", "broken"), [([], False), (["params<=1"], True)])
def test_the_picture_of_a_search_shows_what_breaks_a_constraint(tmp_path, constraint, broken):
    settings = SMALL | {"trials": 1, "pictures": True, "constraint": constraint}
    folder = nas.search("toy", "digits", "random", out=tmp_path / "run", settings=settings).folder
    assert ("breaks a constraint" in (folder / "search.svg").read_text()) == broken


def test_reading_a_result_writes_nothing(finished):
    before = snapshot(finished)
    load_result(finished)
    assert snapshot(finished) == before


@pytest.mark.parametrize("text", ["x" * 5000, "a\0b", "no such folder"])
def test_text_that_is_no_path_is_no_architecture(text):
    with pytest.raises(ConfigError, match="no architecture at"):
        read_architecture(Path(text))
