"""The same seed gives the same folder but for times; another seed gives another one."""

import random

import numpy as np
import pytest
import surface
import torch

import nas

JOBS = {
    "evolution": (
        "evolution",
        {"trials": 4, "epochs": 6, "baselines": True, "repeats": 1, "top_k_epochs": 1},
    ),
    "spos": ("spos", {"trials": 6}),
    "darts": ("darts", {}),
}


OWN = {"run", "begun", "environment"}
"""Entries that are a run's own, whatever it computes: its name, when and on what it ran."""


def plain(value):
    """A JSON value without what is about time or the place of the run."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in surface.timeless(value).items() if name not in OWN}
    return [plain(item) for item in value] if isinstance(value, list) else value


def content(folder):
    """Every recorded file by its bytes, those of JSON without times; records of time itself are left out.

    So is the log of the history, which `outcome` compares.
    """
    found = {}
    for name, checksum in surface.manifest(folder).items():
        path = folder / name
        if path.suffix == ".json":
            found[name] = plain(surface.read(path)) if name not in ("time.json", "preview.json") else None
        elif name != "study.log":
            found[name] = checksum
    return found


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Finished jobs by name and seed, each made once."""
    made = {}

    def job(name, seed=0, copy=0):
        if (name, seed, copy) not in made:
            method, settings = JOBS[name]
            # What the caller has drawn before must not matter.
            torch.manual_seed(17 * copy), np.random.seed(copy), random.seed(copy)  # noqa: NPY002
            folder = tmp_path_factory.mktemp(name)
            made[name, seed, copy] = surface.search(folder, method, on=surface.blobs(), seed=seed, **settings)
        return made[name, seed, copy]

    return job


@pytest.mark.parametrize("name", JOBS)
def test_the_same_seed_gives_the_same_folder(jobs, name):
    one, other = jobs(name), jobs(name, copy=1)
    assert surface.outcome(one) == surface.outcome(other)
    assert content(one.folder) == content(other.folder)


@pytest.mark.parametrize("name", JOBS)
def test_another_seed_gives_another_search_and_other_weights(jobs, name):
    one, other = (surface.outcome(jobs(name, seed)) for seed in (0, 1))
    assert one["history"] != other["history"]
    assert one["model"] != other["model"]


def test_pictures_of_the_same_cells_have_the_same_bytes(jobs, tmp_path):
    """In the two formats, and other cells are another picture."""
    one, again, other = jobs("evolution"), jobs("evolution", copy=1), jobs("darts")
    assert one.genotype == again.genotype != other.genotype
    found = {}
    for name, result in (("one", one), ("again", again), ("other", other)):
        paths = [tmp_path / f"{name}.{ending}" for ending in ("svg", "png")]
        nas.draw.save(nas.draw.draw_cells(result.graphs), *paths)
        found[name] = [surface.sha256(path) for path in paths]
    assert found["one"] == found["again"]
    assert not set(found["one"]) & set(found["other"])


def test_the_split_of_named_data_follows_the_seed_of_the_job(tmp_path):
    """Fingerprints of data are recorded, so that another split is another task."""
    found = []
    for seed in (0, 1):
        settings = {"seed": seed, "trials": 1, "epochs": 1, "search_images": 60}
        result = surface.search(tmp_path / str(seed), "random", on="digits", **settings)
        found.append(surface.read(result.folder / "run.json")["task"]["fingerprint"])
    assert found[0] != found[1]


def test_networks_are_drawn_from_torchs_stream_alone():
    space = nas.load("toy")
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(torch.cat([p.detach().flatten() for p in space.network((2, 2, 2)).parameters()]))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
