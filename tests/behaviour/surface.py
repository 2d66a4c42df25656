"""How the tests of this folder reach the engine: the one place for words and shapes that may change.

Everything here goes through public names (`nas.*`), the command, or the files of a run's folder.
"""

import functools
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import optuna
import pytest
import small_spaces
import torch
from safetensors.torch import load_file

import nas

MODEL, ARCHITECTURE, MANIFEST = "model.safetensors", "architecture.json", "manifest.json"
TINY = {
    "epochs": 2,
    "top_k": 1,
    "baselines": False,
    "export": False,
    "pictures": False,
    "retrain": {"epochs": 1},
}
"""Settings of a whole job of half a second on `task()`."""

DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], "
    "normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), "
    "('max_pool_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), "
    "('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)
"""The cells of Liu et al. 2019, as their code writes them."""


# -- data ------------------------------------------------------------------------------------------------


def stripes(count=120, *, side=8, seed=0):
    """Noise with a bright band, level, upright or slanting by its class: images `[N, H, W]` and labels."""
    draw = np.random.default_rng(seed)
    y = np.arange(count) % 3
    x = draw.integers(0, 90, (count, side, side))
    at = draw.integers(0, side, count)
    for image, label, place in zip(x, y, at, strict=True):
        rows = np.arange(side)
        if label == 0:
            image[place] += 150
        elif label == 1:
            image[:, place] += 150
        else:
            image[rows, (rows + place) % side] += 150
    return x.astype(np.uint8), y


@functools.cache
def task():
    """120 small grey images of three classes."""
    return nas.task_from_arrays(*stripes(), flip=False, name="stripes")


@functools.cache
def blobs():
    """120 small grey images, every class bright in other places: easy to tell apart by a linear map."""
    draw = np.random.default_rng(2)
    y = np.arange(120) % 3
    bright = draw.integers(0, 120, (3, 8, 8))
    x = bright[y] + draw.integers(0, 130, (120, 8, 8))
    return nas.task_from_arrays(x.astype(np.uint8), y, flip=False, name="blobs")


# -- jobs ------------------------------------------------------------------------------------------------


def search(folder, method="random", *, space=small_spaces.CELL, on=None, stop=None, **settings):
    """A whole small job; settings that are tables are merged with those of `TINY`."""
    merged = dict(TINY)
    for name, value in settings.items():
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value
    return nas.search(space, on or task(), method, out=folder, settings=merged, stop=stop)


def result_of(folder, *, space=None):
    """A finished job read back; the space is named, as folders never run a user's file unasked."""
    return nas.load_result(folder, space=space)


def metrics(trial):
    """What was measured of a trial, without the times."""
    return timeless(trial.metrics)


def timeless(table):
    """Those of a table's entries that do not depend on how fast the machine was."""
    return {name: value for name, value in table.items() if not name.endswith(("seconds", "_ms", "_s"))}


def history(result):
    """All of a job's trials that must not depend on time or interruption."""
    return [(t.number, tuple(t.genotype), t.fidelity, t.state, metrics(t)) for t in result.history]


def read(path):
    """The content of a JSON file."""
    return json.loads(path.read_text())


def outcome(result):
    """All that a user takes from a job, without times: equal for equal jobs, to the bit."""
    folder = result.folder
    found = read(folder / ARCHITECTURE)
    found["metrics"] = timeless(found["metrics"])
    arrays = {path.name: sha256(path) for path in sorted(folder.glob("*.npz"))}
    return {
        "history": history(result),
        "architecture": found,
        "metrics": timeless(read(folder / "metrics.json")),
        "model": sha256(folder / MODEL),
        "arrays": arrays,
        "others": {
            name: [history_of(trial) for trial in trials] for name, trials in result.baselines.items()
        },
    }


def history_of(trial):
    """A trial of a comparison, without times."""
    return tuple(trial.genotype), trial.state, metrics(trial)


def sha256(path):
    """The checksum of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def manifest(folder):
    """The recorded checksum of each file of a finished folder."""
    return {name: entry["sha256"] for name, entry in read(folder / MANIFEST)["files"].items()}


def is_finished(folder):
    """Whether a folder claims to hold a finished run."""
    return (folder / MANIFEST).exists()


def weights(folder):
    """The tensors of a finished run, by name."""
    return load_file(folder / MODEL)


def strengths(folder):
    """How much a search by gradients preferred each option: `[epochs, decisions, options]`."""
    with np.load(folder / "alphas.npz") as arrays:
        return arrays["strengths"]


def identity(folder):
    """The name of a finished run's architecture that isomorphic ones share."""
    return read(folder / ARCHITECTURE)["hash"]


class Alarm:
    """A `stop` that is quiet for so many questions and then says stop; it counts what it was asked."""

    def __init__(self, after=None):
        self.after, self.asked = after, 0

    def __call__(self):
        self.asked += 1
        return self.after is not None and self.asked > self.after


def in_pieces(run, pieces, asked):
    """Runs a job that is stopped at `pieces` moments and called again; returns its result.

    asked: how often the uninterrupted job asks whether to stop. The moments are spread over it, each so many
    questions after the job went on; an odd number of them, so that few fall on the end of an epoch.
    """
    stops = 0
    for _ in range(4 * pieces):
        alarm = Alarm(asked // (pieces + 1) | 1)
        try:
            result = run(alarm)
        except nas.Stopped:
            stops += 1
        else:
            assert stops >= pieces, f"it was to be stopped {pieces} times, but was so {stops} times"
            return result
    raise AssertionError(f"stopped {stops} times, and still not at its end")


# -- studies ---------------------------------------------------------------------------------------------


def study(space, searcher, *, epochs=0, ladder=None, seed=0, goals=None, storage=None):
    """A study of evaluations that take no time, in memory unless a storage is given.

    epochs: of every trial. ladder: successive halving climbs it instead.
    """
    fixed = nas.Fixed(searcher, epochs=epochs)
    return nas.Study(
        space,
        fixed if ladder is None else nas.SuccessiveHalving(searcher, ladder, eta=3),
        storage or optuna.storages.InMemoryStorage(),
        name="planted",
        seed=seed,
        goals=goals,
        announce=False,
    )


def searched(space, name, evaluate, trials, *, seed=0, goals=None, settings=None):
    """The history of a searcher, by its name, under an evaluator `genotype -> metrics`."""
    searcher = nas.make_searcher(name, settings, goals=goals)
    made = study(space, searcher, seed=seed, goals=goals)
    made.run(lambda trial, rng: evaluate(trial.genotype), trials=trials)
    return made.history


# -- spaces and supernets --------------------------------------------------------------------------------


def size(space):
    """The number of a space's architectures, which must be known exactly."""
    assert space.size.exact
    return space.size.count


def genotypes(space, count, *, seed=0):
    """Random architectures."""
    draw = np.random.default_rng(seed)
    return [space.sample(draw) for _ in range(count)]


def prefer(supernet, rows):
    """Sets the alphas, one row of numbers for each decision in the space's order."""
    supernet.set_alphas([torch.tensor(row) for row in rows])


def prefer_only(supernet, genotype):
    """Sets the alphas so that their softmax is exactly one-hot at an architecture."""
    prefer(supernet, [1e4 * row for row in supernet.space.one_hot(genotype)])


def costs(network, shape):
    """Parameters and multiply-accumulates of a network for one image `(C, H, W)`."""
    batch = nas.proxies.Batch(torch.zeros(2, *shape), torch.zeros(2, dtype=torch.int64))
    return {name: int(nas.proxies.PROXIES[name](network, batch)) for name in ("params", "macs")}


def parameters(network):
    """The number of a network's trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def logits(network, x):
    """What a network answers, without an auxiliary head."""
    found = network(x)
    return found[0] if isinstance(found, tuple) else found


# -- published tables ------------------------------------------------------------------------------------


def table(name, **settings):
    """A published table; the test is skipped where its file is not at hand."""
    folder = os.environ.get("NAS_BENCHMARKS")
    if not folder or not list(Path(folder).glob(f"{name}.*")):
        pytest.skip(f"no published table of {name}: NAS_BENCHMARKS is {folder!r}")
    return nas.load_benchmark(name, **settings)
