"""A search is never worse than none: the default architecture, in the race and where nothing was learned."""

import json

import numpy as np
import pytest
import surface
from small_spaces import OPTIONS
from torch import nn
from using import LEARNING, TINY, Told, nas_command, refused

import nas

RACED = LEARNING | {"baselines": True, "top_k_epochs": 1}


def unlearnable():
    """Noise with labels that have nothing to do with it."""
    draw = np.random.default_rng(0)
    return nas.task_from_arrays(draw.integers(0, 255, (120, 8, 8)).astype(np.uint8), np.arange(120) % 3)


def heads(default=None):
    """Two decisions of two options each."""

    def build(choose):
        options = {"one": lambda: nn.Conv2d(1, 4, 1), "three": lambda: nn.Conv2d(1, 4, 3, padding=1)}
        ends = {
            "linear": lambda: nn.Linear(4, 10),
            "deep": lambda: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 10)),
        }
        first, last = choose.op("first", options), choose.op("last", ends)
        return nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)

    return nas.Space("heads", build, default=default)


def told_of(folder):
    """The words of a job's page, and what its comparison records."""
    page = folder.parent / f"{folder.name}.html"
    assert nas_command("report", folder, "--out", page).code == 0
    return page.read_text(), json.loads((folder / "baselines.json").read_text())


@pytest.mark.parametrize("name", ["darts", "nasbench201", "nasbench101", "convnet", "toy"])
def test_each_space_of_the_project_has_a_valid_default(name):
    space = nas.load(name)
    assert space.default_genotype in {space.nearest(space.one_hot(space.default_genotype))}
    assert sum(p.numel() for p in space.network(space.default_genotype).parameters()) > 0


def test_that_of_darts_is_the_published_one_and_that_of_the_table_is_near_its_top():
    darts = nas.load("darts")
    words = darts.choices(darts.default_genotype)
    assert list(words.values()).count("sep_conv_3x3") >= 5
    cells = nas.load("nasbench201")
    chosen = cells.choices(cells.default_genotype)
    assert sorted(chosen.values()).count("nor_conv_3x3") >= 2 and set(chosen.values()) <= set(OPTIONS)


def test_it_is_given_by_the_options_names_or_is_the_last_of_each():
    assert heads().choices(heads().default_genotype) == {"first": "three", "last": "deep"}
    named = heads({"first": "one", "last": "deep"})
    assert named.choices(named.default_genotype) == {"first": "one", "last": "deep"}
    assert heads((1, 0)).default_genotype == (1, 0)
    refused(lambda: heads({"first": "five", "last": "deep"}).default_genotype, "five", by=nas.SpaceError)
    refused(lambda: heads((0, 7)).default_genotype, by=nas.SpaceError)


@pytest.mark.parametrize("method", ["evolution", "spos"])
def test_it_is_the_first_trial_and_takes_part_in_the_fresh_trainings(tmp_path, method):
    own = {k: v for k, v in RACED.items() if method == "evolution" or k not in ("trial", "epochs")}
    result = nas.search("toy", "digits", method, out=tmp_path / "run", settings=own)
    default = nas.load("toy").default_genotype
    assert result.history[0].genotype == default
    recorded = json.loads((tmp_path / "run" / "baselines.json").read_text())
    assert "default" in recorded["choices"]
    assert 0 <= result.metrics["default_val_acc"] <= 1


def test_it_is_delivered_where_nothing_was_learned_and_that_is_said(tmp_path):
    told = Told()
    result = surface.search(tmp_path / "run", "evolution", on=unlearnable(), trials=3)
    settings = TINY | {"trials": 3}
    again = nas.search(
        "toy", unlearnable(), "evolution", out=tmp_path / "toy", settings=settings, progress=told
    )
    for made in (result, again):
        assert made.genotype == made.space.default_genotype
        page, recorded = told_of(made.folder)
        assert "default architecture" in page and recorded["found_by"] == "default"
    assert any("default architecture" in note for note in told.notes)


def test_alphas_that_never_moved_deliver_it(tmp_path):
    still = {"epochs": 2, "search": {"batch": 8}, "alphas": {"lr": 1e-9}}
    result = surface.search(tmp_path / "run", "darts", on=surface.blobs(), **still)
    assert result.genotype == result.space.default_genotype
    assert "alike" in (tmp_path / "run" / "baselines.json").read_text()


def test_one_that_breaks_a_constraint_gives_way_to_a_near_one(tmp_path):
    space = nas.load("toy")
    limit = sum(p.numel() for p in space.network(space.default_genotype).parameters()) - 1
    settings = RACED | {"constraint": [f"params<={limit}"]}
    result = nas.search("toy", "digits", "evolution", out=tmp_path / "run", settings=settings)
    assert result.history[0].genotype != space.default_genotype
    assert result.metrics["params"] <= limit


def test_one_that_fails_is_not_delivered(tmp_path):
    class Broken(nn.Module):
        def forward(self, x):
            if self.training and not x.is_meta:
                raise ValueError("always")
            return x

    def build(choose):
        ends = {"sound": nn.Identity, "broken": Broken}
        return nn.Sequential(nn.Flatten(), choose.op("end", ends), nn.Linear(64, 10))

    space = nas.Space("halfway", build)
    result = nas.search(space, "digits", "random", out=tmp_path / "run", settings=TINY)
    assert space.choices(result.genotype) == {"end": "sound"}
    assert result.history[0].state == "failed"


def test_validating_a_space_shows_it_with_its_accuracy(tmp_path):
    said = nas_command("validate", "toy", "--task", "digits")
    assert said.code == 0 and "default" in said.out


# -- how images are varied ---------------------------------------------------------------------------------


def test_images_are_varied_as_asked_in_all_phases(tmp_path):
    found = {}
    for augment in (None, "none", "crop", "crop+flip"):
        told, own = Told(), {} if augment is None else {"augment": augment}
        folder = tmp_path / str(augment)
        nas.search("toy", "digits", "random", out=folder, settings=TINY | own, progress=told)
        found[augment] = surface.outcome(nas.load_result(folder))
        assert any((augment or "crop") in note for note in told.notes[:1])
    assert found[None]["history"] == found["crop"]["history"]
    assert found[None]["model"] == found["crop"]["model"]
    for one, other in (("none", "crop"), ("crop", "crop+flip")):
        assert found[one]["history"] != found[other]["history"]
        assert found[one]["model"] != found[other]["model"]


def test_ways_that_are_not_known_are_refused_by_name(tmp_path):
    call = lambda word: nas.search("toy", "digits", "random", out=tmp_path, settings=TINY | {"augment": word})  # noqa: E731
    refused(lambda: call("crop+turn"), "turn", "flip")
    refused(lambda: call("none+crop"), "none")


# -- budgets -----------------------------------------------------------------------------------------------


def test_where_nothing_is_searched_the_default_gets_all_time_and_that_is_said(tmp_path):
    told, settings = Told(), {"export": False, "pictures": False, "budget": "4s"}
    result = nas.search("toy", "digits", "evolution", out=tmp_path / "run", settings=settings, progress=told)
    assert result.genotype == result.space.default_genotype and not result.history
    assert any(note.startswith("plan: ") for note in told.notes)
    assert any("no time for a search" in note for note in told.notes)
    assert result.metrics["retrain_epochs"] >= 1
