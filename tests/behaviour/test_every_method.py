"""Every method ends in a complete folder: whole, readable, and its network is what its figures say."""

import networkx
import numpy as np
import pytest
import surface
import torch
from small_spaces import CELL, SIGNALS

import nas

BY_TRIALS = ("auto", "random", "evolution", "local", "nsga2", "guided", "tpe")
FINDING = ("darts", "darts2", "snas", "pcdarts", "sdarts-rs", "sdarts-adv", "gaea", "oles")
"""Searches by gradients that find a planted operation within 18 or 30 steps, whatever their seed."""
BY_GRADIENTS = (*FINDING, "gdas", "drnas", "fairdarts", "beta-darts", "is-darts", "pdarts")
SPECIAL = {
    "sdarts-adv": {"method_settings": {"steps": 2}},
    # On a quarter of four channels a step says little.
    "pcdarts": {"method_settings": {"parts": 2}, "epochs": 5},
    "gaea": {"method_settings": {"parts": 2}, "epochs": 5},
    "is-darts": {"alphas": {}},
}


def settings_of(method):
    if method in BY_TRIALS:
        return {"trials": 3, "epochs": 1}
    if method == "spos":
        return {"trials": 5}
    short = {"epochs": 3, "search": {"batch": 8, "crop": False}, "alphas": {"lr": 0.2}}
    return short | SPECIAL.get(method, {})


@pytest.mark.parametrize("method", [*BY_TRIALS, "spos", *BY_GRADIENTS])
def test_every_method_ends_in_a_complete_folder(tmp_path, method):
    alphas = method in BY_GRADIENTS
    named, task = (SIGNALS, surface.blobs()) if alphas else (CELL, surface.task())
    made = surface.search(tmp_path / "run", method, space=named, on=task, **settings_of(method))
    folder = made.folder

    # Every result is recorded with its checksum, and nothing unfinished is left.
    recorded = surface.manifest(folder)
    assert recorded == {name: surface.sha256(folder / name) for name in recorded}
    results = {"model.safetensors", "architecture.json", "architecture.graphml", "metrics.json", "run.json"}
    assert results | {"config.toml"} <= recorded.keys()
    assert (("alphas.npz" in recorded), ("health.json" in recorded)) == (alphas, alphas)

    # It can be read back, and is what the search returned.
    result = surface.result_of(folder, space=named)
    assert surface.outcome(result) == surface.outcome(made)
    assert result.genotype == made.genotype and dict(result.metrics) == dict(made.metrics)

    # The architecture is one of the space, in the files' words.
    space, words = result.space, surface.read(folder / surface.ARCHITECTURE)["choices"]
    assert space.choices(result.genotype) == words
    assert space.nearest(space.one_hot(result.genotype)) == result.genotype
    assert networkx.read_graphml(folder / "architecture.graphml").number_of_nodes() >= 2

    # The weights are those of the architecture, and give the recorded accuracy on the test images.
    network = space.network(result.genotype).eval()
    network.load_state_dict(surface.weights(folder))
    x = task.normalise(task.test.x)
    with torch.no_grad():
        assert torch.allclose(network(x), result.network(x), atol=1e-6)
        right = (network(x).argmax(1) == task.test.y).float().mean().item()
    assert right == pytest.approx(result.metrics["test_acc"], abs=1e-5)

    # The history is one of trials with validation accuracies.
    trials = [t for t in result.history if t.state == "done"]
    assert trials and [t.number for t in result.history] == list(range(len(result.history)))
    assert all(0 <= t.metrics["val_acc"] <= 1 for t in trials)
    for trial in trials:
        space.check(trial.genotype)
    if not alphas:
        assert len(trials) == settings_of(method)["trials"] == len({t.genotype for t in trials})

    # What only passes zeros or noise on is told from what lets the images through.
    if method in FINDING:
        assert set(words.values()) == {"convolution"}
        assert trials[-1].metrics["train_loss"] < trials[0].metrics["train_loss"]
    if method == "is-darts":
        assert "blank" not in words.values()


def test_a_search_learns_to_tell_the_classes_apart(tmp_path):
    """Far above the third that guessing gives, on images that were not trained on."""
    task = nas.task_from_arrays(*surface.stripes(180), flip=False)
    recipe = {"epochs": 20, "batch": 16, "crop": False}
    result = surface.search(
        tmp_path, "evolution", on=task, trials=2, epochs=3, space_settings={"width": 8}, retrain=recipe
    )
    assert result.metrics["test_acc"] > 0.75
    unseen, labels = surface.stripes(120, seed=7)
    assert np.mean(result.predict(unseen) == labels) > 0.7
